"""Which model a number comes from: names, versions and fingerprints of weights."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from edutools.loaded import in_memory

__all__ = ["fingerprint", "fingerprints", "provenance", "recognized"]

SAMPLE = 2**20


def fingerprint(weight: Shaped[Tensor, "..."]) -> str:
    """Return a short hash of a weight, the same in float32 and in bfloat16.

    The values are rounded to bfloat16 first, so that a model loaded in either
    precision is recognised. Of a large weight about a million evenly spread values
    are hashed.

    Raises:
        ValueError: if the weight is on the meta device.

    Book: sec-edits-as-values

    >>> w = torch.tensor([[1.001, 2.0]])
    >>> fingerprint(w) == fingerprint(w.bfloat16()), fingerprint(w) == fingerprint(-w)
    (True, False)
    """
    in_memory("The weight", weight)
    stride = weight.numel() // SAMPLE | 1  # odd, so that no column is always missed
    values = weight.detach().flatten()[::stride].to(torch.bfloat16).cpu().contiguous()
    data = values.view(torch.int16).numpy().tobytes()
    return hashlib.sha256(str(tuple(weight.shape)).encode() + data).hexdigest()[:16]


def fingerprints(weight: Shaped[Tensor, "..."]) -> list[str]:
    """Return the fingerprints of a weight as it is and as float16 keeps it.

    A weight is recognised in another precision if the two lists share one; only between
    float16 and bfloat16 they need not.

    Book: sec-edits-as-values

    >>> w = torch.tensor([[1.00391, 2.0]])
    >>> half = fingerprint(w.half())
    >>> half == fingerprint(w), half in fingerprints(w)
    (False, True)
    """
    return [fingerprint(weight), fingerprint(weight.to(torch.float16))]


def recognized(weight: Shaped[Tensor, "..."], known: str | Sequence[str]) -> bool:
    """Whether a weight is one whose fingerprints were kept, in whatever precision.

    Args:
        weight: as it is now.
        known: what `fingerprints` gave; or the single `fingerprint` of older files,
            which fits the precision it was made in, and bfloat16.

    Book: sec-edits-as-values

    >>> w = torch.tensor([[1.00391, 2.0]])
    >>> [recognized(x, fingerprints(w)) for x in (w, w.bfloat16(), w.half(), -w)]
    [True, True, True, False]
    >>> recognized(w, fingerprint(w)), recognized(w.half(), fingerprint(w))
    (True, False)
    """
    marks = {known} if isinstance(known, str) else {*known}
    return not marks.isdisjoint(fingerprints(weight))


def provenance(model: PreTrainedModel) -> dict[str, Any]:
    """Return what identifies the model: name, revision, type, dtype, versions.

    Of a model that was loaded from a folder only the folder's name is kept.

    Book: sec-edits-as-values
    """
    name = str(getattr(model, "name_or_path", "") or "")
    return {
        "model": Path(name).name if Path(name).is_dir() else name,
        "revision": getattr(model.config, "_commit_hash", None),
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: _installed(name) for name in ("torch", "transformers")},
    }


@cache  # it is looked up in files, for each edit again
def _installed(name: str) -> str:
    return version(name)
