"""Let a model write freely, many prompts at a time.

Rows of one batch stand flush left, without padding: where a prompt is longer than the
shortest one, its own tokens are fed until it ends. So every token has its position,
whatever the batch, also in models that ignore the mask when they count positions.

Axes: batch rows · tokens positions · vocab words.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import number, several, typed
from edutools.fluency import FORMS
from edutools.hooks import evaluating
from edutools.loaded import input_device, known, not_nan
from edutools.prompts import token_ids

__all__ = ["Generation", "generate"]

TEXTS = ("continuation", "whole")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How texts are written, and what of them is measured.

    Args:
        tokens: length of a text, in tokens of the model.
        top_k: draw each token from the k likeliest; 1 always takes the likeliest.
        seed: of the draws.
        text: 'continuation' is what the model adds to the prompt; 'whole' counts and
            measures the prompt, too.
        entropy: form of `n_gram_entropy`.

    Raises:
        ValueError: if a setting is out of its range.

    Source: Meng et al. 2022 (ROME), section 3.4, and released code: see `released`.
    Book: sec-evaluation-generation

    >>> Generation.released()
    Generation(tokens=100, top_k=5, seed=0, text='whole', entropy='released')
    """

    tokens: int = 100
    top_k: int = 5
    seed: int = 0
    text: str = "continuation"
    entropy: str = "paper"

    def __post_init__(self):
        typed(self)
        if self.tokens < 1 or self.top_k < 1:
            raise ValueError(
                "Generation.tokens and Generation.top_k must be at least 1; got "
                f"tokens={self.tokens} and top_k={self.top_k}."
            )
        for name, kinds in {"text": TEXTS, "entropy": FORMS}.items():
            if (value := getattr(self, name)) not in kinds:
                raise ValueError(
                    f"Generation.{name} must be one of {kinds}; got {value!r}."
                )

    @classmethod
    def released(cls, *, seed: int = 0) -> "Generation":
        """What the released code of ROME and MEMIT measures: prompts count as text.

        Except that texts end where the model ends them; the released code writes on.
        """
        return cls(text="whole", entropy="released", seed=seed)

    def __str__(self) -> str:
        how = f"top {self.top_k}, seed {self.seed}" if self.top_k > 1 else "greedy"
        more = "more" if self.text == "continuation" else "with the prompt"
        return f"texts of {self.tokens} tokens {more}, {how}"


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | Sequence[int] = 20,
    top_k: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """Let the model continue each prompt until it ends the text or the limit is met.

    A continuation depends on the model, the prompt and the seed, never on the other
    prompts; a prompt that is given several times is drawn anew each time.

    Args:
        model: is not changed.
        tokenizer: the model's.
        prompts: texts to be continued.
        max_new_tokens: how many tokens may be added, to all prompts or to each.
        top_k: draw each token from the k likeliest; 1 always takes the likeliest.
        seed: of the draws.
        batch_size: prompts that are continued together; changes memory and speed only.

    Returns:
        The continuations, so that prompt + continuation reads as one text.

    Raises:
        TypeError: if `prompts` is a single text.
        ValueError: if a prompt has no tokens, a limit is out of range, or prompt and
            continuation are longer than what the model can read.

    Book: sec-evaluation-generation
    """
    prompts = several("prompts", prompts, str)
    number("batch_size", batch_size, int, least=1)
    if not prompts:
        return []
    rows, room = token_ids(tokenizer, prompts), _room(len(prompts), max_new_tokens)
    _check(model, prompts, rows, room, top_k=top_k)
    number("seed", seed, int)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    draws = _draws(rows, max(room), seed)
    fresh: list[list[int]] = [[] for _ in rows]
    with evaluating(model), torch.no_grad():
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            batch = [rows[i] for i in part], [room[i] for i in part]
            found = _continued(model, tokenizer, *batch, draws[part], top_k=top_k)
            for i, tokens in zip(part, found, strict=True):
                fresh[i] = tokens
    return _texts(tokenizer, rows, fresh)


def _room(n: int, max_new_tokens: int | Sequence[int]) -> list[int]:
    """How many tokens may be added to each of n prompts."""
    if not isinstance(max_new_tokens, Sequence):
        number("max_new_tokens", max_new_tokens, int)
        return [max_new_tokens] * n
    several("max_new_tokens", max_new_tokens, int)
    if len(max_new_tokens) != n:
        raise ValueError(
            f"max_new_tokens must be one number, or one per prompt; got "
            f"{len(max_new_tokens)} for {n} prompts."
        )
    return list(max_new_tokens)


def _check(
    model: PreTrainedModel,
    prompts: Sequence[str],
    rows: list[list[int]],
    room: list[int],
    *,
    top_k: int,
) -> None:
    number("top_k", top_k, int)
    if min(room) < 0 or top_k < 1:
        raise ValueError(
            "max_new_tokens must not be negative and top_k at least 1; got "
            f"max_new_tokens={min(room)} and top_k={top_k}."
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    tokens = [token for row in rows for token in row]
    known(model, torch.tensor(tokens, dtype=torch.long))
    for prompt, row, more in zip(prompts, rows, room, strict=True):
        if not row:
            raise ValueError(
                f"The prompt {prompt!r} has no tokens, so nothing follows it."
            )
        if limit is not None and len(row) + more > limit:
            raise ValueError(
                f"A prompt of {len(row)} tokens and {more} more are "
                f"{len(row) + more}; this model reads at most {limit}. Shorten the "
                f"prompt {prompt[:40]!r}, or lower max_new_tokens."
            )


def _draws(rows: list[list[int]], room: int, seed: int) -> Float[Tensor, "n room"]:
    """Numbers in [0, 1) for each row, from the seed, its tokens and its repetition."""
    draws, seen = torch.zeros(len(rows), room), Counter[tuple[int, ...]]()
    for i, row in enumerate(rows):
        source = random.Random(f"{seed} {seen[tuple(row)]} {row}")
        draws[i] = torch.tensor([source.random() for _ in range(room)])
        seen[tuple(row)] += 1
    return draws


def _continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    room: list[int],
    draws: Float[Tensor, "batch longest"],
    *,
    top_k: int,
) -> list[list[int]]:
    """The new tokens of each row, the end of the text not among them."""
    starts, more = torch.tensor([len(row) for row in rows]), torch.tensor(room)
    ids = torch.zeros(len(rows), int((starts + more).max()), dtype=torch.long)
    ends = (starts + more) * (more > 0)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    cache, fed, at = None, 0, int(starts.min())
    while at < int(ends.max()):
        given = ids[:, fed:at].to(input_device(model))
        seen = model(input_ids=given, past_key_values=cache, use_cache=True)
        cache, fed = seen.past_key_values, at
        logits = seen.logits[:, -1, : len(tokenizer)].float().cpu()  # (batch, vocab)
        not_nan(logits)
        turn = (at - starts).clamp(0, draws.shape[1] - 1)[:, None]
        chosen = _chosen(logits, draws.gather(1, turn)[:, 0], top_k)
        writes = (starts <= at) & (at < ends)
        ids[writes, at] = chosen[writes]
        ends[writes & (chosen == tokenizer.eos_token_id)] = at
        at += 1
    return [
        row[start:end].tolist()
        for row, start, end in zip(ids, starts, ends, strict=True)
    ]


def _chosen(
    logits: Float[Tensor, "batch vocab"], draws: Float[Tensor, " batch"], top_k: int
) -> Int[Tensor, " batch"]:
    """One of the k likeliest tokens of each row: that in which the draw falls."""
    if top_k == 1:
        return logits.argmax(1)
    best = logits.topk(min(top_k, logits.shape[1]))  # (batch, k)
    reached = best.values.softmax(1).cumsum(1)
    place = (reached[:, :-1] <= draws[:, None]).sum(1)  # (batch,)
    return best.indices.gather(1, place[:, None])[:, 0]


def _texts(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], fresh: list[list[int]]
) -> list[str]:
    """What each row has gained: a space at the border is kept."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.batch_decode(rows, **options)
    grown = [[*row, *more] for row, more in zip(rows, fresh, strict=True)]
    after = tokenizer.batch_decode(grown, **options)
    alone = tokenizer.batch_decode(fresh, **options)
    return [
        whole.removeprefix(start) if whole.startswith(start) else rest
        for start, whole, rest in zip(before, after, alone, strict=True)
    ]
