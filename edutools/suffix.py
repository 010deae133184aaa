"""Run only the last tokens of rows through the upper blocks again.

Attention looks back only: a change at one token moves nothing that stands before it, in
no block. What later tokens read there, its keys and values, is kept from the recorded
pass; the tokens from the changed one on are run. All rows get windows of one width,
which begin at the changed token or, where the row ends too early, some tokens before.

Axes: rows of the recorded pass · batch rows of a later run · tokens · window the last
of them · before tokens that some window leaves out · keys before + window.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from edutools.arch import TABLE
from edutools.caches import Joined, Kept
from edutools.resume import Above, Taken, recording

__all__ = ["Tail", "record_tail"]

CACHES = ("past_key_values", "layer_past")  # how blocks call what keeps keys and values
ATTENTIONS = ("eager", "sdpa")  # those that take a mask of queries by keys


class Tail(Above):
    """The blocks from one layer on, for a change at one token of each row.

    Whole rows are run, as by `Above`, where windows are of no use or could change what
    comes out: in families of models without a row in `edutools.arch`, with attention
    other than 'eager' and 'sdpa', under hooks on or in the blocks, which may want to
    see every token, and if the blocks were called in an unknown way. Nothing else than
    `starts`, `width` and the time tells.

    Attributes:
        starts: the first token of each row that is run.
        width: how many are run from there on.

    Book: sec-rome-value
    """

    starts: Int[Tensor, " rows"]
    width: int

    def __init__(
        self,
        model: PreTrainedModel,
        layer: int,
        changed: Int[Tensor, " rows"],
        mask: Int[Tensor, "rows tokens"],
        *,
        every: bool = False,
    ):
        super().__init__(model, layer, every=every)
        self._tokens = mask.shape[1]
        self.width = int((mask.sum(1) - changed).max())
        self.starts = changed.clamp(max=self._tokens - self.width)
        self._kept: dict[int, Kept] = {}
        self._parameters: list[list[str]] = [
            list(inspect.signature(block.forward).parameters) for block in self.blocks
        ]
        kind, attention = model.config.model_type, model.config._attn_implementation
        self._masks = attention == "eager"  # else none stands for the causal one
        if (
            kind not in TABLE
            or attention not in ATTENTIONS
            or not self.starts.any()
            or _watched(self.blocks[layer:])
        ):
            self._run_whole_rows()

    @property
    def whole(self) -> bool:
        """Whether all tokens of all rows are run."""
        return self.width == self._tokens

    def begin(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch window d"]:
        """What the lowest block shall receive for these recorded rows."""
        state = self.states[self.layer]
        return state[rows.to(state.device)]

    def close(self) -> None:
        """Keep only what the windows need, once the pass has been recorded."""
        if not self.whole and not all(map(self._understood, self.calls)):
            self._run_whole_rows()
        if not self.whole and not self._every:
            everyone = torch.arange(len(self.starts))
            cut = _Windows(self, everyone)
            self.states = {at: cut.tokens(state) for at, state in self.states.items()}

    def at(self, token: int) -> "Tail":
        """The same blocks, with windows that begin at this token in all rows.

        Raises:
            ValueError: if keys and values before it have not been kept.
        """
        if self.whole:
            return self
        most = int(self.starts.max())
        if not 0 <= token <= most:
            raise ValueError(
                f"Keys and values are kept of the first {most} tokens; got token "
                f"{token}. Record with a later one as changed."
            )
        other = copy(self)
        other.starts = torch.full_like(self.starts, token)
        other.width = self._tokens - token
        return other

    def kept(self) -> Iterator[Tensor]:
        """Keys and values of the tokens before the windows, block by block."""
        for kept in self._kept.values():
            yield from kept.pair

    def named(self, depth: int, key: int | str) -> str:
        """The name of what a block was given by place or by name."""
        if isinstance(key, str):
            return key
        names = self._parameters[depth]
        return names[key] if key < len(names) else ""

    def joined(self, depth: int, rows: Int[Tensor, " batch"]) -> Joined:
        """What puts the kept keys and values of these rows before the new ones."""
        pair, before = self._kept[depth].pair, int(self.starts.max())
        key, value = (kept[rows.to(kept.device), :, :before] for kept in pair)
        return Joined(key, value)

    def _taken(self, rows: Int[Tensor, " batch"] | None) -> Taken:
        if self.whole:
            return super()._taken(rows)
        return _Windows(self, torch.arange(len(self.starts)) if rows is None else rows)

    def _run_whole_rows(self) -> None:
        self.starts, self.width = torch.zeros_like(self.starts), self._tokens
        self._kept = {}

    def _enter(self, depth: int) -> Callable[..., Any]:
        enter = super()._enter(depth)

        def hook(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            enter(block, args, kwargs)
            given = {**dict(enumerate(args)), **kwargs}
            for key in given:
                free = given[key] is None and not self.whole
                if free and self.named(depth, key) in CACHES:
                    self._kept[depth] = Kept(int(self.starts.max()))
                    given[key] = self._kept[depth]
            return tuple(given[i] for i in range(len(args))), {
                key: given[key] for key in kwargs
            }

        return hook

    def _understood(self, depth: int) -> bool:
        """Whether a block's keys are kept and its arguments can be cut to windows."""
        given, _ = self.calls[depth]
        named = {self.named(depth, key): value for key, value in given.items()}
        kept = self._kept.get(depth)
        if kept is None or kept.shapes != [(len(self.starts), self._tokens)]:
            return False
        if not isinstance(named.get("attention_mask"), Tensor) and (
            self._masks or "attention_mask" not in named
        ):
            return False
        return all(self._cuttable(name, value) for name, value in named.items())

    def _cuttable(self, name: str, value: Any) -> bool:
        if value is None or isinstance(value, (bool, int, float, str)):
            return True
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, Tensor) for part in parts):
            return False
        shapes = {part.shape for part in parts}
        rows, square = (1, len(self.starts)), (self._tokens, self._tokens)
        if name == "attention_mask":
            return all(len(s) == 4 and s[0] in rows and s[2:] == square for s in shapes)
        if name in ("position_ids", "position_embeddings"):
            return all(s[0] in rows and s[1:2] == square[:1] for s in shapes)
        return False


@contextmanager
def record_tail(
    model: PreTrainedModel,
    layer: int,
    *,
    changed: Int[Tensor, " rows"],
    mask: Int[Tensor, "rows tokens"],
    every: bool = False,
) -> Iterator[Tail]:
    """Record a forward pass, to run the blocks again from one token of each row on.

    The pass must not use a cache of keys and values (`use_cache=False`), and must not
    be part of what gradients are wanted for.

    Args:
        model: a causal language model.
        layer: the lowest block of interest.
        changed: the first token in each row that a later run may change.
        mask: 1 for a token, 0 for padding, which is on the right.
        every: keep the states of all tokens in front of every block, for `Tail.at`,
            rather than those of the windows in front of the lowest.

    Yields:
        The blocks above, ready once the `with` block has been left.

    Raises:
        ValueError: if the layer does not exist.
        RuntimeError: during the pass, if something else acts between two blocks.

    Book: sec-rome-value
    """
    tail = Tail(model, layer, changed, mask, every=every)
    with recording(tail):
        yield tail
    tail.close()


class _Windows(Taken):
    """What blocks were called with, cut to the windows of some rows."""

    def __init__(self, tail: Tail, rows: Int[Tensor, " batch"]):
        super().__init__(rows, len(tail.starts))
        self._tail, self._which = tail, rows
        self._at = tail.starts[rows, None] + torch.arange(tail.width)  # (batch, window)
        self._before = int(tail.starts.max())
        square = (1, 1, tail._tokens, tail._tokens)
        self._causal = torch.ones(square, dtype=torch.bool).tril()

    def call(
        self, depth: int, given: dict[int | str, Any], device: torch.device
    ) -> dict[int | str, Any]:
        now = super().call(depth, given, device)
        for key in given:
            name = self._tail.named(depth, key)
            if name in CACHES:
                now[key] = self._tail.joined(depth, self._which)
            elif name == "attention_mask" and given[key] is None:
                now[key] = self.at(device, self._causal)
        return now

    def tokens(self, value: Shaped[Tensor, "some tokens *rest"]) -> Tensor:
        """A row for each or one that serves all, cut to the windows."""
        rows, at = self._places(value)
        return value[rows[:, None], at]  # (batch, window, *rest)

    def _pick(self, value: Tensor) -> Tensor:
        return self._mask(value) if value.ndim == 4 else self.tokens(value)

    def _mask(
        self, value: Shaped[Tensor, "some heads tokens tokens"]
    ) -> Shaped[Tensor, "batch heads window keys"]:
        """Who sees whom: as before, and what a window runs itself is not seen twice."""
        rows, at = self._places(value)
        seen = value[rows[:, None], :, at].transpose(1, 2)  # (b, heads, window, tokens)
        never = False if value.dtype == torch.bool else torch.finfo(value.dtype).min
        place = torch.arange(self._before, device=value.device)
        inside = place >= at[:, :1]  # (batch, before)
        old = seen[..., : self._before].masked_fill(inside[:, None, None], never)
        new = seen.gather(3, at[:, None, None].expand(*seen.shape[:3], -1))
        return torch.cat([old, new], 3)

    def _places(self, value: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._which if len(value) == self._recorded else 0 * self._which
        return rows.to(value.device), self._at.to(value.device)


def _watched(blocks: list[nn.Module]) -> bool:
    """Whether hooks act in the blocks; those of transformers only show states."""
    hooks = [
        hook
        for block in blocks
        for module in block.modules()
        for hook in (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
        )
    ]
    return any(not str(hook.__module__).startswith("transformers.") for hook in hooks)
