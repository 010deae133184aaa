"""MEMIT and EMMET: many facts, one or several layers, one family of closed forms."""

# ruff: noqa: N803, N806 (the papers' symbols)

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.change import Edit
from edutools.checks import typed
from edutools.facts import Fact
from edutools.keyvalue import ValueSearch, keys
from edutools.method import COVARIANCES, Method, Moments, choice
from edutools.search import Find, target_states
from edutools.secondmoment import SecondMoment
from edutools.solve import CollidingKeys, LowRank, emmet_update, memit_update
from edutools.spread import DISTRIBUTIONS, shares, spread

__all__ = ["EMMET", "MEMIT", "BatchMethod"]


@dataclass(frozen=True, kw_only=True)
class BatchMethod(Method, ABC):
    """What MEMIT, EMMET and their kin share: a search, spread over layers.

    A kind of your own needs an `update`, and may say which facts share a value.

    Book: sec-memit-closed-form
    """

    layers: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    distribution: str = "even"
    covariance: str = "moments"
    search: ValueSearch = field(default_factory=ValueSearch)
    covariances: ClassVar[tuple[str, ...]] = COVARIANCES
    searches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        typed(self)
        kind = type(self).__name__
        choice(f"{kind}.covariance", self.covariance, self.covariances)
        choice(f"{kind}.distribution", self.distribution, DISTRIBUTIONS)
        if self.search.site != "block":
            raise ValueError(
                f"{kind}.search.site is {self.search.site!r}, but what is spread over "
                "layers is a residual of block outputs. Use ValueSearch(site='block')."
            )
        shares(self.layers, self.distribution)

    def resolved(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> "BatchMethod":
        """The same with the contexts written down."""
        contexts = self.search.contexts.resolved(model, tokenizer)
        return replace(self, search=replace(self.search, contexts=contexts))

    @abstractmethod
    def update(
        self,
        W: Float[Tensor, "d_out d_in"],
        K: Float[Tensor, "d_in n"],
        V: Float[Tensor, "d_out n"],
        moment: SecondMoment,
    ) -> LowRank:
        """The closed form at a layer with this second moment."""

    def groups(self, facts: Sequence[Fact]) -> list[int]:
        """A number per fact; facts with the same one share one value and one key."""
        return list(range(len(facts)))

    def report(self, moments: Moments) -> dict[str, Any]:
        """What the edit's record tells beside settings and search; JSON values."""
        return {}

    def edited(self) -> tuple[int, ...]:
        """The layers that are written."""
        return tuple(s.layer for s in shares(self.layers, self.distribution))

    def compute(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
        *,
        find: Find = target_states,
    ) -> Edit:
        """The changes of all layers that write the facts."""
        search = self.resolved(model, tokenizer).search
        plan = shares(self.layers, self.distribution)
        groups = self.groups(facts)
        found = {
            at: find(model, tokenizer, facts, at, search=search, groups=groups)
            for at in sorted({share.target for share in plan})
        }
        first = [groups.index(group) for group in dict.fromkeys(groups)]

        def update(layer: int, W: Tensor, K: Tensor, V: Tensor) -> LowRank:
            return self.update(W, K, V, moments[layer])

        change = spread(
            model,
            tokenizer,
            [facts[i] for i in first],
            plan=plan,
            targets={at: states.values[:, first] for at, states in found.items()},
            update=update,
            contexts=search.contexts,
        )
        told = {"search": found[plan[-1].target].summary()}
        return Edit(change.deltas, told | self.report(moments))


@dataclass(frozen=True, kw_only=True)
class MEMIT(BatchMethod):
    r"""Mass editing: many facts, several layers, in the sense of least squares.

    .. math:: \Delta = R K^\top (\lambda C + K K^\top)^{-1}

    Attributes:
        layers: which to write, counted from 0.
        lam: how many old tokens weigh as much as one new fact; > 0.
        distribution: who writes how much, see `spread.shares`.
        covariance: 'moments' uses the measured C, 'identity' C = I.
        search: how z is found; at the last layer's block output.

    Source: Meng et al. 2023 (MEMIT), eqs. 14 to 20 and algorithm 1.
    Book: sec-memit-closed-form
    """

    lam: float = 15_000.0
    inverts: ClassVar[bool] = True
    bibtex: ClassVar[str] = """
        @inproceedings{meng2023memit,
          title = {Mass-Editing Memory in a Transformer},
          author = {Kevin Meng and Arnab Sen Sharma and Alex J. Andonian and
                    Yonatan Belinkov and David Bau},
          booktitle = {International Conference on Learning Representations},
          year = {2023},
          eprint = {2210.07229},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0:
            raise ValueError(
                f"MEMIT.lam is {self.lam}; it must be positive. For an exact fit use "
                "EMMET."
            )

    def update(
        self,
        W: Float[Tensor, "d_out d_in"],
        K: Float[Tensor, "d_in n"],
        V: Float[Tensor, "d_out n"],
        moment: SecondMoment,
    ) -> LowRank:
        """`solve.memit_update` with this method's lam."""
        return memit_update(W, K, V, moment.factor, self.lam)


@dataclass(frozen=True, kw_only=True)
class EMMET(BatchMethod):
    r"""Batches of facts written exactly, with the least disturbance of old keys.

    .. math:: \Delta = R D^{-1} K^\top C^{-1}, \qquad D = K^\top C^{-1} K

    With a ridge, D + ridge·I takes the place of D and the fit is no longer exact: it is
    MEMIT with λ = ridge·weight, see `effective_lam`.

    Attributes:
        layers: which to write, counted from 0.
        ridge: added to the diagonal of D; 0 writes exactly.
        weight: C is multiplied by it before D is formed, as released settings do. It
            only matters together with a ridge.
        distribution: who writes how much, see `spread.shares`.
        covariance: 'moments' uses the measured C, 'identity' C = I.
        search: how z is found; at the last layer's block output.

    Source: Gupta et al. 2024 (EMMET). The unified code skips its ridge for a single
        fact, other code never does; here it always counts.
    Book: sec-emmet-closed-form
    """

    layers: tuple[int, ...] = (5,)
    ridge: float = 0.0
    weight: float = 1.0
    inverts: ClassVar[bool] = True
    bibtex: ClassVar[str] = """
        @inproceedings{gupta2024emmet,
          title = {A Unified Framework for Model Editing},
          author = {Akshat Gupta and Dev Sajnani and Gopala Anumanchipalli},
          booktitle = {Findings of the Association for Computational Linguistics:
                       EMNLP 2024},
          pages = {15403--15418},
          year = {2024},
          eprint = {2403.14236},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge >= 0 or not self.weight > 0:
            raise ValueError(
                f"EMMET needs ridge >= 0 and weight > 0; got ridge={self.ridge}, "
                f"weight={self.weight}."
            )

    @property
    def effective_lam(self) -> float:
        """The λ of the MEMIT that this method equals; 0 for the exact fit."""
        return self.ridge * self.weight

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> None:
        """Refuse facts whose keys cannot all be given their own value.

        Raises:
            ValueError: if two keys collide, or there are more facts than dimensions.
        """
        super().check(model, tokenizer, facts, moments)
        if self.effective_lam > 0:
            return
        contexts = self.search.contexts.resolved(model, tokenizer)
        for layer in self.edited():
            K = keys(model, tokenizer, facts, layer, contexts=contexts)  # (d_in, n)
            size, n = K.shape
            if n > size:
                raise ValueError(
                    f"{n} facts cannot all be written exactly at layer {layer}, where "
                    f"keys have size {size}. Write at most {size} at once, or use "
                    "MEMIT."
                )
            try:
                self.update(K.new_zeros(1, size), K, K[:1], moments[layer])
            except CollidingKeys as error:
                first, second = error.pair
                names = facts[first].subject, facts[second].subject
                raise ValueError(
                    f"Facts {first} and {second} {names} have nearly the same key at "
                    f"layer {layer} (cosine {error.cosine:.4f}) and cannot both be "
                    "written exactly. Drop one, or use MEMIT."
                ) from None

    def update(
        self,
        W: Float[Tensor, "d_out d_in"],
        K: Float[Tensor, "d_in n"],
        V: Float[Tensor, "d_out n"],
        moment: SecondMoment,
    ) -> LowRank:
        """`solve.emmet_update` with this method's ridge."""
        return emmet_update(W, K, V, moment.factor, self.effective_lam)

    def report(self, moments: Moments) -> dict[str, Any]:
        """The λ of the MEMIT that wrote the facts; 0 if they were written exactly."""
        return {"effective_lam": self.effective_lam}
