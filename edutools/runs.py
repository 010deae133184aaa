"""The forward passes of causal tracing: clean, corrupted, restored.

Axes: samples of the noise · tokens of the prompt · cells pairs of token and layer ·
batch cells times samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, n_layers
from edutools.facts import Fact
from edutools.hooks import capture, patch
from edutools.prompts import fill, token_ids
from edutools.resume import Above, record
from edutools.scoring import final_logits, run

__all__ = ["Restore", "Runs"]

Change = Callable[[Tensor], Tensor]


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
class _Noisy:
    """A corrupted run: how to go on from each layer, and where it ends.

    `states` are what each block received and, last, what the last one returned.
    """

    above: Above
    states: Sequence[Float[Tensor, "samples tokens d_model"]]
    p: Float[Tensor, "samples vocab"]


@dataclass(frozen=True, eq=False)
class Runs:
    """A prompt, and the noise that corrupts its subject.

    Args:
        model: is run, never changed.
        ids: the prompt's tokens.
        subject: range [first, end) of the subject's tokens.
        noise: what is added to the subject's embeddings.
        replace: put the noise in their place instead.

    Raises:
        ValueError: if the noise is not one row per token of the subject.

    Book: sec-tracing-runs
    """

    model: PreTrainedModel
    ids: Int[Tensor, "1 tokens"]
    subject: tuple[int, int]
    noise: Float[Tensor, "samples subject d_model"]
    replace: bool = False

    def __post_init__(self) -> None:
        first, end = self.subject
        if self.noise.shape[1] != end - first:
            raise ValueError(
                f"The noise has shape {tuple(self.noise.shape)}; this subject has "
                f"{end - first} tokens. Give noise of shape (samples, {end - first}, "
                "width of the embedding)."
            )

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fact: Fact,
        noise: Float[Tensor, "samples subject d_model"],
        *,
        replace: bool,
    ) -> "Runs":
        """The runs of a fact's prompt."""
        prompt = fill(fact)
        ids = torch.tensor(token_ids(tokenizer, [prompt.text]))
        return cls(model, ids, prompt.span(tokenizer), noise, replace)

    def names(self, kind: str) -> list[str]:
        """Names of the modules of this kind, by layer."""
        place = architecture_of(self.model)
        name = {"hidden": place.block, "mlp": place.mlp, "attention": place.attention}
        return [name[kind](layer) for layer in range(n_layers(self.model))]

    def clean(
        self, kind: str
    ) -> tuple[list[Float[Tensor, "1 tokens d_model"]], Float[Tensor, " vocab"]]:
        """Outputs by layer, and the next token's probabilities, undisturbed."""
        outputs, p = self._pass(self.names(kind), 1, {})
        return outputs, p[0]

    def corrupted(self, kind: str) -> list[Float[Tensor, "samples tokens d_model"]]:
        """Outputs by layer with the subject corrupted."""
        return self._pass(self.names(kind), len(self.noise), self._corruption())[0]

    def all_cells(
        self,
        restore: Restore,
        token: int,
        batch_size: int,
        again: Float[Tensor, "samples subject d_model"] | None = None,
    ) -> tuple[float, Float[Tensor, "tokens layers"]]:
        """The token's mean probability, corrupted and with each cell restored.

        A cell differs from the corrupted run in and above its lowest restored layer
        only, so that only these layers are run for it.

        Args:
            restore: what is restored; nothing is before the subject.
            token: whose probability.
            batch_size: rows per forward pass.
            again: another noise for cells with something held above them.

        Raises:
            ValueError: if the other noise has another shape.
        """
        if again is not None and again.shape != self.noise.shape:
            raise ValueError(
                f"The second noise has shape {tuple(again.shape)}, the first one "
                f"{tuple(self.noise.shape)}. Give two of one shape."
            )
        layers = torch.arange(n_layers(self.model))
        if again is None:
            return self._table(restore, layers, token, batch_size)
        held = restore.end(layers) < len(layers)
        corrupt, table = self._table(restore, layers[~held], token, batch_size)
        other = replace(self, noise=again)
        _, above = other._table(restore, layers[held], token, batch_size)
        return corrupt, torch.where(held, above, table)

    def _table(
        self,
        restore: Restore,
        columns: Int[Tensor, " columns"],
        token: int,
        batch_size: int,
    ) -> tuple[float, Float[Tensor, "tokens layers"]]:
        """The same with one noise, for some layers."""
        noisy = self._noisy()
        corrupt = noisy.p[:, token].mean()
        length, layers = self.ids.shape[1], n_layers(self.model)
        table = torch.full((length, layers), float(corrupt))
        places = torch.arange(self.subject[0], length)
        starts = restore.start(columns)
        for start in starts.unique():  # cells of one pass begin at one layer
            at = torch.cartesian_prod(columns[starts == start], places)
            for part in at.split(max(1, batch_size // len(self.noise))):
                layer, place = part.T
                p = self._restored(restore, noisy, place, layer)  # (cells, vocab)
                table[place, layer] = p[:, token]
        return float(corrupt), table

    def _noisy(self) -> _Noisy:
        """The corrupted run, ready to be gone on with from any layer."""
        with record(self.model, 0, every=True) as above:
            names = self.names("hidden")[-1:]
            (last,), p = self._pass(names, len(self.noise), self._corruption())
        return _Noisy(above, [*above.states.values(), last], p)

    def _restored(
        self,
        restore: Restore,
        noisy: _Noisy,
        place: Int[Tensor, " cells"],
        layer: Int[Tensor, " cells"],
    ) -> Float[Tensor, "cells vocab"]:
        """Mean probabilities over samples, with each cell restored."""
        rows = torch.arange(len(self.noise)).repeat(len(place))
        changes = self._changes(restore, place, layer)
        start = int(restore.start(layer).min())
        h = noisy.states[start]
        h = h[rows.to(h.device)]  # (batch, tokens, d_model)
        if start:  # a hidden state is put straight where the next block reads it
            below = self.names("hidden")[start - 1]
            h = changes.pop(below, lambda same: same)(h)
        with patch(self.model, changes):
            h = noisy.above.run(h, start, rows=rows)
        p = final_logits(self.model, h[:, -1]).float().softmax(-1).cpu()
        return p.unflatten(0, (-1, len(self.noise))).mean(1)

    def _changes(
        self,
        restore: Restore,
        place: Int[Tensor, " cells"],
        layer: Int[Tensor, " cells"],
    ) -> dict[str, Change]:
        """What to put where in the outputs of modules, for these cells."""
        changes: dict[str, Change] = {}
        for depth, name in enumerate(self.names(restore.kind)):
            inside = (restore.first(layer) <= depth) & (depth < restore.end(layer))
            if inside.any():
                clean = restore.clean[depth].expand(len(self.noise), -1, -1)
                changes[name] = self._put(inside, place, clean)
        for depth, held in enumerate(restore.held):
            name = self.names(restore.sever or "")[depth]
            outside = restore.end(layer) <= depth
            if outside.any():
                put = self._put(outside, place, held)
                changes[name] = _then(changes.get(name), put)
        return changes

    def _put(
        self,
        which: Bool[Tensor, " cells"],
        place: Int[Tensor, " cells"],
        values: Float[Tensor, "samples tokens d_model"],
    ) -> Change:
        """Set the place of some cells, in all samples, to given values."""
        samples = len(self.noise)
        cells = which.nonzero()[:, 0]
        sample = torch.arange(samples).repeat(len(cells))
        rows = cells.repeat_interleave(samples) * samples + sample
        where = place[cells].repeat_interleave(samples)

        def put(h: Tensor) -> Tensor:  # (batch, tokens, d_model)
            at = (rows.to(h.device), where.to(h.device))
            return h.index_put(at, values[sample, where].to(h))

        return put

    def _corruption(self) -> dict[str, Change]:
        first, end = self.subject

        def corrupt(h: Tensor) -> Tensor:  # (samples, tokens, d_model)
            old = 0 if self.replace else h[:, first:end].double()
            new = h.clone()
            new[:, first:end] = (old + self.noise.to(h.device)).to(h.dtype)
            return new

        return {architecture_of(self.model).embedding: corrupt}

    def _pass(
        self, names: Sequence[str], rows: int, changes: Mapping[str, Change]
    ) -> tuple[list[Tensor], Float[Tensor, "rows vocab"]]:
        """Run the prompt; outputs of modules, and the next token's probabilities."""
        last = self.names("hidden")[-1]
        ids = self.ids.expand(rows, -1)
        with (
            patch(self.model, changes),
            capture(self.model, {*names, last}, stop=True) as seen,
        ):
            run(seen, self.model, ids, torch.ones_like(ids))
        logits = final_logits(self.model, seen[last][:, -1]).float()
        return [seen[name] for name in names], logits.softmax(-1).cpu()


def _then(first: Change | None, second: Change) -> Change:
    return second if first is None else lambda h: second(first(h))
