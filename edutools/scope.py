"""Inside and outside the scope of an edit: what Yao et al. ask.

Answers are looked at token by token under teacher forcing, as in `questions`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.facts import Case, ZsreCase
from edutools.questions import PER, Asked, by_case, check_options, zsre_pairs
from edutools.report import Report
from edutools.scoring import score

__all__ = ["Answers", "answers_of", "evaluate_scope"]

Pair = tuple[str, str]  # a prompt and the answer to it
SCOPE = ("reliability", "generalization", "locality", "portability")
NEEDS = {
    "generalization": "another wording",
    "locality": "an unrelated prompt with an answer",
    "portability": "a consequence to ask for",
}


@dataclass(frozen=True)
class Answers:
    """What a model answers to prompts that an edit must not touch.

    Attributes:
        asked: the prompts and the answers along which it was asked.
        first: ids of its first choices at each token of these answers.

    Book: sec-evaluation-scope
    """

    asked: tuple[Pair, ...]
    first: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        return f"Answers(n={len(self.asked)})"


def answers_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case | ZsreCase],
    *,
    batch_size: int = 64,
) -> Answers:
    """Ask a model what `locality` compares; the unedited one, before the edit.

    Raises:
        ValueError: if there is no case.

    Book: sec-evaluation-scope
    """
    check_options(cases, {})
    pairs = [(q.prompt, q.answer) for q in _asked(cases) if q.metric == "locality"]
    prompts, answers = [list(side) for side in zip(*pairs, strict=True)] or ([], [])
    scores = score(model, tokenizer, prompts, answers, batch_size=batch_size)
    return Answers(tuple(pairs), scores.first)


def evaluate_scope(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case | ZsreCase],
    *,
    before: Answers | None = None,
    portability: Sequence[Sequence[Pair]] | None = None,
    per: str = "answer",
    batch_size: int = 64,
) -> Report:
    r"""Score an edited model inside and outside the scope of its edits.

    .. math:: \text{reliability} = \mathbb E\,\mathbb 1[\arg\max_y f_{\theta_e}(y|x_e)
              = y_e], \qquad
              \text{locality} = \mathbb E\,\mathbb 1[f_{\theta_e}(y|x) = f_\theta(y|x)]

    Generalization is reliability in other wordings, portability that of consequences.
    Locality asks for the same answer as before, right or wrong: the same first choices
    along the known answer to an unrelated prompt.

    Args:
        model: the edited one; it is not changed.
        tokenizer: the model's.
        cases: facts with paraphrases and neighborhood, or questions.
        before: `answers_of` the unedited model; without it locality is nan.
        portability: for each case, prompts and answers that follow from the new fact.
        per: 'answer', as in the paper, counts answers all of whose tokens are right:
            those that the model gives by itself if it always takes the likeliest token;
            'token' counts right tokens, as released code does, and is never lower.
        batch_size: prompts per forward pass; changes memory and speed only.

    Returns:
        `reliability`, `generalization`, `locality` and, if asked for, `portability` per
        case; no score.

    Raises:
        ValueError: if there is no case, `per` is unknown, `before` is about other
            cases, or `portability` is not one list per case.

    Source: Yao et al. 2023; the released code (EasyEdit) counts tokens.
    Book: sec-evaluation-scope
    """
    check_options(cases, {"per": (per, PER)})
    asked = [*_asked(cases), *_consequences(cases, portability)]
    prompts, answers = [q.prompt for q in asked], [q.answer for q in asked]
    scores = score(model, tokenizer, prompts, answers, batch_size=batch_size)
    hits = list(scores.hits)
    near = [j for j, question in enumerate(asked) if question.metric == "locality"]
    if before is not None:
        _check_before(before, [(prompts[j], answers[j]) for j in near])
        for j, old in zip(near, before.first, strict=True):
            pairs = zip(scores.first[j], old, strict=True)
            hits[j] = tuple(now == then for now, then in pairs)
    names = SCOPE if portability is not None else SCOPE[:3]
    values = by_case(asked, hits, len(cases), names, per)
    if before is None:
        values["locality"] = torch.full((len(cases),), math.nan)
    needs = {"locality": "the answers of the unedited model (before=answers_of(...))"}
    return Report(
        values=values,
        convention=f"first choices under teacher forcing, per {per}",
        needs=NEEDS if before else {**NEEDS, **needs},
        parts=(),
    )


def _asked(cases: Sequence[Case | ZsreCase]) -> list[Asked]:
    return [
        Asked(i, metric, prompt, answer)
        for i, case in enumerate(cases)
        for metric, pairs in _scope(case).items()
        for prompt, answer in pairs
    ]


def _scope(case: Case | ZsreCase) -> dict[str, list[Pair]]:
    if isinstance(case, ZsreCase):
        return dict(zip(SCOPE, [[pair] for pair in zsre_pairs(case)], strict=False))
    fact = case.fact
    near = case.neighborhood if fact.truth is not None else ()
    return {
        "reliability": [(fact.text, fact.target)],
        "generalization": [(prompt, fact.target) for prompt in case.paraphrases],
        "locality": [(prompt, fact.truth or "") for prompt in near],
    }


def _consequences(
    cases: Sequence[Case | ZsreCase], portability: Sequence[Sequence[Pair]] | None
) -> list[Asked]:
    if portability is None:
        return []
    if len(portability) != len(cases):
        raise ValueError(
            f"portability must hold one list of (prompt, answer) pairs per case; got "
            f"{len(portability)} for {len(cases)} cases."
        )
    return [
        Asked(i, "portability", prompt, answer)
        for i, pairs in enumerate(portability)
        for prompt, answer in pairs
    ]


def _check_before(before: Answers, asked: list[Pair]) -> None:
    if before.asked != tuple(asked):
        raise ValueError(
            f"before holds answers to {len(before.asked)} prompts, but not the "
            f"{len(asked)} of these cases in this order. Make it by "
            "answers_of(model, tokenizer, cases) with the same cases."
        )
