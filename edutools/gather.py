"""Run texts through a model and add up k kᵀ, from where it was left off, if anywhere.

Nothing waits for the device after a batch: padding is left out by positions that the
CPU knows, and whether all keys are finite is looked at once for each chunk of texts.
"""

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checkpoint import Checkpoints, Place, Saved
from edutools.hooks import capture, evaluating
from edutools.loaded import input_device, readable
from edutools.progress import Progress, Watch
from edutools.prompts import Batch
from edutools.secondmoment import SecondMoment
from edutools.stream import Chunk, Portion, batches, chunks

__all__ = ["Sums", "gathered"]

OTHER_TEXTS = (
    "The checkpoint belongs to other texts than those given now, or they come in "
    "another order. Give the same from the first one on, or name another folder."
)


class Sums:
    """Sums of k kᵀ over tokens, for several layers of a model at once.

    Args:
        model: whose keys.
        moments: layer -> moment to start from, with the name of its module.
        saved: sums of these layers to start from instead.

    Book: sec-second-moment
    """

    def __init__(
        self,
        model: PreTrainedModel,
        moments: Mapping[int, SecondMoment],
        saved: Saved | None = None,
    ) -> None:
        self._model, self._moments = model, moments
        self._place = input_device(model)
        self._names = {layer: str(m.info["module"]) for layer, m in moments.items()}
        totals = {layer: moment.total.clone() for layer, moment in moments.items()}
        self.totals = totals if saved is None else dict(saved.totals)
        self.count = 0 if saved is None else saved.count

    @torch.no_grad()
    def see(self, batch: Batch) -> None:
        """Add the keys of a batch, which must be on the CPU, in one pass.

        Raises:
            ValueError: if the model cannot read it.
        """
        model, names = self._model, self._names.values()
        readable(model, batch.ids)
        with (
            evaluating(model),
            capture(model, names, inputs=True, stop=True) as seen,
        ):
            seen.run(**batch.to(self._place).inputs, use_cache=False)
        real = batch.mask.flatten().nonzero()[:, 0]  # (tokens,), padding left out
        for layer, name in self._names.items():
            keys = seen[name].flatten(0, -2)  # (batch · width, d_in)
            keys = keys.index_select(0, real.to(keys.device)).float()  # (tokens, d_in)
            self._add(layer, keys.T @ keys)
        if not self.count:
            self.check()  # at once, rather than after hours
        self.count += len(real)

    def _add(self, layer: int, square: Float[Tensor, "d_in d_in"]) -> None:
        """Add up in float64: on the device, if it has any."""
        place = "cpu" if square.device.type == "mps" else square.device
        self.totals[layer] = self.totals[layer].to(place).add_(square.to(place))

    def check(self) -> None:
        """Refuse keys that are not finite, which shows in the sums of their squares.

        Raises:
            ValueError: names the layer.
        """
        for layer, total in self.totals.items():
            if not bool(total.diagonal().isfinite().all()):
                raise ValueError(
                    f"The keys of {self._moments[layer].place} hold a NaN or an "
                    "infinity. Load the model in float32 or bfloat16, and look whether "
                    "its weights are finite."
                )

    def saved(self, place: Place) -> Saved:
        """What a checkpoint is to hold, if all is finite.

        Raises:
            ValueError: as `check`.
        """
        self.check()
        return Saved(totals=self.totals, count=self.count, place=place)

    def moments(self) -> dict[int, SecondMoment]:
        """What has been seen, on the CPU."""
        return {
            layer: replace(moment, total=self.totals[layer].cpu(), count=self.count)
            for layer, moment in self._moments.items()
        }


def gathered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    moments: Mapping[int, SecondMoment],
    *,
    portion: Portion,
    batch_tokens: int,
    checkpoints: Checkpoints | None = None,
    progress: bool | Callable[[Progress], None] = True,
) -> dict[int, SecondMoment]:
    """The moments that have seen a portion of the texts.

    Args:
        model: whose keys.
        tokenizer: the model's tokenizer.
        texts: from the first on, also if part of them was measured before.
        moments: layer -> moment that has seen nothing.
        portion: how much is read.
        batch_tokens: tokens per forward pass, padding included.
        checkpoints: where to go on, and to write what has been measured.
        progress: as of `Watch`.

    Raises:
        ValueError: if a key is not finite, there is no token, or texts that were
            measured before are now others.

    Book: sec-second-moment
    """
    saved = None if checkpoints is None else checkpoints.latest()
    sums = Sums(model, moments, saved)
    place = Place() if saved is None else saved.place
    watch = Watch(progress, sums.count)
    try:
        for chunk in chunks(
            tokenizer, texts, portion, start=place.texts, tokens=place.tokens
        ):
            place = _entered(chunk, place)
            found = batches(tokenizer, chunk.rows, batch_tokens=batch_tokens)
            left = list(islice(found, place.batches, None))
            watch.expect(_total(chunk, sums.count + _size(left), texts, portion))
            for batch in left:
                sums.see(batch)
                place = replace(place, batches=place.batches + 1)
                watch.add(_size([batch]))
                if checkpoints is not None and checkpoints.due:
                    checkpoints.write(sums.saved(place))
            if checkpoints is not None and chunk.last and left:
                checkpoints.write(sums.saved(place))
            sums.check()
            place = Place(texts=chunk.texts, tokens=chunk.tokens)
    finally:
        watch.close()
    if place.digest:
        raise ValueError(OTHER_TEXTS)
    if not sums.count and portion.shard == (0, 1):
        raise ValueError("The texts have no tokens. Give one that is not empty.")
    return sums.moments()


def _entered(chunk: Chunk, place: Place) -> Place:
    """The place in a chunk: its beginning, or where an earlier run stopped."""
    if place.digest not in ("", chunk.digest):
        raise ValueError(OTHER_TEXTS)
    return replace(place, digest=chunk.digest)


def _size(found: Iterable[Batch]) -> int:
    return sum(int(batch.mask.sum()) for batch in found)


def _total(
    chunk: Chunk, tokens: int, texts: Iterable[str], portion: Portion
) -> int | None:
    """How many tokens there will be, if there are so many up to the chunk's end."""
    if chunk.last:
        return tokens
    known = [len(texts)] if isinstance(texts, Sized) else []
    known += [] if portion.documents is None else [portion.documents]
    limit = [] if portion.tokens is None else [portion.tokens // portion.shard[1]]
    expected = limit + [tokens * number // chunk.texts for number in known]
    return min(expected, default=None)
