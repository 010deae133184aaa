"""Checkpoints of a long measurement: written whole, read only by the same measurement.

A folder keeps the newest file and the one before it: a damaged one costs little.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edutools.checks import number
from edutools.places import a_folder

__all__ = ["Checkpoints", "Place", "Saved"]

FORMAT = "edutools moments in progress 1"
DAMAGED = (SafetensorError, KeyError, TypeError, json.JSONDecodeError)


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far texts have been read.

    Attributes:
        texts: how many were read before the present chunk.
        tokens: how many tokens of all shards these had, if tokens are limited.
        batches: how many batches of the chunk have been seen.
        digest: what identifies all texts up to the end of the chunk; '' before it.

    Book: sec-second-moment
    """

    texts: int = 0
    tokens: int = 0
    batches: int = 0
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds: sums of k kᵀ by layer, tokens in them, and the place.

    Book: sec-second-moment
    """

    totals: Mapping[int, Float[Tensor, "d_in d_in"]]
    count: int
    place: Place


class Checkpoints:
    """The checkpoints of one measurement in a folder.

    Args:
        folder: made if it is not there; several shards may share it.
        identity: what the measurement is; one that differs is refused.
        shard: rank, and how many there are.
        every: seconds between two checkpoints; 0 for one after every batch.

    Raises:
        TypeError, OSError: if the folder is none, or cannot be written to.
        ValueError: if every is negative.

    Book: sec-second-moment
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        identity: Mapping[str, Any],
        shard: tuple[int, int],
        every: float,
    ) -> None:
        number("every", every, least=0)
        self._folder, self._every = a_folder(folder), every
        self._identity = json.loads(json.dumps(dict(identity)))  # as it is read back
        self._name = f"checkpoint-{shard[0]}-of-{shard[1]}"
        self._kept: Path | None = None
        self._written = monotonic()

    def latest(self) -> Saved | None:
        """The newest checkpoint that is whole; None if there is none.

        Raises:
            ValueError: if a checkpoint of another measurement is there.

        Warns:
            UserWarning: if a file is damaged; an older one is taken, or none.
        """
        self._check_shards()
        for path in sorted(self._files(), reverse=True):
            try:
                saved = self._read(path)
            except DAMAGED as error:
                warnings.warn(
                    f"The checkpoint {path.name} is truncated or damaged ({error}); "
                    "the one before it is taken, if there is one.",
                    stacklevel=4,
                )
                continue
            self._kept = path
            return saved
        return None

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return monotonic() - self._written >= self._every

    def write(self, saved: Saved) -> None:
        """Write a checkpoint; it appears only when it is complete."""
        for path in self._files():
            if path != self._kept:
                path.unlink()
        last = -1 if self._kept is None else int(self._kept.stem.rpartition("-")[2])
        path = self._folder / f"{self._name}-{last + 1:06d}.safetensors"
        metadata = {
            "format": FORMAT,
            "identity": json.dumps(self._identity),
            "count": str(saved.count),
            "place": json.dumps(asdict(saved.place)),
        }
        totals = {str(layer): x.cpu().contiguous() for layer, x in saved.totals.items()}
        partial = path.with_name(path.name + ".partial")
        save_file(totals, partial, metadata)
        partial.replace(path)
        self._kept, self._written = path, monotonic()

    def _files(self) -> list[Path]:
        return list(self._folder.glob(f"{self._name}-*.safetensors"))

    def _read(self, path: Path) -> Saved:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            identity = json.loads(metadata["identity"])
            if metadata["format"] != FORMAT or identity != self._identity:
                self._differ(identity)
            totals = {int(layer): file.get_tensor(layer) for layer in file.keys()}
        place = Place(**json.loads(metadata["place"]))
        return Saved(totals=totals, count=int(metadata["count"]), place=place)

    def _differ(self, theirs: Any) -> None:
        theirs = theirs if isinstance(theirs, dict) else {}
        mine = self._identity
        names = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        told = "; ".join(f"{k} {theirs.get(k)!r}, not {mine.get(k)!r}" for k in names)
        raise ValueError(
            f"{str(self._folder)!r} holds a checkpoint of another measurement: it has "
            f"{told or 'another format'}. Name another folder, or delete this one."
        )

    def _check_shards(self) -> None:
        world = self._name.rpartition("-of-")[2]
        for path in sorted(self._folder.glob("checkpoint-*-of-*-*.safetensors")):
            theirs = path.stem.rpartition("-")[0].rpartition("-of-")[2]
            if theirs != world:
                raise ValueError(
                    f"{str(self._folder)!r} holds a checkpoint of one of {theirs} "
                    f"shards; this measurement has {world}. Measure in as many as "
                    "before, or name another folder."
                )
