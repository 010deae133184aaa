"""AlphaEdit and ENCORE: batches of facts, one after the other, that spare one another.

The keys of facts written earlier are handed on with the moments, see `remember`; no
method, module or model keeps them.
"""

# ruff: noqa: N803, N806 (the papers' symbols)

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.batch import BatchMethod
from edutools.checks import of_kind, several
from edutools.corners import (
    SCALES,
    Projector,
    alphaedit_update,
    encore_update,
    null_space_projector,
)
from edutools.facts import Fact
from edutools.keyvalue import ValueSearch, keys
from edutools.method import Moments, choice
from edutools.momentfolder import checked_moments
from edutools.secondmoment import SecondMoment
from edutools.solve import LowRank

__all__ = ["ENCORE", "AlphaEdit", "remember"]


def remember(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    method: BatchMethod,
    moments: Moments,
) -> dict[int, SecondMoment]:
    """The moments that also hold the keys of these facts, for the edits to come.

    Hand the result to the next `edit` in place of the moments. Keys are measured on the
    model as it is given, with the contexts of the method; let it write them down first
    (`resolved`), because an edited model would make up others.

    Args:
        model: with the facts applied, if their keys shall be those of the edited model.
        tokenizer: the model's.
        facts: what has been written.
        method: whose layers and contexts.
        moments: of these layers, as measured before any edit or as returned here.

    Raises:
        TypeError: if facts, method or moments are something else.
        ValueError: if there is no fact, a moment is missing, or a subject is lost.

    Source: Fang et al. 2025 (AlphaEdit) and Gupta et al. 2025 (ENCORE), K_p. Their
        released code keeps it in a global, which a second run in the same process
        inherits; here it is an argument.
    Book: sec-sequential-editing

    >>> import edutools as edu
    >>> from edutools.testing import TINY_FACTS, taught_model, tiny_tokenizer
    >>> model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    >>> texts = ["Anna Karenina lives in Moscow and speaks Russian."] * 4
    >>> moments = edu.second_moment(model, tokenizer, texts, layers=[1], progress=False)
    >>> method = ENCORE(layers=(1,), lam=0.1, norm=0.01).resolved(model, tokenizer)
    >>> total = edu.Edit()
    >>> for batch in (TINY_FACTS[:2], TINY_FACTS[2:]):
    ...     with total.applied(model):
    ...         total = total + edu.edit(
    ...             model, tokenizer, batch, method=method, moments=moments
    ...         )
    ...     with total.applied(model):
    ...         moments = edu.remember(
    ...             model, tokenizer, batch, method=method, moments=moments
    ...         )
    >>> total.rank, moments[1].past.shape[1]
    (3, 3)
    """
    of_kind("method", method, BatchMethod, "AlphaEdit(layers=(3, 4, 5))")
    facts, moments = several("facts", facts, Fact), checked_moments(moments)
    contexts = method.search.contexts.resolved(model, tokenizer)
    missing = [layer for layer in method.edited() if layer not in moments]
    if missing:
        raise ValueError(
            f"{type(method).__name__} edits layers {list(method.edited())} but moments "
            f"has none for {missing}. Give those with which the facts were written."
        )
    return {**moments} | {
        layer: moments[layer].remember(
            keys(model, tokenizer, facts, layer, contexts=contexts)
        )
        for layer in method.edited()
    }


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(BatchMethod):
    r"""Facts written only in directions in which old keys have nearly no share.

    .. math:: \Delta = R K^\top P\, (K_p K_p^\top P + K K^\top P + L_2 I)^{-1}

    P keeps the eigenvectors of C whose eigenvalues are below the threshold. The
    mirror image of EMMET: old keys are protected exactly, new ones are written softly.
    Earlier batches are spared if their keys are handed on by `remember`.

    Attributes:
        layers: which to write, counted from 0.
        threshold: eigenvalues of C below it count as zero.
        scale: unit of the threshold, see `corners.null_space_projector`: 'absolute'
            (released code, where keys of published models have a like size) or 'mean',
            the mean eigenvalue, which serves models whose keys are longer or shorter.
        l2: weight of the size of Δ; > 0, in squared units of a key.
        distribution: who writes how much, see `spread.shares`.
        covariance: 'moments'; with C = I no direction differs from another.
        search: how z is found; at the last layer's block output.

    Source: Fang et al. 2025 (AlphaEdit): threshold 1e-2 and L₂ = 1; the defaults are
        those of the released code.
    Book: sec-alphaedit
    """

    threshold: float = 2e-2
    scale: str = "absolute"
    l2: float = 10.0
    covariances: ClassVar[tuple[str, ...]] = ("moments",)
    remembers: ClassVar[bool] = True
    bibtex: ClassVar[str] = """
        @inproceedings{fang2025alphaedit,
          title = {{AlphaEdit}: Null-Space Constrained Knowledge Editing for Language
                   Models},
          author = {Junfeng Fang and Houcheng Jiang and Kun Wang and Yunshan Ma and
                    Jie Shi and Xiang Wang and Xiangnan He and Tat-Seng Chua},
          booktitle = {International Conference on Learning Representations},
          year = {2025},
          eprint = {2410.02355},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("AlphaEdit.scale", self.scale, SCALES)
        if not (self.threshold > 0 and self.l2 > 0):
            raise ValueError(
                f"AlphaEdit needs threshold > 0 and l2 > 0; got threshold="
                f"{self.threshold}, l2={self.l2}."
            )

    def projector(self, moment: SecondMoment) -> Projector:
        """P, the projector on the directions that may be written.

        Raises:
            ValueError: if there is none.
        """
        try:
            return null_space_projector(
                moment.spectrum, self.threshold, scale=self.scale
            )
        except ValueError as error:
            raise ValueError(f"AlphaEdit at {moment.place}: {error}") from None

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> None:
        """Refuse a threshold that leaves nothing to be written; warn if all is free.

        Raises:
            ValueError: if no direction is free at a layer, or as every method does.

        Warns:
            UserWarning: if every direction is free, so that nothing is protected.
        """
        super().check(model, tokenizer, facts, moments)
        for layer in self.edited():
            P = self.projector(moments[layer])
            if P.rank == len(P.basis):
                warnings.warn(
                    f"AlphaEdit protects nothing at layer {layer}: all {P.rank} "
                    f"eigenvalues of C are below the threshold {self.threshold:g} "
                    f"(scale={self.scale!r}). Choose a smaller one, or scale='mean'.",
                    stacklevel=3,
                )

    def update(
        self,
        W: Float[Tensor, "d_out d_in"],
        K: Float[Tensor, "d_in n"],
        V: Float[Tensor, "d_out n"],
        moment: SecondMoment,
    ) -> LowRank:
        """`corners.alphaedit_update` with this method's P and l2."""
        P = self.projector(moment)
        return alphaedit_update(W, K, V, P, self.l2, past=moment.past)

    def report(self, moments: Moments) -> dict[str, Any]:
        """How many directions of each layer were free."""
        ranks = {str(x): self.projector(moments[x]).rank for x in self.edited()}
        return {"free": ranks}


@dataclass(frozen=True, kw_only=True)
class ENCORE(BatchMethod):
    r"""MEMIT that spares earlier edits, stays small, and stops searching early.

    .. math:: \Delta = R K^\top
        (\lambda_p C + K_p K_p^\top + K K^\top + \lambda_n I)^{-1}

    Without past keys and with `norm` 0 the closed form is MEMIT's. Earlier batches are
    spared if their keys are handed on by `remember`. A value counts as found as soon as
    every token of the target is the first choice in every context, and a few steps
    more are taken (MPES): longer searches make edited facts more probable than others.

    Attributes:
        layers: which to write, counted from 0.
        lam: λ_p, how many old tokens weigh as much as one new fact; > 0.
        norm: λ_n, the weight of the size of Δ; ≥ 0, in squared units of a key.
        distribution: who writes how much, see `spread.shares`.
        covariance: 'moments'; for C = I use `norm` alone, with a small `lam`.
        search: how z is found; at the last layer's block output.

    Source: Gupta et al. 2025 (ENCORE). For the early stop of the released code see
        `ValueSearch`.
    Book: sec-encore
    """

    lam: float = 15_000.0
    norm: float = 10.0
    search: ValueSearch = field(
        default_factory=lambda: ValueSearch(stop="argmax", extra_steps=2)
    )
    covariances: ClassVar[tuple[str, ...]] = ("moments",)
    remembers: ClassVar[bool] = True
    bibtex: ClassVar[str] = """
        @article{gupta2025encore,
          title = {Lifelong Sequential Knowledge Editing without Model Degradation},
          author = {Akshat Gupta and Phudish Prateepamornkul and Maochuan Lu and
                    Ahmed Alaa and Thomas Hartvigsen and Gopala Anumanchipalli},
          journal = {arXiv preprint arXiv:2502.01636},
          year = {2025}
        }
        """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lam > 0 and self.norm >= 0):
            raise ValueError(
                f"ENCORE needs lam > 0 and norm >= 0; got lam={self.lam}, "
                f"norm={self.norm}."
            )

    def update(
        self,
        W: Float[Tensor, "d_out d_in"],
        K: Float[Tensor, "d_in n"],
        V: Float[Tensor, "d_out n"],
        moment: SecondMoment,
    ) -> LowRank:
        """`corners.encore_update` with this method's lam and norm."""
        C = moment.prepared.factor(self.norm / self.lam)  # (C + λ_n/λ_p I), once
        return encore_update(W, K, V, C, self.lam, norm=self.norm, past=moment.past)
