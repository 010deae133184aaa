"""Answers to questions, token by token: the accuracies of zsRE.

What counts is the model's first choice at each token of a wanted answer, the tokens
before it given (teacher forcing).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import several
from edutools.facts import ZsreCase
from edutools.prompts import target_ids, token_ids
from edutools.report import Report, per_case
from edutools.rows import following
from edutools.scoring import score, score_rows

__all__ = ["PER", "Asked", "by_case", "check_options", "evaluate_zsre", "zsre_pairs"]

PER = ("token", "answer")
FORMS = ("paper", "released")
Hits = tuple[bool, ...]  # one for each token of an answer
ZSRE = ("efficacy", "paraphrase", "specificity")


@dataclass(frozen=True)
class Asked:
    """One prompt with the answer looked for, and which number of which case it is.

    Book: sec-evaluation-questions
    """

    case: int
    metric: str
    prompt: str
    answer: str


def evaluate_zsre(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[ZsreCase],
    *,
    per: str = "token",
    form: str = "paper",
    batch_size: int = 64,
) -> Report:
    """Score answers to questions: the new one, in two wordings, and an unrelated one.

    Args:
        model: as it is; it is not changed.
        tokenizer: the model's.
        cases: questions with their answers.
        per: 'token' counts the right tokens of an answer, so a wrong answer may score
            high where it ends or begins alike; 'answer' asks for all of them.
        form: 'released' decodes each token of an answer, tokenizes it again alone, and
            compares the first id only: tokens that are parts of a character are never
            right then, and answers given so far are tokenized anew.
        batch_size: prompts per forward pass; changes memory and speed only.

    Returns:
        `efficacy`, `paraphrase` and `specificity` per case; the score is their harmonic
        mean. Specificity compares with the true answer, not with what the model said.

    Raises:
        ValueError: if there is no case, or an option is unknown.

    Source: Meng et al. 2023 (MEMIT), eqs. 21 to 23. The released code keeps a mark,
        'nq question: ', in front of unrelated questions, and does not remove a BOS
        that the tokenizer sets in front of answers; it was made for models without.
    Book: sec-evaluation-questions
    """
    cases = several("cases", cases, ZsreCase)
    check_options(cases, {"per": (per, PER), "form": (form, FORMS)})
    asked = [
        Asked(i, metric, prompt, answer)
        for i, case in enumerate(cases)
        for metric, (prompt, answer) in zip(ZSRE, zsre_pairs(case), strict=True)
    ]
    pairs = [question.prompt for question in asked], [q.answer for q in asked]
    find = _hits if form == "paper" else _released_hits
    hits = find(model, tokenizer, *pairs, batch_size)
    return Report(
        values=by_case(asked, hits, len(cases), ZSRE, per),
        convention=f"first choices under teacher forcing, per {per}, {form} form",
        parts=ZSRE,
    )


def zsre_pairs(case: ZsreCase) -> tuple[tuple[str, str], ...]:
    """The three questions of a case with their answers: new, in other words, unrelated.

    Book: sec-evaluation-questions
    """
    return (
        (case.question, case.answer),
        (case.rephrase, case.answer),
        (case.unrelated_question, case.unrelated_answer),
    )


def by_case(
    asked: Sequence[Asked],
    hits: Sequence[Hits],
    n: int,
    metrics: Sequence[str],
    per: str,
) -> dict[str, Float[Tensor, " n"]]:
    """For each metric, the mean over the prompts of each case.

    Args:
        asked: prompts, in the order of the hits.
        hits: for each prompt, which tokens of the answer are right.
        n: how many cases there are.
        metrics: names of the columns.
        per: the fraction of right tokens, or whether all of them are.

    Book: sec-evaluation-questions
    """
    rate = all if per == "answer" else fmean
    right = torch.tensor([float(rate(hit)) for hit in hits])
    values = {}
    for metric in metrics:
        mine = [j for j, question in enumerate(asked) if question.metric == metric]
        owners = torch.tensor([asked[j].case for j in mine], dtype=torch.long)
        values[metric] = per_case(right[mine], owners, n)
    return values


def check_options(
    cases: Sequence[Any], options: Mapping[str, tuple[str, tuple]]
) -> None:
    """Refuse an empty list of cases, and options outside their closed sets.

    Raises:
        ValueError: says which option, and what it may be.

    Book: sec-evaluation-questions
    """
    if not cases:
        raise ValueError("Got no cases; an evaluation needs at least one.")
    for name, (value, kinds) in options.items():
        if value not in kinds:
            raise ValueError(f"{name} must be one of {kinds}; got {value!r}.")


def _hits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int,
) -> Sequence[Hits]:
    return score(model, tokenizer, prompts, answers, batch_size=batch_size).hits


def _released_hits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int,
) -> list[Hits]:
    """Decode the answer so far and its next token, tokenize both again, and compare."""
    known = {answer: target_ids(tokenizer, answer) for answer in set(answers)}
    texts, labels = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = known[answer]
        texts += [prompt + str(tokenizer.decode(ids[:j])) for j in range(len(ids))]
        labels += [str(tokenizer.decode(ids[j : j + 1])) for j in range(len(ids))]
    alone = tokenizer(labels, add_special_tokens=False, verbose=False).input_ids
    starts = token_ids(tokenizer, texts)
    # A token that decodes to nothing has no first id: never right.
    rows = following(tokenizer, starts, [ids[:1] or [0] for ids in alone])
    hits = score_rows(model, rows, batch_size=batch_size).hits
    flat = iter([hit[0] and bool(ids) for hit, ids in zip(hits, alone, strict=True)])
    return [tuple(next(flat) for _ in known[answer]) for answer in answers]
