"""MEMIT-Merge: facts about one subject share one value, because they share one key."""

# ruff: noqa: N803 (the papers' symbols)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.batch import MEMIT, BatchMethod
from edutools.facts import Fact
from edutools.keyvalue import beginning
from edutools.method import Moments
from edutools.secondmoment import SecondMoment
from edutools.solve import LowRank, memit_update

__all__ = ["MEMITMerge"]


@dataclass(frozen=True, kw_only=True)
class MEMITMerge(BatchMethod):
    r"""MEMIT for batches with several facts about one subject.

    Facts whose prompts are the same up to the subject's end have the same key, and
    MEMIT can only store the mean of their values. Here they share one value from the
    start: z minimises the mean of their losses, so that it serves all their prompts.
    Each group is written once. Where all facts begin differently it is MEMIT.

    Attributes:
        layers: which to write, counted from 0.
        lam: how many old tokens weigh as much as one group of facts; > 0.
        distribution: who writes how much, see `spread.shares`.
        covariance: 'moments' uses the measured C, 'identity' C = I.
        search: how z is found; at the last layer's block output. A group is finished
            when all its facts are.

    Source: Dong et al. 2025 (MEMIT-Merge).
    Book: sec-memit-merge
    """

    lam: float = 15_000.0
    inverts: ClassVar[bool] = True
    bibtex: ClassVar[str] = """
        @article{dong2025merge,
          title = {{MEMIT-Merge}: Addressing {MEMIT}'s Key-Value Conflicts in
                   Same-Subject Batch Editing for {LLMs}},
          author = {Zilu Dong and Xiangqing Shen and Rui Xia},
          journal = {arXiv preprint arXiv:2502.07322},
          year = {2025}
        }
        """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0:
            raise ValueError(f"MEMITMerge.lam is {self.lam}; it must be positive.")

    @classmethod
    def preset(cls, model: str) -> "MEMITMerge":
        """The settings of MEMIT for the model: merging adds none.

        Raises:
            ValueError: if MEMIT has none; lists the names that have some.
        """
        found = cls.from_dict({**MEMIT.preset(model).to_dict(), "method": cls.__name__})
        assert isinstance(found, cls)
        return found

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> None:
        """Refuse two targets for one prompt, which no value can serve.

        Raises:
            ValueError: if there are such facts, or as every method does.
        """
        super().check(model, tokenizer, facts, moments)
        first: dict[str, int] = {}
        for i, fact in enumerate(facts):
            known = facts[first.setdefault(fact.text, i)]
            if known.target != fact.target:
                raise ValueError(
                    f"Facts {first[fact.text]} and {i} contradict each other: "
                    f"{fact.text!r} cannot go on with both {known.target!r} and "
                    f"{fact.target!r}. Drop one."
                )

    def groups(self, facts: Sequence[Fact]) -> list[int]:
        """One number for all facts whose prompts begin alike."""
        starts = [beginning(fact) for fact in facts]
        return [starts.index(start) for start in starts]

    def update(
        self,
        W: Float[Tensor, "d_out d_in"],
        K: Float[Tensor, "d_in n"],
        V: Float[Tensor, "d_out n"],
        moment: SecondMoment,
    ) -> LowRank:
        """`solve.memit_update` with this method's lam."""
        return memit_update(W, K, V, moment.factor, self.lam)
