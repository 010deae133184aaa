"""Facts and answers laid out as padded token ids, ready for one forward pass.

Axes: n facts or answers · rows contexts and one essence prompt · tokens · answer tokens
of the longest target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from edutools.checks import several
from edutools.facts import Fact
from edutools.loaded import tokenizes
from edutools.prompts import Prompt, fill, pad, target_ids, token_ids

__all__ = [
    "AnswerRows",
    "Located",
    "SearchRows",
    "answer_rows",
    "following",
    "locate",
]


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """Prompts followed by all tokens of their answers but the last, right-padded.

    `positions[i, j]` is where the model predicts token j of answer i, which is
    `labels[i, j]`; entries beyond the answer's length are marked by `valid`.

    Book: sec-evaluation-conventions
    """

    ids: Int[Tensor, "n tokens"]
    mask: Int[Tensor, "n tokens"]
    positions: Int[Tensor, "n answer"]
    labels: Int[Tensor, "n answer"]
    valid: Bool[Tensor, "n answer"]

    def pick(self, keep: Int[Tensor, " kept"]) -> "AnswerRows":
        """The same layout for some of the answers, as narrow as they allow."""
        width = int(self.mask[keep].sum(1).max())
        longest = int(self.valid[keep].sum(1).max())
        return AnswerRows(
            ids=self.ids[keep, :width],
            mask=self.mask[keep, :width],
            positions=self.positions[keep, :longest],
            labels=self.labels[keep, :longest],
            valid=self.valid[keep, :longest],
        )


def answer_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> AnswerRows:
    """Lay out prompts and answers so that one forward pass scores every answer token.

    Raises:
        ValueError: if the two lists differ in length, or a prompt or an answer has no
            token.

    Book: sec-evaluation-conventions
    """
    tokenizes(tokenizer)
    prompts = several("prompts", prompts, str)
    answers = several("answers", answers, str)
    if len(prompts) != len(answers):
        raise ValueError(
            f"Got {len(prompts)} prompts and {len(answers)} answers; each prompt "
            "needs exactly one answer."
        )
    known = {answer: target_ids(tokenizer, answer) for answer in set(answers)}
    starts = token_ids(tokenizer, prompts)
    for prompt, start in zip(prompts, starts, strict=True):
        if not start:
            raise ValueError(
                f"The prompt {prompt!r} has no tokens, so nothing follows it."
            )
    return following(tokenizer, starts, [known[answer] for answer in answers])


def following(
    tokenizer: PreTrainedTokenizerBase,
    starts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
) -> AnswerRows:
    """Lay out token rows and the tokens that follow them, at least one of each.

    Book: sec-evaluation-conventions
    """
    both = list(zip(starts, labels, strict=True))
    batch = pad(tokenizer, [[*start, *label[:-1]] for start, label in both])
    return AnswerRows(
        ids=batch.ids,
        mask=batch.mask,
        positions=_stack([range(len(a) - 1, len(a) + len(b) - 1) for a, b in both]),
        labels=_stack(labels),
        valid=_stack([[1] * len(label) for label in labels]).bool(),
    )


@dataclass(frozen=True, eq=False)
class Located:
    """Right-padded texts with the place of each subject's last token.

    Book: sec-facts
    """

    ids: Int[Tensor, "n tokens"]
    mask: Int[Tensor, "n tokens"]
    last: Int[Tensor, " n"]


def locate(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Located:
    """Tokenize prompts and find where each subject ends.

    Raises:
        SubjectNotFound: if a subject is lost in tokenization.

    Book: sec-facts
    """
    batch = pad(tokenizer, token_ids(tokenizer, [prompt.text for prompt in prompts]))
    last = [prompt.span(tokenizer)[1] - 1 for prompt in prompts]
    return Located(batch.ids, batch.mask, torch.tensor(last))


@dataclass(frozen=True, eq=False)
class SearchRows:
    """Token ids of all rows of a batch of facts; the last row is the essence prompt.

    Args:
        ids: of every context's prompt and of "{subject} is a".
        mask: 1 for a token, 0 for padding.
        subject: place of the subject's last token in each row.
        positions: where the target's tokens are predicted.
        labels: the target's tokens.
        valid: which of them are not padding.
        essence: where the essence prompt's next word is compared.

    Book: sec-rome-value
    """

    ids: Int[Tensor, "n rows tokens"]
    mask: Int[Tensor, "n rows tokens"]
    subject: Int[Tensor, "n rows"]
    positions: Int[Tensor, "n contexts answer"]
    labels: Int[Tensor, "n answer"]
    valid: Bool[Tensor, "n answer"]
    essence: Int[Tensor, " n"]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        contexts: Sequence[str],
        *,
        essence: str,
    ) -> "SearchRows":
        """Lay out every fact in every context, and its essence prompt.

        Raises:
            SubjectNotFound: if a subject is lost in tokenization.
        """
        n = len(facts)
        asked = [fill(fact, text) for fact in facts for text in contexts]
        targets = [fact.target for fact in facts for _ in contexts]
        rows = answer_rows(tokenizer, [prompt.text for prompt in asked], targets)
        same = locate(tokenizer, [Prompt("", f.subject, " is a") for f in facts])
        subject = locate(tokenizer, asked).last.unflatten(0, (n, -1))
        at_end = same.mask.sum(1) - 1
        return cls(
            ids=_append(rows.ids.unflatten(0, (n, -1)), same.ids),
            mask=_append(rows.mask.unflatten(0, (n, -1)), same.mask),
            subject=torch.cat([subject, same.last[:, None]], 1),
            positions=rows.positions.unflatten(0, (n, -1)),
            labels=rows.labels.unflatten(0, (n, -1))[:, 0],
            valid=rows.valid.unflatten(0, (n, -1))[:, 0],
            essence=same.last if essence == "subject" else at_end,
        )

    def pick(self, keep: Int[Tensor, " kept"]) -> "SearchRows":
        """The same layout for some of the facts."""
        return type(self)(*[getattr(self, part.name)[keep] for part in fields(self)])


def _append(
    rows: Int[Tensor, "n contexts tokens"], last: Int[Tensor, "n other"]
) -> Int[Tensor, "n rows longest"]:
    """Add one row per fact, after filling both up to the same width."""
    width = max(rows.shape[-1], last.shape[-1])
    grown = [functional.pad(x, (0, width - x.shape[-1])) for x in (rows, last)]
    return torch.cat([grown[0], grown[1][:, None]], 1)


def _stack(rows: Sequence[Sequence[int]]) -> Int[Tensor, "n longest"]:
    """Stack numbers, filled up with zeros on the right."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
