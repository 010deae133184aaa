r"""The gradient of a linear map's weight, in factors: what it read, what to change.

.. math:: \nabla_W L = \sum_t d_t\, u_t^\top

u is the map's input at a token and d the gradient of the loss with respect to its
output there. Both come from one forward and one backward pass that never builds the
matrix.

Axes: n rows, one per text · tokens · d_in, d_out sizes of the map · groups of rows that
share a change · rank of that change.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from edutools.arch import submodule
from edutools.hooks import evaluating, frozen
from edutools.rows import AnswerRows
from edutools.scoring import answer_logits

__all__ = ["Factors", "adding", "gradient_factors", "mean_nll"]

Pair = tuple[Float[Tensor, "groups rank d_in"], Float[Tensor, "groups rank d_out"]]


@dataclass(frozen=True, eq=False)
class Factors:
    """The gradient of one weight, token by token, for several rows.

    Attributes:
        u: input of the map.
        d: gradient of the loss with respect to the output of the map.

    Book: sec-mend-factors
    """

    u: Float[Tensor, "n tokens d_in"]
    d: Float[Tensor, "n tokens d_out"]

    @cached_property
    def keep(self) -> Bool[Tensor, "n tokens"]:
        """Tokens that contribute: neither vector is zero there."""
        return (self.u != 0).any(-1) & (self.d != 0).any(-1)

    def to(self, device: torch.device) -> "Factors":
        """The same on another device."""
        if self.u.device == self.d.device == device:
            return self
        return Factors(self.u.to(device), self.d.to(device))

    def at(self, places: Int[Tensor, " n"]) -> "Factors":
        """The same with nothing left but one token of each row."""
        tokens = torch.arange(self.u.shape[1], device=self.u.device)
        here = (tokens == places.to(tokens.device)[:, None])[
            ..., None
        ]  # (n, tokens, 1)
        return Factors(self.u * here, self.d * here)

    def holding(
        self, u: Float[Tensor, "kept d_in"], d: Float[Tensor, "kept d_out"]
    ) -> "Factors":
        """Other vectors at the tokens that contribute, and zeros elsewhere."""
        keep = self.keep[..., None]  # (n, tokens, 1)
        return Factors(
            torch.zeros_like(self.u).masked_scatter(keep, u),
            torch.zeros_like(self.d).masked_scatter(keep, d),
        )

    def gradient(self) -> Float[Tensor, "d_out d_in"]:
        """The gradient itself, summed over rows and tokens."""
        return torch.einsum("nto,nti->oi", self.d, self.u)


def mean_nll(
    logits: Float[Tensor, "n answer vocab"], rows: AnswerRows
) -> Float[Tensor, " n"]:
    """Mean negative log-probability of each row's answer tokens, in nats.

    Book: sec-mend-factors
    """
    labels, valid = rows.labels.to(logits.device), rows.valid.to(logits.device)
    logp = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]  # (n, answer)
    return -(logp * valid).sum(1) / valid.sum(1)


def gradient_factors(
    model: PreTrainedModel,
    rows: AnswerRows,
    names: Sequence[str],
    *,
    reduction: str = "sum",
) -> dict[str, Factors]:
    """The gradients of the named maps' weights, in factors.

    Args:
        model: its weights, their gradients and its mode stay as they are.
        rows: prompts with the answers that the model shall give.
        names: of linear maps (`Linear` or GPT-2's `Conv1D`).
        reduction: 'sum' adds up the rows' mean losses, so that rows do not influence
            one another; 'mean' averages over all answer tokens of all rows.

    Returns:
        Detached float32 factors, by name.

    Raises:
        ValueError: if the reduction is unknown.
        LookupError: if the model has no module of a name.

    Source: Mitchell et al. 2022 (MEND), eq. 2; 'mean' is the released code.
    Book: sec-mend-factors
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}; choose 'sum' or 'mean'.")
    with evaluating(model), frozen(model), _probed(model, names) as (inputs, probes):
        loss = mean_nll(answer_logits(model, rows), rows)  # (n,)
        if reduction == "mean":
            counts = rows.valid.sum(1).to(loss.device)
            loss = loss * counts / counts.sum()
        grads = torch.autograd.grad(loss.sum(), [probes[name] for name in names])
    return {
        name: Factors(inputs[name].float(), grad.float())
        for name, grad in zip(names, grads, strict=True)
    }


@contextmanager
def _probed(
    model: nn.Module, names: Sequence[str]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Record inputs, and add zeros to outputs whose gradients can be asked for."""
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}

    def hook(name: str):
        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            inputs[name] = args[0].detach()
            probes[name] = torch.zeros_like(output, requires_grad=True)
            return output + probes[name]

        return add

    with ExitStack() as hooks:
        for name in names:
            handle = submodule(model, name).register_forward_hook(hook(name))
            hooks.callback(handle.remove)
        yield inputs, probes


@contextmanager
def adding(
    model: nn.Module,
    changes: Mapping[str, Pair],
    *,
    groups: Int[Tensor, " rows"] | None = None,
) -> Iterator[None]:
    """Let groups of rows see weights changed in their own way, without changing any.

    A change (a, b) of a group adds Σ b_r a_rᵀ to the weight that its rows see.
    Gradients flow to a and b.

    Args:
        model: with the named linear maps.
        changes: name -> (a, b), for each group one row per rank.
        groups: whose change each row sees. None: rows come group by group, equally
            many each.

    Book: sec-mend-training
    """

    def hook(a: Tensor, b: Tensor):
        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            u, d = a.to(output.device), b.to(output.device)
            if groups is not None:
                u, d = (x.index_select(0, groups.to(x.device)) for x in (u, d))
            x = args[0].reshape(len(u), -1, args[0].shape[-1]).to(u)
            more = (x @ u.transpose(1, 2)) @ d  # (groups or rows, tokens, d_out)
            return output + more.reshape(output.shape).to(output.dtype)

        return add

    with ExitStack() as hooks:
        for name, (a, b) in changes.items():
            handle = submodule(model, name).register_forward_hook(hook(a, b))
            hooks.callback(handle.remove)
        yield
