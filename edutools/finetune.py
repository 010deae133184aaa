"""Fine-tuning as an editor: descend on the loss of the targets, a few weights only.

Axes: n facts · d_in, d_out sizes of the write map.
"""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, submodule
from edutools.change import Edit, weight_at
from edutools.checks import typed
from edutools.factors import mean_nll
from edutools.facts import Fact
from edutools.hooks import capture, evaluating, frozen, patch
from edutools.method import Method, Moments, choice
from edutools.rows import AnswerRows, answer_rows
from edutools.scoring import answer_logits
from edutools.settings import preset_row, read
from edutools.solve import LowRank

__all__ = ["FineTune"]

KINDS = ("FT", "FT-L", "FT-M")
LOSSES = ("target", "last")
Weights = dict[str, Float[Tensor, "d_out d_in"]]


@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    r"""Fine-tuning: Adam on the write maps of some layers until the model says it.

    .. math:: \min_\Delta\; -\frac1n \sum_i \frac1{T_i} \sum_j
        \log P_{W + \Delta}[o_{ij} \mid p_i, o_{i,<j}]
        \qquad \text{with} \quad \max_{ab} |\Delta_{ab}| \le \varepsilon

    The baseline of every comparison, under three names, see `kind`. It knows nothing of
    keys or of old facts; only the bound and the small number of steps protect these.

    Attributes:
        layers: which to write, counted from 0; all of them at once.
        epsilon: the bound ε, kept by projection after every step. None: no bound.
        loss: 'target' asks for each token of a target in its own place, behind those
            before it (teacher forcing). 'last' asks for all of them right behind the
            prompt, as released code does; the same for targets of one token.
        lr: Adam's learning rate, in units of the weight: about as far as a weight moves
            in one step.
        steps: how often the facts are gone through, at most.
        batch_size: facts per step of Adam, in the given order. It counts: smaller
            batches are more steps.
        weight_decay: this multiple of the weight is added to its gradient, as in
            torch's Adam. It pulls the weight towards zero, not towards its old value.
        stop_loss: a batch with a smaller loss (in nats) takes no step, and if that of
            all facts is smaller, the work is done.
        bias: move the bias of the write map as well, where there is one.

    Source: Zhu et al. 2020 for the bound; Zhang et al. 2024 for FT-M. The released code
        of ROME takes every parameter with the map's name, so it moves the bias, too;
        EasyEdit has kept that. The papers speak of the weight.
    Book: sec-fine-tuning

    >>> FineTune().kind, FineTune(epsilon=5e-5).kind
    ('FT-M', 'FT-L')
    """

    layers: tuple[int, ...] = (21,)
    epsilon: float | None = None
    loss: str = "target"
    lr: float = 5e-4
    steps: int = 25
    batch_size: int = 64
    weight_decay: float = 0.0
    stop_loss: float = 0.01
    bias: bool = False
    needs_moments: ClassVar[bool] = False
    bibtex: ClassVar[str] = """
        @misc{zhu2020modifying,
          title = {Modifying Memories in Transformer Models},
          author = {Chen Zhu and Ankit Singh Rawat and Manzil Zaheer and
                    Srinadh Bhojanapalli and Daliang Li and Felix Yu and Sanjiv Kumar},
          year = {2020},
          eprint = {2012.00363},
          archiveprefix = {arXiv}
        }

        @misc{zhang2024comprehensive,
          title = {A Comprehensive Study of Knowledge Editing for Large Language
                   Models},
          author = {Ningyu Zhang and Yunzhi Yao and Bozhong Tian and Peng Wang and
                    Shumin Deng and others},
          year = {2024},
          eprint = {2401.01286},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        typed(self)
        choice("FineTune.loss", self.loss, LOSSES)
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                "FineTune.layers must name at least one layer, each once; got "
                f"{list(self.layers)}."
            )
        for name, value in {"epsilon": self.epsilon, "lr": self.lr}.items():
            if value is not None and not value > 0:
                raise ValueError(f"FineTune.{name} is {value}; it must be positive.")
        least = {"steps": 1, "batch_size": 1, "weight_decay": 0, "stop_loss": 0}
        for name, limit in least.items():
            if not getattr(self, name) >= limit:
                raise ValueError(
                    f"FineTune.{name} is {getattr(self, name)}; it must be at least "
                    f"{limit}."
                )

    @property
    def kind(self) -> str:
        """The name in tables: 'FT-L' with a bound; without, 'FT-M' or, by 'last', 'FT'.

        Tables made with EasyEdit may say FT-L for what is FT here: its settings for
        Llama-2 have no bound and ask for the last position.
        """
        if self.epsilon is not None:
            return "FT-L"
        return "FT-M" if self.loss == "target" else "FT"

    @classmethod
    def preset(cls, model: str, *, kind: str = "FT") -> "FineTune":
        """The published settings for a model, by its name.

        Args:
            model: its name; an owner in front is dropped and case does not matter.
            kind: 'FT', 'FT-L' or 'FT-M'.

        Raises:
            ValueError: if there are none; lists the names that have some.
        """
        choice("kind", kind, KINDS)
        return read(cls, preset_row(kind, model))

    def compute(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> Edit:
        """The changes that descent finds for all facts together.

        Raises:
            RuntimeError: if a loss is not a number.
        """
        rows = answer_rows(
            tokenizer, [f.text for f in facts], [f.target for f in facts]
        )
        if self.loss == "last":
            first = rows.positions[:, :1]  # (n, 1)
            rows = replace(rows, positions=first.expand_as(rows.positions))
        with evaluating(model), frozen(model):
            delta, losses = self._descend(model, rows)
        changes = {name: LowRank.of(change) for name, change in delta.items()}
        return Edit(changes, {"training": {"loss": losses}})

    def _descend(
        self, model: PreTrainedModel, rows: AnswerRows
    ) -> tuple[Weights, list[float]]:
        """The changes in float32, and the mean loss of all facts in each pass."""
        names = [architecture_of(model).write(layer) for layer in self.layers]
        if self.bias:
            names += [
                f"{name}.bias" for name in names if _bias(model, name) is not None
            ]
        W0 = {name: weight_at(model, name) for name in names}
        delta = {
            name: torch.zeros(W.shape, device=W.device, dtype=torch.float32)
            for name, W in W0.items()
        }
        adam = torch.optim.Adam(list(delta.values()), lr=self.lr)
        batches = torch.arange(len(rows.ids)).split(self.batch_size)
        losses: list[float] = []
        for _ in range(self.steps):
            total = 0.0
            for part in batches:
                loss = self._step(model, rows.pick(part), W0, delta, adam)
                total += loss * len(part)
            losses.append(total / len(rows.ids))
            if losses[-1] < self.stop_loss:
                break
        return delta, losses

    def _step(
        self,
        model: PreTrainedModel,
        rows: AnswerRows,
        W0: Weights,
        delta: Weights,
        adam: torch.optim.Adam,
    ) -> float:
        """Move `delta` once, if the loss of these facts is large; return that loss."""
        leaf = [change.detach().requires_grad_() for change in delta.values()]
        W = {
            name: (old + change).to(old.dtype)  # as it will be applied  (d_out, d_in)
            for (name, old), change in zip(W0.items(), leaf, strict=True)
        }
        with _rewritten(model, W):
            loss = mean_nll(answer_logits(model, rows), rows).mean()
        value = float(loss.detach())
        if value < self.stop_loss:
            return value
        grads = torch.autograd.grad(loss, leaf)
        _check_finite([loss.detach(), *grads])
        for (name, change), grad in zip(delta.items(), grads, strict=True):
            decay = self.weight_decay * (W0[name] + change)
            change.grad = grad + decay.to(grad.dtype)
        adam.step()
        if self.epsilon is not None:
            bound = _float32_below(self.epsilon)
            for change in delta.values():
                change.clamp_(-bound, bound)  # |Δ| <= ε
        return value


@contextmanager
def _rewritten(model: PreTrainedModel, weights: Weights) -> Iterator[None]:
    """Run named linear maps with other weights; the model's own stay untouched."""
    maps = [name for name in weights if not name.endswith(".bias")]
    with capture(model, maps, inputs=True) as reads:

        def output(name: str) -> Callable[[Tensor], Tensor]:
            W, column = weights[name], weights.get(f"{name}.bias")
            bias = _bias(model, name) if column is None else column[:, 0]
            return lambda _: functional.linear(reads[name].to(W.device), W, bias)

        with patch(model, {name: output(name) for name in maps}):
            yield


def _bias(model: PreTrainedModel, name: str) -> Float[Tensor, " d_out"] | None:
    return getattr(submodule(model, name), "bias", None)


def _check_finite(numbers: Sequence[Float[Tensor, "..."]]) -> None:
    if not all(bool(x.isfinite().all()) for x in numbers):
        raise RuntimeError(
            "Fine-tuning ran into numbers that are not finite. Lower FineTune.lr, or "
            "load the model in float32 or bfloat16."
        )


def _float32_below(value: float) -> float:
    """The largest number of float32 that is not above a positive one."""
    near = torch.tensor(value, dtype=torch.float32)
    return float(near if float(near) <= value else near.nextafter(torch.zeros(())))
