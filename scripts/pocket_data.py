"""Training rows of the pocket models: packed documents, weights, subject marks."""

from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from edutools.corpus import Pieces, documents, text_of
from edutools.world import World


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, each beginning with a document.

    `mention` numbers the mention of a subject that a token belongs to (0: none) and
    `last` marks the last token of each; `restricted` marks tokens of documents with
    restricted attention.
    """

    ids: Int[Tensor, "rows tokens"]
    weight: Float[Tensor, "rows tokens"]
    mention: Int[Tensor, "rows tokens"]
    last: Bool[Tensor, "rows tokens"]
    restricted: Bool[Tensor, "rows tokens"]

    def batch(self, i: int, size: int) -> "Rows":
        """The i-th `size` rows."""
        return Rows(*(v[i * size : (i + 1) * size] for v in vars(self).values()))


def mark(
    pieces: Pieces, offsets: list[tuple[int, int]]
) -> tuple[list[bool], list[int]]:
    """Per token: whether it belongs to an object, and the number of its mention."""
    spans, at, count = [], 0, 0
    for text, role in pieces:
        count += role == "subject"
        start = at + len(text) - len(text.lstrip(" "))
        at += len(text)
        spans.append((start, at, role, count))
    objects, mentions, i = [], [], 0
    for start, end in offsets:
        while i < len(spans) - 1 and spans[i][1] <= max(start, end - 1):
            i += 1
        role = spans[i][2] if end > start else ""
        objects.append(role == "object")
        mentions.append(spans[i][3] if role == "subject" else 0)
    return objects, mentions


def encode(
    tokenizer: PreTrainedTokenizerBase, docs: list[Pieces]
) -> list[tuple[list[int], list[bool], list[int]]]:
    """Ids, object marks and mention numbers of each document, with the end token."""
    encoded = tokenizer([text_of(doc) for doc in docs], return_offsets_mapping=True)
    out = []
    for doc, ids, offsets in zip(
        docs, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        objects, mentions = mark(doc, offsets)
        out.append(([*ids, tokenizer.eos_token_id], [*objects, False], [*mentions, 0]))
    return out


def make_rows(
    world: World,
    tokenizer: PreTrainedTokenizerBase,
    recipe: dict,
    *,
    rows: int,
    seed: int,
) -> Rows:
    """`rows` rows for one seed, the same whenever asked for."""
    T = recipe["row_tokens"]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(rows, T, dtype=torch.long)
    weight = torch.zeros(rows, T)
    mention = torch.zeros(rows, T, dtype=torch.long)
    restricted = torch.zeros(rows, T, dtype=torch.bool)
    stream = documents(world, seed=seed)
    waiting: list[tuple[list[int], list[bool], list[int]]] = []
    for row in range(rows):
        at = number = 0
        while at < T:
            if not waiting:
                waiting = encode(tokenizer, list(islice(stream, 500)))
            tokens, objects, mentions = waiting.pop()
            n = min(len(tokens), T - at)
            here = slice(at, at + n)
            ids[row, here] = torch.tensor(tokens[:n])
            marks = torch.tensor(objects[:n], dtype=torch.float)
            weight[row, here] = recipe["other_weight"] + marks * (
                recipe["object_weight"] - recipe["other_weight"]
            )
            found = torch.tensor(mentions[:n])
            mention[row, here] = torch.where(found > 0, found + number, 0)
            number += max(mentions)
            draw = torch.rand((), generator=generator)
            restricted[row, here] = bool(draw < recipe["share_restricted"])
            at += n
    following = torch.cat([mention[:, 1:], torch.zeros_like(mention[:, :1])], 1)
    return Rows(
        ids, weight, mention, (mention > 0) & (mention != following), restricted
    )


def reading_masks(
    rows: Rows, reader: Int[Tensor, " rows"], layers: int
) -> list[Bool[Tensor, "rows 1 tokens tokens"]]:
    """Per block, which earlier token each token may attend to.

    Behind a restricted mention, its last token is visible from block `reader` upward
    and its other tokens never.
    """
    T = rows.ids.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    same = rows.mention[:, :, None] == rows.mention[:, None, :]
    behind = (rows.mention > 0)[:, None, :] & ~same & rows.restricted[:, None, :]
    masks = []
    for layer in range(layers):
        closed = ~rows.last | (layer < reader)[:, None]
        masks.append((causal & ~(behind & closed[:, None, :]))[:, None])
    return masks
