"""The second moment of keys as a value: E[k kᵀ], how many tokens, and where from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import gcd
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edutools.checks import of_kind, shown
from edutools.factored import Spectrum
from edutools.linear import Cholesky
from edutools.places import a_file, a_path
from edutools.prepared import Prepared

__all__ = ["SecondMoment"]

FORMAT = "edutools second moment 1"
SAME = ("model_type", "module", "layer", "weight", "embedding", "tokenizer")


@dataclass(frozen=True, eq=False, repr=False)
class SecondMoment:
    """The mean of k kᵀ over the tokens seen so far; uncentred.

    Args:
        total: the sum of k kᵀ, in float64.
        count: how many tokens it sums over.
        info: where it comes from: model, revision, fingerprints, layer, data, dtype.
        past: keys of facts written earlier, one per column, for methods that spare them
            too (AlphaEdit, ENCORE). They are no part of the mean.

    Book: sec-second-moment

    >>> moment = SecondMoment.empty(2).update(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    >>> moment.value
    tensor([[0.5000, 0.0000],
            [0.0000, 4.5000]], dtype=torch.float64)
    """

    total: Float[Tensor, "d_in d_in"]
    count: int
    info: Mapping[str, Any] = field(default_factory=dict)
    past: Float[Tensor, "d_in m"] | None = None

    @classmethod
    def empty(cls, d_in: int, info: Mapping[str, Any] | None = None) -> "SecondMoment":
        """A moment that has seen nothing yet."""
        return cls(torch.zeros(d_in, d_in, dtype=torch.float64), 0, info or {})

    @property
    def value(self) -> Float[Tensor, "d_in d_in"]:
        """C = E[k kᵀ], in float64.

        Raises:
            ValueError: if no token has been counted.
        """
        return self.prepared.value()

    @cached_property
    def prepared(self) -> Prepared:
        """What is computed of C once: its factors and its spectrum."""
        return Prepared(self.total, self.count, f"The second moment of {self.place}")

    def on(self, device: torch.device | str, precision: str = "auto") -> "SecondMoment":
        """The same, factorised on a device in a precision, see `chosen_precision`.

        What has been computed on any device is kept for all edits to come.
        """
        placed = replace(self)
        placed.__dict__["prepared"] = self.prepared.on(device, precision)
        return placed

    @property
    def factor(self) -> Cholesky:
        """The Cholesky factor of C, computed once; the closed forms accept it as C.

        Raises:
            ValueError: if C is not positive definite (too few tokens).
        """
        return self.prepared.factor()

    @property
    def spectrum(self) -> Spectrum:
        """The eigenvalues and eigenvectors of C, computed once."""
        return self.prepared.spectrum()

    @cached_property
    def finite(self) -> bool:
        """Whether no number in it is nan or infinite."""
        known = (self.total,) if self.past is None else (self.total, self.past)
        return all(bool(part.isfinite().all()) for part in known)

    @property
    def place(self) -> str:
        """Layer and model, in words."""
        model = self.info.get("model") or "an unnamed model"
        return f"layer {self.info.get('layer', '?')} of {model!r}"

    def update(
        self,
        keys: Float[Tensor, "*tokens d_in"],
        mask: Bool[Tensor, "*tokens"] | Int[Tensor, "*tokens"] | None = None,
    ) -> "SecondMoment":
        """The moment that has also seen these keys.

        Products are in float32, where the keys are; the sum is in float64.

        Args:
            keys: one key per token.
            mask: 0 for tokens that do not count (padding).

        Raises:
            ValueError: if the keys have another size, or are not finite.
        """
        rows = keys.flatten(0, -2) if mask is None else keys[mask.bool()]
        rows = rows.detach().float()
        self._check_size(rows.shape[-1])
        if not bool(rows.isfinite().all()):
            raise ValueError(
                f"The keys of {self.place} hold a NaN or an infinity. Load the model "
                "in float32 or bfloat16, and look whether its weights are finite."
            )
        total = self.total.to(rows.device) + (rows.T @ rows).double()
        return replace(self, total=total, count=self.count + len(rows))

    def remember(self, keys: Float[Tensor, "d_in n"]) -> "SecondMoment":
        """The same with the keys of facts that have been written, one per column.

        What has been computed of C is kept.

        Raises:
            ValueError: if the keys have another size.
        """
        self._check_size(len(keys))
        keys = keys.detach().double()
        past = keys if self.past is None else torch.cat([self.past.to(keys), keys], 1)
        grown = replace(self, past=past, info={**self.info, "past": past.shape[1]})
        grown.__dict__["prepared"] = self.prepared
        return grown

    def _check_size(self, size: int) -> None:
        if size != len(self.total):
            raise ValueError(
                f"Keys of size {size} do not belong to {self}. Take those of the same "
                "layer of the same model."
            )

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """The moment over the tokens of both; `+` is the same.

        Raises:
            ValueError: if they come from different models, tokenizers, layers or key
                sizes, or are shards that have texts in common.
        """
        of_kind("other", other, SecondMoment, "second_moment measures")
        mine, theirs = (
            {"d_in": len(part.total)} | {name: part.info.get(name) for name in SAME}
            for part in (self, other)
        )
        if mine != theirs:
            raise ValueError(
                f"Second moments of different keys cannot be merged: {self} of {mine} "
                f"and {other} of {theirs}. Merge those of one layer of one model."
            )
        info = _joined(self.info, other.info)
        total = self.total + other.total.to(self.total.device)
        count = self.count + other.count
        merged = replace(self, total=total, count=count, info=info)
        return merged if other.past is None else merged.remember(other.past)

    __add__ = merge

    def to(self, device: torch.device | str) -> "SecondMoment":
        """The same on another device."""
        past = None if self.past is None else self.past.to(device)
        return replace(self, total=self.total.to(device), past=past)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float64) -> None:
        """Write it to one safetensors file, which also holds count and origin.

        Args:
            path: the file; it appears only when it is complete.
            dtype: float32 halves the file and rounds C to seven digits.

        Raises:
            ValueError: if the dtype is neither float64 nor float32.
            OSError: if the file cannot be written.

        Book: sec-second-moment
        """
        if dtype not in (torch.float64, torch.float32):
            raise ValueError(
                f"A second moment is kept in float64 or float32; got dtype={dtype}. "
                "Others would lose its inverse."
            )
        path = a_file(path)
        metadata = {
            "format": FORMAT,
            "count": str(self.count),
            "info": json.dumps(dict(self.info), sort_keys=True),
        }
        tensors = {"total": self.total} | (
            {} if self.past is None else {"past": self.past}
        )
        tensors = {name: x.cpu().to(dtype).contiguous() for name, x in tensors.items()}
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "SecondMoment":
        """Read what `save` has written.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is truncated, damaged or of another kind.

        Book: sec-second-moment
        """
        path = a_path("path", path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No second moment at {str(path)!r}. Measure one with second_moment "
                "and keep it with save."
            )
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                known = file.keys() if metadata.get("format") == FORMAT else ()
                found = {name: file.get_tensor(name).double() for name in known}
            if found:
                return cls._read(found, metadata)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path.name} ({path.stat().st_size} bytes) is truncated or damaged "
                f"({error}). Copy it again, or measure the second moment anew."
            ) from None
        raise ValueError(
            f"{path.name} is not a second moment: its format is "
            f"{metadata.get('format')!r}, not {FORMAT!r}. Give one that save wrote."
        )

    @classmethod
    def _read(
        cls,
        found: Mapping[str, Float[Tensor, "..."]],
        metadata: Mapping[str, str],
    ) -> "SecondMoment":
        total, info = found["total"], json.loads(metadata["info"])
        if not isinstance(info, dict) or total.shape != (len(total),) * 2:
            shape = tuple(total.shape)
            raise ValueError(f"a total of shape {shape} and an origin {shown(info)}")
        return cls(total, int(metadata["count"]), info, found.get("past"))

    def __repr__(self) -> str:
        size = len(self.total)
        past = "" if self.past is None else f", {self.past.shape[1]} earlier keys"
        return f"SecondMoment({size} x {size}, {self.count} tokens, {self.place}{past})"


def _joined(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of two moments together."""
    info = {key: value for key, value in mine.items() if key != "shards"}
    data = [str(part.get("dataset") or "") for part in (mine, theirs)]
    if data[0] != data[1]:
        names = [name for text in data for name in text.split(" and ") if name]
        info["dataset"] = " and ".join(dict.fromkeys(names))
    shards = _shards(mine.get("shards") or {}, theirs.get("shards") or {})
    return info | ({"shards": shards} if shards else {})


def _shards(
    mine: Mapping[str, Sequence[Any]], theirs: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """The shards of both, by what they are shards of; whole ones are left out."""
    found: dict[str, list[Any]] = {}
    for name in {**mine, **theirs}:
        ours, others = mine.get(name, ()), theirs.get(name, ())
        for (i, n), (j, m) in product(ours, others):
            if (i - j) % gcd(n, m) == 0:
                raise ValueError(
                    f"Shard {i} of {n} and shard {j} of {m} of {name!r} have texts in "
                    "common, which would count twice. Merge each shard once."
                )
        parts = sorted([*ours, *others])
        if sum(Fraction(1, n) for _, n in parts) < 1:
            found[name] = parts
    return found
