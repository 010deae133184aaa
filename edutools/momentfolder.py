"""Second moments by layer, kept in a folder: one file for each layer."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from edutools.checks import of_kind
from edutools.places import a_path
from edutools.secondmoment import SecondMoment

__all__ = ["checked_moments", "load_moments", "merge_moments", "save_moments"]


def save_moments(
    moments: Mapping[int, SecondMoment],
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Write one file per layer into a folder.

    Book: sec-second-moment
    """
    path = a_path("folder", folder)
    for layer, moment in checked_moments(moments).items():
        moment.save(path / f"moment-{layer}.safetensors", dtype=dtype)


def load_moments(folder: str | Path) -> dict[int, SecondMoment]:
    """Read the moments of all layers that `save_moments` has written.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if a file is truncated, damaged or of another kind.

    Book: sec-second-moment
    """
    files = {
        int(path.stem.removeprefix("moment-")): path
        for path in a_path("folder", folder).glob("moment-*.safetensors")
        if path.stem.removeprefix("moment-").isdecimal()
    }
    if not files:
        raise FileNotFoundError(
            f"No second moments in {str(folder)!r}. Measure them with second_moment "
            "and keep them with save_moments."
        )
    return {layer: SecondMoment.load(files[layer]) for layer in sorted(files)}


def checked_moments(moments: Any) -> Mapping[int, SecondMoment]:
    """The moments, if they are moments by layer.

    Raises:
        TypeError: if they are something else.
    """
    of_kind("moments", moments, Mapping, "{5: moment}")
    for layer, moment in moments.items():
        of_kind(f"moments[{layer!r}]", moment, SecondMoment, "second_moment measures")
    return moments


def merge_moments(
    parts: Sequence[Mapping[int, SecondMoment]],
) -> dict[int, SecondMoment]:
    """Merge moments of the same layers, such as those of several shards.

    Args:
        parts: layer -> moment, for each part.

    Raises:
        TypeError: if a part holds no moments by layer.
        ValueError: if there is no part, they have different layers, or moments do not
            go together (see `SecondMoment.merge`).

    Book: sec-second-moment
    """
    parts = [checked_moments(part) for part in parts]
    layers = [sorted(part) for part in parts]
    if not parts or any(found != layers[0] for found in layers):
        raise ValueError(
            f"Moments of the layers {layers} cannot be merged. Give parts that all "
            "have the same layers."
        )
    return {
        layer: reduce(SecondMoment.merge, [part[layer] for part in parts])
        for layer in layers[0]
    }
