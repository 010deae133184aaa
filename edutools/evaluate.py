"""Whether an edit worked: efficacy, paraphrase, neighborhood, and their harmonic mean.

Every number comes with its 95 % interval and the number of cases behind it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import of_kind, several
from edutools.facts import Case
from edutools.fluency import Tfidf
from edutools.generation import Generation
from edutools.metrics import bootstrap, harmonic_mean, magnitude, success, wilson
from edutools.report import RATES, Report, Row, per_case
from edutools.scoring import score
from edutools.writing import evaluate_writing

__all__ = [
    "RATES",
    "Report",
    "Row",
    "accuracy",
    "bootstrap",
    "evaluate",
    "harmonic_mean",
    "magnitude",
    "success",
    "wilson",
]

UNITS = {f"{name}_magnitude": "probability" for name in RATES}
NEEDS = {
    name + suffix: need
    for name, need in {
        "efficacy": "a truth",
        "paraphrase": "paraphrases and a truth",
        "neighborhood": "neighborhood prompts and a truth",
    }.items()
    for suffix in ("", "_magnitude", "_top1")
} | {"paraphrase_top1": "paraphrases"}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    normalize: bool = True,
    generation: Generation | None = None,
    references: Sequence[Sequence[str]] | None = None,
    tfidf: Tfidf | None = None,
    batch_size: int = 64,
) -> Report:
    """Score a model, edited or not: does it say what it should, and keep the rest?

    Answers are compared under teacher forcing. A model may score well here and still
    say something else when it writes freely; `generation` asks for that, too.

    Args:
        model: as it is; it is not changed.
        tokenizer: the model's.
        cases: facts with paraphrases and neighborhood prompts. A case without a truth,
            paraphrases or neighborhood gets nan in the metrics that need them.
        normalize: compare mean log-probabilities per token, as the released code does;
            otherwise joint probabilities of whole answers, as the papers write. They
            differ where target and truth differ in length.
        generation: let the model write freely, too: `Generation()` adds the metrics of
            `evaluate_writing`. It takes many forward passes, so not by default.
        references: for each case, texts for the `reference_score`.
        tfidf: weights of words in it.
        batch_size: prompts per forward pass; changes memory and speed only.

    Returns:
        Per-case values; `print` it for a table.

    Raises:
        TypeError: if cases are something else.
        RuntimeError: if the model's probabilities are nan.
        ValueError: if there is no case, or references are given without `generation`.

    Source: Meng et al. 2022 (ROME), section 3.4 and appendix.
    Book: sec-evaluation-report
    """
    cases = several("cases", cases, Case)
    if not cases:
        raise ValueError("Got no cases; evaluate needs at least one Case.")
    if generation is not None:
        of_kind("generation", generation, Generation, "Generation()")
    if generation is None and references is not None:
        raise ValueError(
            "references are compared with what the model writes. Pass "
            "generation=Generation() as well, or leave them out."
        )
    compared = _compared(model, tokenizer, cases, normalize, batch_size)
    if generation is None:
        return compared
    written = evaluate_writing(
        model,
        tokenizer,
        cases,
        generation=generation,
        references=references,
        tfidf=tfidf,
        batch_size=batch_size,
    )
    return compared.beside(written)


def _compared(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    normalize: bool,
    batch_size: int,
) -> Report:
    """Which answers are the more probable ones, and which the first choice."""
    asked = [item for i, case in enumerate(cases) for item in _questions(i, case)]
    both = [j for j, question in enumerate(asked) if question.other is not None]
    # One call: wanted answers of all questions, then the other answers of some.
    scores = score(
        model,
        tokenizer,
        [q.prompt for q in asked] + [asked[j].prompt for j in both],
        [q.wanted for q in asked] + [asked[j].other or "" for j in both],
        batch_size=batch_size,
    )
    logp = scores.per_token if normalize else scores.joint
    wanted, other = logp[: len(asked)], torch.full((len(asked),), math.nan)
    other[both] = logp[len(asked) :]
    how = "mean log-probability per token" if normalize else "joint probability"
    return Report(
        values=_by_case(asked, len(cases), wanted, other, scores.correct[: len(asked)]),
        convention=f"answers compared by {how}",
        units=UNITS,
        needs=NEEDS,
    )


@dataclass(frozen=True)
class _Question:
    case: int
    metric: str
    prompt: str
    wanted: str
    other: str | None


def _questions(i: int, case: Case) -> list[_Question]:
    fact = case.fact
    asked = [_Question(i, "efficacy", fact.text, fact.target, fact.truth)]
    asked += [
        _Question(i, "paraphrase", prompt, fact.target, fact.truth)
        for prompt in case.paraphrases
    ]
    if fact.truth is not None:
        asked += [
            _Question(i, "neighborhood", prompt, fact.truth, fact.target)
            for prompt in case.neighborhood
        ]
    return asked


def _by_case(
    asked: list[_Question],
    n: int,
    wanted: Float[Tensor, " prompts"],
    other: Float[Tensor, " prompts"],
    correct: Bool[Tensor, " prompts"],
) -> dict[str, Float[Tensor, " n"]]:
    known, nothing = ~other.isnan(), torch.tensor(math.nan)
    measured = {
        "": torch.where(known, success(wanted, other), nothing),
        "_magnitude": torch.where(known, magnitude(wanted, other), nothing),
        "_top1": correct.float(),
    }
    values = {}
    for suffix, per_prompt in measured.items():
        for name in RATES:
            mine = [j for j, question in enumerate(asked) if question.metric == name]
            owners = torch.tensor([asked[j].case for j in mine], dtype=torch.long)
            values[name + suffix] = per_case(per_prompt[mine], owners, n)
    return values


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 64,
) -> Bool[Tensor, " n"]:
    """Whether the model's first choice is right at every token of each answer.

    Args:
        model: is not changed.
        tokenizer: the model's.
        prompts: texts that the answers continue.
        answers: one per prompt; earlier answer tokens are given (teacher forcing).
        batch_size: prompts per forward pass; changes memory and speed only.

    Returns:
        One truth value per prompt; its mean is the top-1 accuracy.

    Raises:
        ValueError: if the two lists differ in length, or an answer has no token.

    Book: sec-evaluation-conventions
    """
    return score(model, tokenizer, prompts, answers, batch_size=batch_size).correct
