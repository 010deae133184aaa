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
        return self._pass(self.names(kind), len(self.noise), self._corruption(1))[0]

    def all_cells(
        self,
        restore: Restore,
        token: int,
        batch_size: int,
        again: Float[Tensor, "samples subject d_model"] | None = None,
    ) -> tuple[float, Float[Tensor, "tokens layers"]]:
        """Probability of a token, corrupted, and with each cell restored.

        Args:
            restore: what is put back and what is held.
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
        corrupt, table = self._table(restore, token, batch_size)
        if again is None:
            return corrupt, table
        _, other = replace(self, noise=again)._table(restore, token, batch_size)
        layers = torch.arange(table.shape[1])
        return corrupt, torch.where(restore.end(layers) < len(layers), other, table)

    def _table(
        self, restore: Restore, token: int, batch_size: int
    ) -> tuple[float, Float[Tensor, "tokens layers"]]:
        """The same with one noise."""
        _, p = self._pass([], len(self.noise), self._corruption(1))
        corrupt = p[:, token].mean()
        length, layers = self.ids.shape[1], n_layers(self.model)
        table = torch.full((length, layers), float(corrupt))
        at = torch.cartesian_prod(
            torch.arange(layers), torch.arange(self.subject[0], length)
        )
        for part in at.split(max(1, batch_size // len(self.noise))):
            layer, place = part.T
            table[place, layer] = self.restored(restore, place, layer, token)
        return float(corrupt), table

    def restored(
        self,
        restore: Restore,
        place: Int[Tensor, " cells"],
        layer: Int[Tensor, " cells"],
        token: int,
    ) -> Float[Tensor, " cells"]:
        """Mean probability of the token over samples, with each cell restored."""
        samples = len(self.noise)
        changes = self._corruption(len(place))
        for depth, name in enumerate(self.names(restore.kind)):
            inside = (restore.first(layer) <= depth) & (depth < restore.end(layer))
            put = self._put(inside, place, restore.clean[depth].expand(samples, -1, -1))
            changes[name] = put
        for depth, held in enumerate(restore.held):
            name = self.names(restore.sever or "")[depth]
            put = self._put(restore.end(layer) <= depth, place, held)
            changes[name] = _then(changes.get(name), put)
        _, p = self._pass([], len(place) * samples, changes)
        return p[:, token].unflatten(0, (-1, samples)).mean(1)

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

    def _corruption(self, cells: int) -> dict[str, Change]:
        first, end = self.subject
        noise = self.noise.repeat(cells, 1, 1)  # (batch, subject, d_model)

        def corrupt(h: Tensor) -> Tensor:  # (batch, tokens, d_model)
            old = 0 if self.replace else h[:, first:end].double()
            new = h.clone()
            new[:, first:end] = (old + noise.to(h.device)).to(h.dtype)
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
