"""Texts in front of a prompt, over which keys and values are averaged."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import typed
from edutools.prompts import context_prefixes

__all__ = ["AVERAGES", "BARE", "Contexts"]

AVERAGES = ("mean", "grouped")


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Texts put in front of a prompt, so that a key does not fit one text only.

    Attributes:
        given: templates with one '{}' for the prompt, the bare '{}' first. None: let
            the model write them.
        prefixes: what the model writes beside the bare prompt if `given` is None, as
            pairs (how many, tokens of each).
        seed: of the sampling.
        average: how keys are averaged over contexts. 'mean': all alike (papers).
            'grouped': the bare prompt counts as much as all prefixes together.

    Source: 'mean' is Meng et al. 2022 (ROME), eq. 3 and Meng et al. 2023 (MEMIT),
        eq. 19; 'grouped' is what the released MEMIT code computes.
    Book: sec-rome-key

    >>> Contexts(given=("{}", "Yes. {}")).given
    ('{}', 'Yes. {}')
    """

    given: tuple[str, ...] | None = None
    prefixes: tuple[tuple[int, int], ...] = ((5, 10),)
    seed: int = 0
    average: str = "mean"

    def __post_init__(self) -> None:
        typed(self)
        if self.average not in AVERAGES:
            raise ValueError(
                f"Contexts.average is {self.average!r}; choose one of "
                f"{', '.join(map(repr, AVERAGES))}."
            )
        if self.given is None:
            return
        if not self.given or self.given[0] != "{}":
            raise ValueError(
                f"Contexts.given must start with the bare prompt '{{}}'; got "
                f"{self.given[:1]}. Put '{{}}' first."
            )
        for text in self.given:
            if text.count("{}") != 1:
                raise ValueError(
                    "Each context must hold exactly one '{}' where the prompt goes; "
                    f"got {text!r}. Write e.g. 'It rains. {{}}'."
                )

    def texts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[str, ...]:
        """The given templates, or those that the model writes with this seed."""
        if self.given is not None:
            return self.given
        written = [
            context_prefixes(
                model, tokenizer, n=n, length=length, seed=self.seed + group
            )
            for group, (n, length) in enumerate(self.prefixes)
        ]
        return ("{}", *[text for group in written for text in group])

    def resolved(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> "Contexts":
        """The same with the texts written down, to be used on an edited model too."""
        return replace(self, given=self.texts(model, tokenizer))

    def weights(self, contexts: int) -> Float[Tensor, " contexts"]:
        """How much each context counts in an averaged key; sums to one."""
        weights = torch.full((contexts,), 1 / contexts, dtype=torch.float64)
        if self.average == "grouped" and contexts > 1:
            weights[0], weights[1:] = 1 / 2, 1 / (2 * (contexts - 1))
        return weights


BARE = Contexts(given=("{}",))
