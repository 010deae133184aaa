"""ROME: one fact, one layer, a rank-one change."""

# ruff: noqa: N806 (the paper's symbols)

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, oriented, submodule
from edutools.change import Edit
from edutools.checks import typed
from edutools.facts import Fact
from edutools.keyvalue import BARE, ValueSearch, keys
from edutools.method import COVARIANCES, Method, Moments, choice
from edutools.precision import double
from edutools.search import Find, target_states
from edutools.solve import LowRank, rome_updates

__all__ = ["ROME"]

KEYS = ("mean", "prompt", "mixed")


@dataclass(frozen=True, kw_only=True)
class ROME(Method):
    r"""Rank-one model editing: one fact, one layer, exactly.

    .. math:: \Delta = \frac{(v_* - W k_*)\,(C^{-1} k_*)^\top}{k_*^\top C^{-1} k_*}

    Attributes:
        layer: which one to write, counted from 0.
        key: 'mean' takes the key averaged over contexts everywhere (r-ROME), 'prompt'
            that of the bare prompt everywhere (p-ROME). 'mixed' is the released code:
            C⁻¹k averaged, the denominator on the bare prompt; the bare prompt's key
            is then mapped to v at a higher price, and the average overshoots.
        covariance: 'moments' uses the measured C, 'identity' C = I.
        search: how v is found; at the MLP's output by default.

    Source: Meng et al. 2022 (ROME), eqs. 2 to 4; Gupta et al. 2024 (r-ROME) for 'mean'.
    Book: sec-rome-update
    """

    layer: int = 5
    key: str = "mean"
    covariance: str = "moments"
    search: ValueSearch = field(
        default_factory=lambda: ValueSearch(site="mlp", steps=20, clamp=4.0)
    )
    several: ClassVar[bool] = False
    searches: ClassVar[bool] = True
    inverts: ClassVar[bool] = True
    bibtex: ClassVar[str] = """
        @inproceedings{meng2022rome,
          title = {Locating and Editing Factual Associations in {GPT}},
          author = {Kevin Meng and David Bau and Alex Andonian and Yonatan Belinkov},
          booktitle = {Advances in Neural Information Processing Systems},
          volume = {35},
          year = {2022},
          eprint = {2202.05262},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        typed(self)
        choice("ROME.key", self.key, KEYS)
        choice("ROME.covariance", self.covariance, COVARIANCES)

    @property
    def layers(self) -> tuple[int, ...]:
        """The one layer, as a tuple."""
        return (self.layer,)

    def resolved(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> "ROME":
        """The same with the contexts written down."""
        contexts = self.search.contexts.resolved(model, tokenizer)
        return replace(self, search=replace(self.search, contexts=contexts))

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> None:
        """Refuse more than one fact.

        Raises:
            ValueError: if there is more than one, or as every method does.
        """
        super().check(model, tokenizer, facts, moments)
        if len(facts) != 1:
            raise ValueError(
                f"ROME writes one fact at a time; got {len(facts)}. Use MEMIT or "
                "EMMET, or write one after the other: for fact in facts: with "
                "total.applied(model): total += edit(model, tokenizer, [fact], ...)."
            )

    def compute(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
        *,
        find: Find = target_states,
    ) -> Edit:
        """The rank-one change that writes the fact."""
        (found,) = self.compute_each(model, tokenizer, facts, moments, find=find)
        return found

    def compute_each(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
        *,
        find: Find = target_states,
    ) -> list[Edit]:
        """For each fact the change that writes it alone; one search for all."""
        search = self.resolved(model, tokenizer).search
        found = find(model, tokenizer, facts, self.layer, search=search)
        bare = keys(model, tokenizer, facts, self.layer, contexts=BARE)  # (d_in, n)
        mean = keys(model, tokenizer, facts, self.layer, contexts=search.contexts)
        name = architecture_of(model).write(self.layer)
        W = double(oriented(submodule(model, name)), "W")  # (d_out, d_in)
        C = moments[self.layer].factor
        move = (found.values - found.initial).to(W.device)  # δ  (d_out, n)
        bare, mean = bare.to(W.device), mean.to(W.device)
        K = bare if self.key == "prompt" else mean
        start = mean if self.key == "mixed" else bare
        deltas = rome_updates(W, K, W @ start + move, C)  # W k := v = W k_bare + δ
        edits = []
        for i, delta in enumerate(deltas):
            if self.key == "mixed":
                delta = _rescaled(delta, mean[:, i], bare[:, i])
            told = {key: [values[i]] for key, values in found.summary().items()}
            edits.append(Edit({name: delta}, {"search": told}))
        return edits


def _rescaled(
    delta: LowRank, mean: Float[Tensor, " d_in"], bare: Float[Tensor, " d_in"]
) -> LowRank:
    """The change with the denominator on the bare prompt's key."""
    ratio = (delta.right @ mean) / (delta.right @ bare)  # (1,)
    return replace(delta, left=delta.left * ratio)
