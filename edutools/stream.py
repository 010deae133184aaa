"""Texts as batches of tokens: how much of them is read, and in what portions.

What is read depends on the texts alone and never on the size of the batches.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerBase

from edutools.checks import number, several, shown
from edutools.prompts import Batch, pad, token_ids

__all__ = ["Chunk", "Portion", "batches", "chunks"]

CHUNK = 512  # texts that are tokenized, and sorted by length, together


@dataclass(frozen=True, kw_only=True)
class Portion:
    """How much of some texts is read.

    Attributes:
        tokens: read so many and no more; the text in which they are reached is cut off
            there. None for all.
        documents: read so many texts and no more. None for all.
        max_length: tokens that a text is cut off at. None for no limit.
        shard: (rank, world): of every `world` texts only the one of this rank. The
            portions of all ranks make up that of (0, 1).

    Raises:
        TypeError: if one of them is no whole number.
        ValueError: if one is too small, or the rank is none of the world's.

    Book: sec-second-moment
    """

    tokens: int | None = None
    documents: int | None = None
    max_length: int | None = None
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("tokens", "documents", "max_length"):
            value = getattr(self, name)
            if value is not None:
                number(name, value, int, least=1)
        pair = self.shard if isinstance(self.shard, (tuple, list)) else ()
        if len(pair) != 2 or any(type(item) is not int for item in pair):
            raise TypeError(
                "shard must be a rank and how many there are, such as (0, 4); got "
                f"{shown(self.shard)}."
            )
        rank, world = pair
        if not 0 <= rank < world:
            raise ValueError(
                f"shard is {(rank, world)}: of {world} shards there is none of rank "
                f"{rank}. Count ranks from 0."
            )
        object.__setattr__(self, "shard", (rank, world))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Texts that were read together, as tokens.

    Attributes:
        rows: tokens of the texts that belong to the shard, without empty ones.
        texts: how many had been read when the chunk ended, those of others included.
        tokens: how many tokens of all shards, if they are limited; else 0.
        digest: what identifies all texts up to the end of the chunk.
        last: whether it is known that no other one follows.

    Book: sec-second-moment
    """

    rows: Sequence[list[int]]
    texts: int
    tokens: int
    digest: str
    last: bool


def chunks(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    portion: Portion,
    *,
    start: int = 0,
    tokens: int = 0,
) -> Iterator[Chunk]:
    """Read texts as tokens, some hundred texts at a time.

    Args:
        tokenizer: the model's tokenizer.
        texts: read once, from the first.
        portion: how much is read.
        start: begin behind so many texts, which must be where a chunk ended.
        tokens: how many tokens those had, if tokens are limited.

    Raises:
        TypeError: if one of the texts is none.

    Warns:
        UserWarning: if the texts end before the portion does.

    Book: sec-second-moment
    """
    rank, world = portion.shard
    stream = islice(texts, portion.documents)
    seen, digest = 0, hashlib.sha256()
    while group := several("texts", islice(stream, CHUNK * world), str):
        for text in group:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8) + data)
        seen += len(group)
        if seen <= start:
            continue
        if portion.tokens is None:
            rows = _cut(token_ids(tokenizer, group[rank::world]), portion.max_length)
        else:
            rows = _cut(token_ids(tokenizer, group), portion.max_length)
            rows = list(_until(rows, portion.tokens - tokens))
            tokens += sum(map(len, rows))
            rows = rows[rank::world]
        rows = [row for row in rows if row]
        reached = tokens == portion.tokens or seen == portion.documents
        yield Chunk(
            rows=[row for row in rows if row],
            texts=seen,
            tokens=tokens,
            digest=digest.hexdigest(),
            last=reached or len(group) < CHUNK * world,
        )
        if reached:
            return
    _warn(seen, portion)


def batches(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
) -> Iterator[Batch]:
    """Rows of similar length together.

    Args:
        tokenizer: whose padding is used.
        rows: tokens of texts, none of them empty.
        batch_tokens: how many at most, padding included; a longer row stands alone.

    Book: sec-second-moment
    """
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > batch_tokens:
            yield pad(tokenizer, batch)
            batch = []
        batch.append(row)
    if batch:
        yield pad(tokenizer, batch)


def _cut(rows: Iterable[list[int]], length: int | None) -> list[list[int]]:
    return [row[:length] for row in rows]


def _until(rows: Iterable[list[int]], tokens: int) -> Iterator[list[int]]:
    """The rows up to so many tokens; the last one may be cut off."""
    for row in rows:
        yield row[:tokens]
        tokens -= len(row)
        if tokens <= 0:
            return


def _warn(seen: int, portion: Portion) -> None:
    limits = {"tokens": portion.tokens, "documents": portion.documents}
    asked = [f"{name}={value:,}" for name, value in limits.items() if value is not None]
    if asked:
        warnings.warn(
            f"The texts end after {seen:,} of them, before {' or '.join(asked)} is "
            "reached; all of them count.",
            stacklevel=5,
        )
