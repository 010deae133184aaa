"""The value search: which state at the subject makes the model say the target.

ROME's v* and MEMIT's z are the same search at two places. All facts and contexts go
through the model together; the facts do not influence one another.

Axes: n facts · contexts · steps evaluations of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import check_layer, n_layers
from edutools.facts import Fact
from edutools.hooks import evaluating, frozen
from edutools.keyvalue import ValueSearch
from edutools.objective import PARTS, Objective
from edutools.rows import SearchRows

__all__ = ["TargetStates", "target_states"]


@dataclass(frozen=True)
class TargetStates:
    """The values found by `target_states`, with the record of the search.

    Attributes:
        values: the wanted state of each fact, one column per fact, float64.
        initial: the state before, at the same place on the bare prompt.
        history: for 'loss' and its parts 'nll', 'kl', 'decay' (nats), and for the mean
            'probability' of the target: one row per fact, one column per evaluation,
            nan after a fact has finished.

    Book: sec-rome-value
    """

    values: Float[Tensor, "d_out n"]
    initial: Float[Tensor, "d_out n"]
    history: dict[str, Float[Tensor, "n steps"]]

    @property
    def iterations(self) -> Int[Tensor, " n"]:
        """How many evaluations each fact took."""
        return (~self.history["loss"].isnan()).sum(1)

    @property
    def probability(self) -> Float[Tensor, " n"]:
        """The target's mean probability over contexts at the value found, per fact."""
        last = self.iterations[:, None] - 1
        return self.history["probability"].gather(1, last)[:, 0]

    def summary(self) -> dict[str, list[float]]:
        """How each fact's search ended, as plain numbers for the record."""
        return {
            "probability": self.probability.tolist(),
            "iterations": self.iterations.tolist(),
        }

    def __repr__(self) -> str:
        n = self.values.shape[1]
        p = float(self.probability.mean())
        return f"TargetStates(n={n}, mean probability={p:.3f})"


def target_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    *,
    search: ValueSearch,
    batch_size: int = 32,
    progress: bool = False,
) -> TargetStates:
    """Search, for each fact, the state at its subject that makes the model say it.

    All facts of a batch are searched together; a finished one leaves the batch. Facts
    do not influence one another: the result is that of one search per fact. Weights
    and their gradients stay untouched; δ is float32 whatever the model is.

    Args:
        model: its weights stay untouched.
        tokenizer: the model's.
        facts: what the model shall say.
        layer: where δ is added. At the last layer it cannot reach the answer.
        search: what to minimise and how far to go.
        batch_size: facts per batch; changes memory and speed only.
        progress: show a bar that counts facts.

    Returns:
        Values and the trajectory of every part of the loss.

    Raises:
        ValueError: if the layer does not exist or is the last, or a subject is lost.
        RuntimeError: if a loss is not a number.

    Source: Meng et al. 2022 (ROME), eq. 4; Meng et al. 2023 (MEMIT), eq. 16.
    Book: sec-rome-value
    """
    check_layer(model, layer)
    if layer == n_layers(model) - 1:
        raise ValueError(
            f"Layer {layer} is the last one: what is written there at the subject "
            "cannot reach the answer. Choose an earlier layer."
        )
    contexts = search.contexts.texts(model, tokenizer)
    objective = Objective.at(model, layer, search)
    order = sorted(range(len(facts)), key=lambda i: len(facts[i].text))
    done = []
    bar = tqdm(total=len(facts), desc="values", disable=not progress)
    with bar, evaluating(model), frozen(model):
        for first in range(0, len(order), batch_size):
            part = [facts[i] for i in order[first : first + batch_size]]
            rows = SearchRows.of(tokenizer, part, contexts, essence=search.essence)
            done.append(_descend(objective, rows, search))
            _check_finite(done[-1], part, layer)
            bar.update(len(part))
    back = torch.tensor(order).argsort()
    return TargetStates(
        values=torch.cat([d.values for d in done], 1)[:, back],
        initial=torch.cat([d.initial for d in done], 1)[:, back],
        history={p: torch.cat([d.history[p] for d in done])[back] for p in PARTS},
    )


def _check_finite(found: TargetStates, facts: Sequence[Fact], layer: int) -> None:
    bad = (~found.values.isfinite().all(0)).nonzero()[:, 0].tolist()
    if bad:
        raise RuntimeError(
            f"The value search for {facts[bad[0]].text!r} at layer {layer} ran into "
            "numbers that are not finite. Lower ValueSearch.lr, or load the model in "
            "float32 or bfloat16."
        )


def _descend(
    objective: Objective, rows: SearchRows, search: ValueSearch
) -> TargetStates:
    """Search the values of one batch of facts; a finished fact leaves the batch."""
    start = objective.start(rows)
    delta_h = torch.zeros_like(start.initial)  # δ  (n, d_out)
    adam = torch.optim.Adam([delta_h], lr=search.lr)
    running = torch.ones(len(delta_h), dtype=torch.bool)
    history = {p: torch.full((len(delta_h), search.steps), torch.nan) for p in PARTS}
    for step in range(search.steps):
        active = running.nonzero()[:, 0]
        leaf = delta_h[active].requires_grad_()
        losses = objective.losses(rows.pick(active), start.pick(active), leaf)
        for part in PARTS:
            history[part][active, step] = losses[part].detach().cpu()
        running[active] = ~(history["loss"][active, step] < search.stop_loss)
        if step == search.steps - 1 or not running.any():
            break
        (grad,) = torch.autograd.grad(losses["loss"].sum(), leaf)
        before = delta_h.clone()
        delta_h.grad = torch.zeros_like(delta_h)
        delta_h.grad[active] = grad
        adam.step()
        delta_h[~running] = before[~running]  # finished facts rest
        delta_h *= (start.radius / delta_h.norm(dim=1)).clamp(max=1)[:, None]
    return TargetStates(
        values=(start.initial + delta_h).T.double(),
        initial=start.initial.T.double(),
        history=history,
    )
