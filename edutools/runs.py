"""The forward passes of causal tracing: clean, corrupted, restored.

Axes: samples of the noise · tokens of the prompt · layers of the model · columns those
of some cells, each a pair of token and layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, n_layers
from edutools.facts import Fact
from edutools.hooks import capture, patch
from edutools.prompts import fill, token_ids
from edutools.restore import Change, Climb, Corrupted, Restore, outputs_of
from edutools.scoring import final_logits, run
from edutools.suffix import record_tail

__all__ = ["Runs"]


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

    def clean(
        self, kind: str
    ) -> tuple[list[Float[Tensor, "1 tokens d_model"]], Float[Tensor, " vocab"]]:
        """Outputs by layer, and the next token's probabilities, undisturbed."""
        outputs, p = self._pass(outputs_of(self.model, kind), 1, {})
        return outputs, p[0]

    def corrupted(self, kind: str) -> list[Float[Tensor, "samples tokens d_model"]]:
        """Outputs by layer with the subject corrupted."""
        return self._disturbed(outputs_of(self.model, kind))[0]

    def all_cells(
        self,
        restore: Restore,
        token: int,
        batch_size: int,
        again: Float[Tensor, "samples subject d_model"] | None = None,
    ) -> tuple[float, Float[Tensor, "tokens layers"]]:
        """The token's mean probability, corrupted and with each cell restored.

        A cell differs from the corrupted run in and above its lowest restored layer
        only, and from its token on, so that only these are run for it.

        Args:
            restore: what is restored; nothing is before the subject.
            token: whose probability.
            batch_size: rows (cells of one token times samples) per forward pass.
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
        held = restore.end(layers) < len(layers)
        if again is None or not held.any():
            return self._table(restore, layers, token, batch_size)
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
        corrupted, p = self._corrupted()
        length, layers = self.ids.shape[1], n_layers(self.model)
        table = torch.full((length, layers), float(p[:, token].mean()))
        for place in range(self.subject[0], length):
            for part in columns.split(max(1, batch_size // len(self.noise))):
                p_cells = Climb(corrupted, restore, place, part).run()[..., token]
                table[place, part] = p_cells.mean(1)  # over samples
        return float(p[:, token].mean()), table

    def _corrupted(self) -> tuple[Corrupted, Float[Tensor, "samples vocab"]]:
        """The corrupted run, ready to be gone on with from any layer and token."""
        mask = torch.ones_like(self.ids).expand(len(self.noise), -1)
        changed = mask.sum(1) - 1  # keys and values of all tokens before the last
        with record_tail(self.model, 0, changed=changed, mask=mask, every=True) as tail:
            (last,), p = self._disturbed(outputs_of(self.model, "hidden")[-1:])
        states = [*tail.states.values(), last]
        return Corrupted(self.model, tail, states), p

    def _disturbed(
        self, names: Sequence[str]
    ) -> tuple[list[Tensor], Float[Tensor, "samples vocab"]]:
        return self._pass(names, len(self.noise), self._corruption())

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
        last = outputs_of(self.model, "hidden")[-1]
        ids = self.ids.expand(rows, -1)
        with (
            patch(self.model, changes),
            capture(self.model, {*names, last}, stop=True) as seen,
        ):
            run(seen, self.model, ids, torch.ones_like(ids))
        logits = final_logits(self.model, seen[last][:, -1]).float()
        return [seen[name] for name in names], logits.softmax(-1).cpu()
