"""In-context editing: tell the model the new fact, and show it how such facts are used.

Nothing is written anywhere: the edit is a text in front of every question. It takes a
model that learns from examples in its context. The pocket models do not (numbers in
`experiments/methods.md`): they say what they know, whatever stands in front.

Axes: n cases · corpus records to choose demonstrations from · d_model.
"""

import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import choice, of_kind, several, typed
from edutools.facts import SLOT, Case
from edutools.retrieval import similarity

__all__ = ["KINDS", "InContext", "demonstration", "in_context", "kinds"]

KINDS = ("copy", "update", "retain")
ORDERS = ("ascending", "descending", "random")
SELECTIONS = ("nearest", "random")


@dataclass(frozen=True, kw_only=True)
class InContext:
    r"""In-context knowledge editing: what stands in front of a question.

    Attributes:
        demonstrations: how many, each of another fact; 0 states the new fact only.
        ratio: how many copy, update and retain demonstrations come together.
        template: text of a demonstration up to its answer, with {fact} for the new
            fact and {prompt} for the question.
        separator: what follows each demonstration.
        select: 'nearest' takes the facts most like the edited one, 'random' any.
        order: 'ascending' puts the most similar one last, next to the question.
        layer: at which block texts are compared; the middle one by default.
        seed: of whatever is drawn.

    Source: Zheng et al. 2023 (IKE), section 4 and appendix A. The line breaks of the
        default template are those of EasyEdit.
    Book: sec-context-methods
    """

    demonstrations: int = 32
    ratio: tuple[int, int, int] = (1, 3, 4)
    template: str = "New Fact: {fact}\nPrompt: {prompt}"
    separator: str = "\n\n"
    select: str = "nearest"
    order: str = "ascending"
    layer: int | None = None
    seed: int = 0
    bibtex: ClassVar[str] = """
        @inproceedings{zheng2023edit,
          title = {Can We Edit Factual Knowledge by In-Context Learning?},
          author = {Ce Zheng and Lei Li and Qingxiu Dong and Yuxuan Fan and Zhiyong Wu
                    and Jingjing Xu and Baobao Chang},
          booktitle = {Proceedings of the 2023 Conference on Empirical Methods in
                       Natural Language Processing},
          pages = {4862--4876},
          year = {2023},
          eprint = {2305.12740},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        typed(self)
        if self.demonstrations < 0:
            raise ValueError(
                f"InContext.demonstrations is {self.demonstrations}; it must not be "
                "negative. 0 states the new fact only."
            )
        if len(self.ratio) != 3 or min(self.ratio) < 0 or not sum(self.ratio):
            raise ValueError(
                "InContext.ratio must be three numbers, for copy, update and retain, "
                f"not negative and not all 0; got {self.ratio}."
            )
        for field in ("{fact}", "{prompt}"):
            if self.template.count(field) != 1:
                raise ValueError(
                    f"InContext.template must hold {field} exactly once; got "
                    f"{self.template!r}."
                )
        if not self.template.endswith("{prompt}"):
            raise ValueError(
                "InContext.template must end with {prompt}, which the answer follows; "
                f"got {self.template!r}."
            )
        choices = {"select": SELECTIONS, "order": ORDERS}
        for name, allowed in choices.items():
            choice(f"InContext.{name}", getattr(self, name), allowed)

    @property
    def citation(self) -> str:
        """BibTeX of the paper that introduced the method."""
        return inspect.cleandoc(self.bibtex)

    def opening(self, case: Case) -> str:
        """What stands in front of every question about the case's new fact.

        >>> from edutools.facts import Fact
        >>> InContext().opening(Case(Fact("Ada", "{} lives in", "Rome")))
        'New Fact: Ada lives in Rome\\nPrompt: '
        """
        fact = f"{case.fact.text} {case.fact.target}"
        return self.template.removesuffix("{prompt}").replace("{fact}", fact)


def kinds(count: int, ratio: tuple[int, int, int] = (1, 3, 4)) -> list[str]:
    """The kinds of so many demonstrations, each spread as evenly as possible.

    Args:
        count: how many.
        ratio: shares of copy, update and retain.

    Source: Zheng et al. 2023 (IKE), appendix A.2: "as uniformly as possible"; the
        rule that makes it so is ours.
    Book: sec-context-methods

    >>> kinds(8)
    ['retain', 'update', 'retain', 'copy', 'update', 'retain', 'update', 'retain']
    """
    given: dict[str, int] = {kind: 0 for kind in KINDS}
    share = dict(zip(KINDS, ratio, strict=True))
    order: list[str] = []
    for done in range(1, count + 1):  # whoever is furthest behind its share comes next
        behind = {k: s * done / sum(ratio) - given[k] for k, s in share.items() if s}
        kind = max(behind, key=behind.__getitem__)
        given[kind] += 1
        order.append(kind)
    return order


def demonstration(
    method: InContext, record: Case, kind: str, *, avoid: Case | None = None
) -> str:
    """One worked example: a new fact, a question, and the answer it should have.

    'copy' asks with the fact's own prompt and 'update' with a paraphrase; the answer is
    the target. 'retain' asks a neighborhood prompt, whose answer stays the truth.

    Args:
        method: template and separator.
        record: a fact with truth, paraphrases and neighborhood.
        kind: one of `KINDS`.
        avoid: a case whose questions and subject the example must not give away.

    Raises:
        ValueError: if the kind is unknown or the record lacks what it needs.

    Source: Zheng et al. 2023 (IKE), section 4.2.1 and table 7.
    Book: sec-context-methods
    """
    asked: list[tuple[str, str | None]] = []
    if kind == "copy":
        asked = [(record.fact.text, record.fact.target)]
    elif kind == "update":
        asked = [(text, record.fact.target) for text in record.paraphrases]
    elif kind == "retain":
        asked = [(text, record.fact.truth) for text in record.neighborhood]
    else:
        raise ValueError(f"No kind {kind!r} of demonstration. Known: {KINDS}.")
    for prompt, answer in asked:
        if answer is not None and not (avoid and _gives_away(prompt, avoid)):
            return f"{method.opening(record)}{prompt} {answer}{method.separator}"
    raise ValueError(
        f"The record of {record.fact.text!r} has nothing for a {kind!r} demonstration. "
        "Records need a truth, paraphrases and neighborhood prompts."
    )


def in_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    corpus: Sequence[Case],
    method: InContext | None = None,
) -> list[Case]:
    """Rewrite cases so that every question stands behind its new fact and examples.

    `evaluate` on the rewritten cases, with the unedited model, tells how well the model
    is edited by its context. Facts from the corpus that a case asks about are passed
    over, and so are examples that give one of its answers away.

    Args:
        model: compares texts; it is not changed.
        tokenizer: the model's.
        cases: whose facts to tell.
        corpus: other facts, with truth, paraphrases and neighborhood, for the examples.
        method: what stands in front; IKE's by default.

    Returns:
        The cases with the context in front of the prompt, the paraphrases, the
        neighborhood and the generation prompts.

    Raises:
        ValueError: if there is no case, the corpus has too few facts that fit, or a
            context holds '{}', which a prompt keeps for its subject.

    Source: Zheng et al. 2023 (IKE), section 4.2.2. There a sentence encoder of its own
        compares the facts; here the edited model does, by `retrieval.similarity`.
    Book: sec-context-methods
    """
    cases, corpus = several("cases", cases, Case), several("corpus", corpus, Case)
    if not cases:
        raise ValueError("Got no cases; in_context needs at least one Case.")
    how = InContext() if method is None else method
    of_kind("method", how, InContext, "InContext()")
    fit = [_fitting(case, corpus, how.demonstrations) for case in cases]
    near = torch.zeros(len(cases), len(corpus))
    if how.demonstrations:
        told, known = map(_told, cases), map(_told, corpus)
        near = similarity(model, tokenizer, [*told], [*known], layer=how.layer)
    draw = random.Random(how.seed)
    order = kinds(how.demonstrations, how.ratio)
    rewritten = []
    for case, rows, row in zip(cases, fit, near, strict=True):
        records = [corpus[j] for j in _chosen(rows, row, how, draw)]
        examples = [
            demonstration(how, record, kind, avoid=case)
            for record, kind in zip(records, order, strict=True)
        ]
        rewritten.append(_behind("".join(examples) + how.opening(case), case))
    return rewritten


def _told(case: Case) -> str:
    parts = (case.fact.text, case.fact.truth, case.fact.target)
    return " ".join(part for part in parts if part)


def _fitting(case: Case, corpus: Sequence[Case], count: int) -> list[int]:
    """Which records may give a demonstration to the case."""
    fit = [j for j, record in enumerate(corpus) if _fits(record, case)]
    if len(fit) < count:
        raise ValueError(
            f"The corpus has {len(fit)} facts that fit as examples for "
            f"{case.fact.text!r}; {count} are wanted. Records need a truth, "
            "paraphrases and neighborhood prompts. Give more of them, or lower "
            "InContext.demonstrations."
        )
    return fit


def _chosen(
    fit: list[int],
    near: Float[Tensor, " corpus"],
    method: InContext,
    draw: random.Random,
) -> list[int]:
    """Which records give the demonstrations of a case, from left to right."""
    count = method.demonstrations
    if method.select == "random":
        fit = draw.sample(fit, count)
    best = sorted(fit, key=lambda j: -float(near[j]))[:count]
    if method.order == "random":
        draw.shuffle(best)
    return best[::-1] if method.order == "ascending" else best


def _fits(record: Case, case: Case) -> bool:
    """Whether all kinds of demonstrations can be made without helping the case."""
    fact = record.fact
    whole = fact.truth is not None and record.paraphrases and record.neighborhood
    asked = (case.fact.text, *case.paraphrases, *case.neighborhood)
    return (
        bool(whole)
        and not any(fact.subject in text for text in asked)
        and not all(_gives_away(text, case) for text in record.neighborhood)
        and not all(_gives_away(text, case) for text in record.paraphrases)
    )


def _gives_away(prompt: str, case: Case) -> bool:
    asked = (*case.paraphrases, *case.neighborhood)
    return prompt in asked or case.fact.subject in prompt


def _behind(context: str, case: Case) -> Case:
    if SLOT in context:
        raise ValueError(
            f"The context of {case.fact.text!r} holds '{{}}', which a prompt keeps for "
            "its subject. Leave out facts and templates with braces."
        )
    parts = {
        name: tuple(context + text for text in getattr(case, name))
        for name in ("paraphrases", "neighborhood", "generation")
    }
    return replace(
        case, fact=replace(case.fact, prompt=context + case.fact.prompt), **parts
    )
