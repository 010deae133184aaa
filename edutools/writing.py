"""What a model says when it writes freely, as numbers per case."""

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import of_kind, several
from edutools.facts import Case
from edutools.fluency import Tfidf, n_gram_entropy, reference_score, says
from edutools.generation import Generation, generate
from edutools.prompts import target_ids, token_ids
from edutools.report import Report

__all__ = ["evaluate_writing"]

SPARE = 5  # tokens beyond those of the target, if it is spelled in others
UNITS = {"generation_entropy": "bits", "reference_score": "cosine"}
NEEDS = {
    "free_paraphrase": "paraphrases",
    "generation_entropy": "generation prompts",
    "reference_score": "generation prompts and references with known words",
}

Texts = tuple[tuple[str, ...], ...]  # those of each case


def evaluate_writing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    generation: Generation | None = None,
    references: Sequence[Sequence[str]] | None = None,
    tfidf: Tfidf | None = None,
    batch_size: int = 64,
) -> Report:
    """Measure what a model, edited or not, writes by itself.

    `free_generation` and `free_paraphrase` ask whether the likeliest continuation of
    the fact's prompt (of its paraphrases) begins with the target, see `says`. The
    likeliest continuation is what a right answer at every token under teacher forcing
    amounts to, so these are nearly `efficacy_top1` and `paraphrase_top1`; they differ
    where a target can be spelled in other tokens, or goes on as a longer word.
    `generation_entropy` and `reference_score` are about the case's generation prompts.

    Args:
        model: is not changed.
        tokenizer: the model's.
        cases: facts with paraphrases and generation prompts. What a case lacks is nan
            in the metrics that need it.
        generation: how texts are written and measured; default: `Generation()`.
        references: for each case, texts about subjects of which the target is true.
            Without them there is no `reference_score`.
        tfidf: weights of words; by default those of the references.
        batch_size: prompts that are continued together; changes memory and speed only.

    Returns:
        Per-case values, and in `texts` what the model wrote.

    Raises:
        ValueError: if there is no case, the references are not one list per case, or
            a prompt and its continuation are longer than what the model can read.

    Source: Meng et al. 2022 (ROME), section 3.4 (GE, RS); released code draws from the
        five likeliest tokens, as `Generation` does.
    Book: sec-evaluation-generation
    """
    cases = several("cases", cases, Case)
    if not cases:
        raise ValueError("Got no cases; evaluate_writing needs at least one Case.")
    if references is not None and len(references) != len(cases):
        raise ValueError(
            f"references must hold one list of texts per case; got {len(references)} "
            f"for {len(cases)} cases."
        )
    settings = Generation() if generation is None else generation
    of_kind("generation", settings, Generation, "Generation()")
    for i, texts in enumerate(references or ()):
        several(f"references[{i}]", texts, str)
    said = _said(model, tokenizer, cases, batch_size)
    wrote = _written(model, tokenizer, cases, settings, batch_size)
    entropies = [
        [n_gram_entropy(text, form=settings.entropy) for text in texts]
        for texts in wrote
    ]
    values = {name: _right(texts, cases) for name, texts in said.items()}
    values["generation_entropy"] = _means(entropies)
    if references is not None:
        values["reference_score"] = _likeness(wrote, references, tfidf)
    convention = (
        f"free answers: greedy, begin with the target; {settings}; entropy in the "
        f"{settings.entropy} form"
    )
    texts = {**said, "generation_entropy": wrote}
    return Report(values, convention, UNITS, NEEDS, (), texts)


def _said(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    batch_size: int,
) -> dict[str, Texts]:
    """The likeliest continuations of prompts and paraphrases, in one go."""
    asked = {
        "free_generation": [(case.fact.text,) for case in cases],
        "free_paraphrase": [case.paraphrases for case in cases],
    }
    room = [len(target_ids(tokenizer, case.fact.target)) + SPARE for case in cases]
    pairs = [
        (prompt, more)
        for groups in asked.values()
        for group, more in zip(groups, room, strict=True)
        for prompt in group
    ]
    found = iter(
        generate(
            model,
            tokenizer,
            [prompt for prompt, _ in pairs],
            max_new_tokens=[more for _, more in pairs],
            batch_size=batch_size,
        )
    )
    return {
        name: tuple(tuple(next(found) for _ in group) for group in groups)
        for name, groups in asked.items()
    }


def _written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    settings: Generation,
    batch_size: int,
) -> Texts:
    """The texts of the generation prompts, as long as the settings say."""
    prompts = [prompt for case in cases for prompt in case.generation]
    whole, tokens = settings.text == "whole", settings.tokens
    rows = token_ids(tokenizer, prompts)
    added = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=[max(0, tokens - whole * len(row)) for row in rows],
        top_k=settings.top_k,
        seed=settings.seed,
        batch_size=batch_size,
    )
    pairs = zip(prompts, added, strict=True)
    texts = iter([prompt + text if whole else text for prompt, text in pairs])
    return tuple(tuple(next(texts) for _ in case.generation) for case in cases)


def _right(texts: Texts, cases: Sequence[Case]) -> Float[Tensor, " n"]:
    return _means(
        [
            [says(text, case.fact.target) for text in group]
            for group, case in zip(texts, cases, strict=True)
        ]
    )


def _likeness(
    texts: Texts, references: Sequence[Sequence[str]], tfidf: Tfidf | None
) -> Float[Tensor, " n"]:
    if tfidf is None:
        tfidf = Tfidf.fit([text for group in references for text in group])
    return torch.tensor(
        [
            reference_score(wrote, wanted, tfidf) if wrote else math.nan
            for wrote, wanted in zip(texts, references, strict=True)
        ]
    )


def _means(groups: Sequence[Sequence[float]]) -> Float[Tensor, " n"]:
    return torch.tensor([fmean(group) if group else math.nan for group in groups])
