"""Cells of causal tracing: the corrupted run with some of its states put back.

A cell equals the corrupted run below its lowest restored layer and before its token. So
the cells of one token climb through the blocks together: each joins at its own layer,
and only the tokens from the restored one on are run.

Axes: samples of the noise · tokens of the prompt · window the last of them · cells of
one token, by layer · batch cells times samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from edutools.arch import architecture_of, n_layers
from edutools.hooks import patch
from edutools.scoring import final_logits
from edutools.suffix import Tail

__all__ = ["Change", "Climb", "Corrupted", "Restore", "outputs_of"]

Change = Callable[[Tensor], Tensor]


def outputs_of(model: PreTrainedModel, kind: str) -> list[str]:
    """Names of the modules whose outputs are of this kind, by layer.

    Book: sec-tracing-runs
    """
    place = architecture_of(model)
    name = {"hidden": place.block, "mlp": place.mlp, "attention": place.attention}
    return [name[kind](layer) for layer in range(n_layers(model))]


@dataclass(frozen=True, eq=False)
class Restore:
    """What is put back to its clean value, and what is held at its corrupted one.

    Args:
        kind: 'hidden', 'mlp' or 'attention'.
        window: how many layers are restored together.
        clean: outputs of the clean run by layer.
        sever: 'mlp', 'attention' or None.
        held: outputs of a corrupted run by layer, for `sever`.

    Book: sec-tracing-runs
    """

    kind: str
    window: int
    clean: Sequence[Float[Tensor, "1 tokens d_model"]]
    sever: str | None = None
    held: Sequence[Float[Tensor, "samples tokens d_model"]] = ()

    def first(self, layer: Int[Tensor, " cells"]) -> Int[Tensor, " cells"]:
        """The lowest restored layer of each cell (may be negative: cut off there)."""
        return layer - self.window // 2

    def end(self, layer: Int[Tensor, " cells"]) -> Int[Tensor, " cells"]:
        """One above the highest restored layer of each cell."""
        return layer + -(-self.window // 2)

    def start(self, layer: Int[Tensor, " cells"]) -> Int[Tensor, " cells"]:
        """The lowest layer whose block computes something new for each cell."""
        lowest = self.first(layer).clamp(min=0)
        return lowest + 1 if self.kind == "hidden" else lowest


@dataclass(frozen=True, eq=False)
class Corrupted:
    """A corrupted run: how to go on from each layer and token.

    Args:
        model: whose run.
        tail: its record, with the keys and values of all tokens but the last.
        states: what each block received and, last, what the last one returned.

    Book: sec-tracing-runs
    """

    model: PreTrainedModel
    tail: Tail
    states: Sequence[Float[Tensor, "samples tokens d_model"]]


@dataclass(frozen=True, eq=False)
class Climb:
    """The cells of one token, on their way through the blocks.

    Args:
        corrupted: where they come from.
        restore: what is put back in each.
        place: their token.
        layer: of each, ascending.

    Book: sec-tracing-runs
    """

    corrupted: Corrupted
    restore: Restore
    place: int
    layer: Int[Tensor, " cells"]

    def run(self) -> Float[Tensor, "cells samples vocab"]:
        """The next token's probabilities with each cell restored."""
        model, tail = self.corrupted.model, self.corrupted.tail.at(self.place)
        start, first = self.restore.start(self.layer), int(tail.starts[0])
        bottom = int(start[0])
        with patch(model, self._changes(first)):
            h = self._joining(bottom, first)  # (batch, window, d_model)
            for depth in range(bottom, n_layers(model)):
                rows = torch.arange(len(h)) % self._samples
                h = tail.run(h, depth, rows=rows, end=depth + 1)
                new = self._joining(depth + 1, first)
                h = torch.cat([h.to(new.device), new])
        p = final_logits(model, h[:, -1]).float().softmax(-1).cpu()
        return p.unflatten(0, (-1, self._samples))

    @property
    def _samples(self) -> int:
        return len(self.corrupted.states[0])

    def _joining(self, depth: int, first: int) -> Float[Tensor, "batch window d_model"]:
        """What the block of that depth receives for cells that begin with it."""
        h = self.corrupted.states[depth][:, first:]  # (samples, window, d_model)
        if self.restore.kind == "hidden":  # put straight where the block reads it
            h = h.clone()
            h[:, self.place - first] = self.restore.clean[depth - 1][:, self.place]
        cells = int((self.restore.start(self.layer) == depth).sum())
        return h.repeat(cells, 1, 1)

    def _changes(self, first: int) -> dict[str, Change]:
        """What to put where in the outputs of modules."""
        restore, layer, model = self.restore, self.layer, self.corrupted.model
        changes: dict[str, Change] = {}
        for depth, name in enumerate(outputs_of(model, restore.kind)):
            inside = (restore.start(layer) <= depth) & (depth < restore.end(layer))
            if inside.any():
                changes[name] = self._put(inside, restore.clean[depth], first)
        for depth, held in enumerate(restore.held):
            name = outputs_of(model, restore.sever or "")[depth]
            outside = restore.end(layer) <= depth
            if outside.any():
                put = self._put(outside, held, first)
                changes[name] = _then(changes.get(name), put)
        return changes

    def _put(
        self,
        which: Bool[Tensor, " cells"],
        values: Float[Tensor, "some tokens d_model"],
        first: int,
    ) -> Change:
        """Set the token of some cells to given values, one for each sample or for all.

        Cells that have not joined yet are the last ones, and never among them.
        """
        cells, value = which.nonzero()[:, 0], values[:, self.place]

        def put(h: Tensor) -> Tensor:  # (batch, window, d_model)
            new = h.clone()
            at = new.unflatten(0, (-1, self._samples))[:, :, self.place - first]
            at[cells.to(h.device)] = value.to(h)  # (cells, samples, d_model)
            return new

        return put


def _then(first: Change | None, second: Change) -> Change:
    return second if first is None else lambda h: second(first(h))
