"""From text to tokens: where a subject sits, what a target is, contexts.

Positions come from the tokenizer's character offsets, never from counting the tokens
of pieces, which goes wrong with automatic BOS and with leading-space markers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import several
from edutools.facts import SLOT, Fact, SubjectNotFound
from edutools.loaded import input_device, readable, tokenizes


@dataclass(frozen=True, eq=False)
class Batch:
    """Token rows of different lengths, padded on the right.

    Args:
        ids: token ids; the padding's are arbitrary.
        mask: 1 for a token, 0 for padding.

    Book: sec-facts
    """

    ids: Int[Tensor, "batch tokens"]
    mask: Int[Tensor, "batch tokens"]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of tokens in each row; the last one is at `lengths - 1`."""
        return self.mask.sum(dim=1)

    @property
    def inputs(self) -> dict[str, Int[Tensor, "batch tokens"]]:
        """Arguments of the model's forward: `model(**batch.inputs)`."""
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.ids.to(device), self.mask.to(device))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prompt:
    """A text that knows where its subject is.

    Args:
        before: the text in front of the subject.
        subject: the subject.
        after: the text behind it.

    Book: sec-facts
    """

    before: str
    subject: str
    after: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.before + self.subject + self.after

    def span(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
        """Range [first, end) of the subject's tokens; its last token is end - 1."""
        return subject_span(tokenizer, self.before, self.subject, self.text)


def fill(fact: Fact, context: str = SLOT) -> Prompt:
    """Put the fact's prompt into a context, and its subject into the prompt.

    Args:
        fact: what is to be said.
        context: a text with one '{}' where the prompt goes; others are kept.

    Raises:
        ValueError: if the context has no '{}'.

    Book: sec-facts

    >>> fill(Fact("Ada {L}", "{} lives in", "Rome"), "It rains. {}").text
    'It rains. Ada {L} lives in'
    """
    if SLOT not in context:
        raise ValueError(
            f"A context must hold '{{}}' where the prompt goes; got {context!r}. "
            "Write e.g. 'It is known that {}'."
        )
    head, _, tail = context.partition(SLOT)
    before, _, after = fact.prompt.partition(SLOT)
    return Prompt(head + before, fact.subject, after + tail)


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> list[list[int]]:
    """Return the token ids of each text as the model sees them, BOS included.

    Book: sec-facts
    """
    tokenizes(tokenizer)
    texts = several("texts", texts, str)
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, verbose=False).input_ids
    # A text to be continued must not have ended: drop a closing token, if any.
    probe = tokenizer("a", verbose=False).input_ids
    closed = len(probe) > 1 and probe[-1] == tokenizer.eos_token_id
    return [row[:-1] for row in rows] if closed else rows


def pad(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> Batch:
    """Stack token rows, padded on the right.

    Raises:
        ValueError: if a row has no tokens.

    Book: sec-facts
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)  # masked in any case
    filler = next(int(token) for token in known if isinstance(token, int))
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"Text {index} is empty: it has no tokens. Leave it out.")
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return Batch(ids, mask)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Batch:
    """Tokenize texts for the model, padded on the right, BOS where it is usual.

    Raises:
        ValueError: if a text has no tokens.

    Book: sec-facts
    """
    return pad(tokenizer, token_ids(tokenizer, texts))


def target_ids(
    tokenizer: PreTrainedTokenizerBase, target: str, prompt: str = "a"
) -> list[int]:
    """Return the ids of " " + target as they follow a text.

    They are the ids by which prompt + " " + target is longer than prompt, so no BOS
    and no second leading-space marker slip in; or, if tokenization runs across the
    border, the ids of " " + target alone.

    Args:
        tokenizer: the model's tokenizer; it is not changed.
        target: the continuation; one space is put in front.
        prompt: the text to be continued. Any word will do.

    Raises:
        ValueError: if the target is empty or has no tokens.

    Book: sec-facts
    """
    if not target.strip():
        raise ValueError(f"A target must not be empty; got {target!r}.")
    continuation = " " + target.strip()
    prompt = prompt.rstrip() or "a"
    texts = [prompt, prompt + continuation, continuation]
    coded = tokenizer(texts, add_special_tokens=False, verbose=False)
    start, whole, alone = coded.input_ids
    ids = whole[len(start) :] if whole[: len(start)] == start else alone
    if not ids:
        raise ValueError(
            f"The target {target!r} has no tokens in this tokenizer's vocabulary."
        )
    return ids


def subject_span(
    tokenizer: PreTrainedTokenizerBase, text_before: str, subject: str, full_text: str
) -> tuple[int, int]:
    """Return the range [first, end) of the tokens that overlap the subject.

    Counted in the tokens of `encode(tokenizer, [full_text])`. The subject's last
    token, where editors read the key, is end - 1. Spaces around it do not belong to it.

    Args:
        tokenizer: the model's tokenizer, a fast one; it is not changed.
        text_before: everything in front of the subject.
        subject: the subject, exactly as it stands in the text.
        full_text: the whole text.

    Raises:
        TypeError: if the tokenizer cannot tell character offsets.
        SubjectNotFound: if the subject does not stand there, or no token covers it.

    Book: sec-facts
    """
    if not tokenizer.is_fast:
        raise TypeError(
            f"{type(tokenizer).__name__} has no character offsets. Use a fast one."
        )
    bare = subject.strip()
    begin = len(text_before) + len(subject) - len(subject.lstrip())
    end = begin + len(bare)
    if not bare or full_text[begin:end] != bare:
        raise SubjectNotFound(
            f"The subject {subject!r} is not behind {text_before!r} in {full_text!r}."
        )
    coded = tokenizer(full_text, return_offsets_mapping=True, verbose=False)
    offsets = enumerate(coded["offset_mapping"])
    inside = [i for i, (first, last) in offsets if first < end and last > begin]
    if not inside:
        tokens = tokenizer.convert_ids_to_tokens(coded["input_ids"])
        raise SubjectNotFound(
            f"The subject {bare!r} is lost in tokenization: none of the tokens "
            f"{tokens} of {full_text!r} covers it. Write it in characters that they "
            "cover."
        )
    return inside[0], inside[-1] + 1


def context_prefixes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int,
    length: int,
    seed: int,
    starts: Sequence[str] = ("The", "Therefore", "Because", "I", "You"),
) -> tuple[str, ...]:
    """Let the model write n short texts to put in front of prompts.

    Keys and values are averaged over them, so that an edit does not depend on the
    subject standing at the beginning.

    Args:
        model: who writes.
        tokenizer: the model's tokenizer.
        n: how many.
        length: how many tokens the model adds to each start.
        seed: seed of the sampling (top 5 at each step).
        starts: first words, taken in turn.

    Returns:
        Contexts such as 'Therefore the city. {}', for `fill`.

    Raises:
        ValueError: if n or length is negative, or there are no starts.

    Source: Meng et al. 2023 (MEMIT), released code: same starts, same form.
    Book: sec-keys
    """
    if n < 0 or length < 0 or not starts:
        raise ValueError(
            f"n and length must not be negative, and starts not empty; got n={n}, "
            f"length={length}, starts={starts!r}."
        )
    rows = token_ids(tokenizer, [starts[index % len(starts)] for index in range(n)])
    fresh: list[list[int]] = [[] for _ in rows]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(length if n else 0):
        grown = [[*row, *more] for row, more in zip(rows, fresh, strict=True)]
        logits = _next_logits(model, tokenizer, pad(tokenizer, grown))
        best = logits.topk(min(5, logits.shape[1]))
        choice = torch.multinomial(best.values.softmax(dim=1), 1, generator=generator)
        for more, token in zip(fresh, best.indices.gather(1, choice), strict=True):
            more.append(int(token))
    texts = tokenizer.batch_decode(
        [[*row, *more] for row, more in zip(rows, fresh, strict=True)],
        skip_special_tokens=True,
    )
    plain = (" ".join(text.translate(_PLAIN).split()) for text in texts)
    return tuple(f"{text}. {SLOT}" for text in plain)[:n]


_PLAIN = str.maketrans("{}\ufffd", "   ")


@torch.no_grad()
def _next_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> Float[Tensor, "batch vocab"]:
    """Logits of the next token on the CPU; special and unknown ids are excluded."""
    readable(model, batch.ids)
    logits = model(**batch.to(input_device(model)).inputs, use_cache=False).logits
    last = logits[torch.arange(len(batch)), batch.lengths - 1].float().cpu()
    last = last[:, : len(tokenizer)]
    special = [token for token in tokenizer.all_special_ids if token < last.shape[1]]
    last[:, special] = -torch.inf
    return last
