"""Adam on the values of a batch of facts, in as many passes as memory asks for.

Axes: n facts · part facts of one pass · steps evaluations of the loss.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edutools.objective import PARTS, Objective, Start
from edutools.rows import SearchRows

__all__ = ["RECORDED", "Descent"]

RECORDED = (*PARTS, "said")


@dataclass(frozen=True, eq=False)
class _Part:
    """Facts that go through the model together, by their place in the batch."""

    facts: Int[Tensor, " part"]
    rows: SearchRows
    start: Start


class Descent:
    """One search of the values of a batch of facts; a finished fact leaves the batch.

    Facts with the same owner start at the same δ and get the same, mean gradient until
    all of them have finished, so they keep the same δ.

    Args:
        objective: what to minimise.
        rows: the facts of the batch.
        owner: a number from 0 for each fact; those with the same one share one value.
        size: facts per pass; if there are more, each step takes several passes.

    Attributes:
        initial: the state at the site before the search.
        delta_h: δ, in float32.
        history: by part of the loss, nan where a fact had finished.

    Book: sec-rome-value
    """

    initial: Float[Tensor, "n d_out"]
    delta_h: Float[Tensor, "n d_out"]
    history: dict[str, Float[Tensor, "n steps"]]

    def __init__(
        self,
        objective: Objective,
        rows: SearchRows,
        owner: Int[Tensor, " n"],
        size: int,
    ):
        each = torch.arange(len(owner)).split(size)
        taken = [(facts, rows.pick(facts)) for facts in each]
        self._parts = [_Part(i, part, objective.start(part)) for i, part in taken]
        self._objective, self._search = objective, objective.search
        self._owner = owner
        self._running = torch.ones(len(owner), dtype=torch.bool)
        self._radius = torch.cat([part.start.radius for part in self._parts])  # (n,)
        self.initial = torch.cat([part.start.initial for part in self._parts])
        self.delta_h = torch.zeros_like(self.initial)  # δ  (n, d_out)
        empty = torch.full((len(owner), self._search.steps), torch.nan)
        self.history = {name: empty.clone() for name in RECORDED}

    def run(self) -> None:
        """Move every δ until all facts have finished or no step is left."""
        delta_h, owner = self.delta_h, self._owner.to(self.delta_h.device)
        adam = torch.optim.Adam([delta_h], lr=self._search.lr)
        for step in range(self._search.steps):
            delta_h.grad = torch.zeros_like(delta_h)
            for part in self._parts:
                self._measure(part, step)
            self._running = ~self._finished(step)
            if step == self._search.steps - 1 or not self._running.any():
                break
            before = delta_h.clone()
            delta_h.grad = _shared(delta_h.grad, owner)
            adam.step()
            delta_h[~self._running] = before[~self._running]  # finished facts rest
            delta_h *= (self._radius / delta_h.norm(dim=1)).clamp(max=1)[:, None]
        self._parts.clear()  # the states below the layer are large

    def _measure(self, part: _Part, step: int) -> None:
        """Enter the losses of a part's unfinished facts, and their gradients."""
        keep = self._running[part.facts].nonzero()[:, 0]
        if not len(keep):
            return
        active, last = part.facts[keep], step == self._search.steps - 1
        leaf = self.delta_h[active].requires_grad_()
        with torch.set_grad_enabled(not last):  # the last evaluation only measures
            losses = self._objective.losses(
                part.rows.pick(keep), part.start.pick(keep), leaf
            )
        for name in RECORDED:
            self.history[name][active, step] = losses[name].detach().cpu()
        if not last and not self._finished(step)[active].all():
            (grad,) = torch.autograd.grad(losses["loss"].sum(), leaf)
            assert self.delta_h.grad is not None
            self.delta_h.grad[active] = grad

    def _finished(self, step: int) -> Bool[Tensor, " n"]:
        """Whether the facts that share a value have all got what they want, per fact.

        What is not measured yet in this step counts as unmet.
        """
        search, loss, said = self._search, self.history["loss"], self.history["said"]
        met = loss < search.stop_loss if search.stop == "loss" else said == 1
        unmet = torch.zeros(loss.shape).index_add(0, self._owner, (~met).float())
        return (unmet[self._owner, : max(0, step + 1 - search.extra_steps)] == 0).any(1)


def _shared(
    grad: Float[Tensor, "n d_out"], owner: Int[Tensor, " n"]
) -> Float[Tensor, "n d_out"]:
    """For each fact the mean gradient of all facts with its owner."""
    count = owner.bincount()  # (values,)
    total = grad.new_zeros(len(count), grad.shape[1]).index_add(0, owner, grad)
    return (total / count[:, None])[owner]
