"""A codebook beside one block: near its keys it decides what the block puts out.

Axes: entries of the codebook · tokens · d_model size of the residual stream.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from edutools.arch import submodule
from edutools.checks import shown
from edutools.hooks import capture, patch
from edutools.loaded import embedding_weight
from edutools.places import a_file, a_path
from edutools.provenance import fingerprints, recognized

__all__ = ["Codebook", "embedding_of"]

FORMAT = "edutools codebook 1"
SLACK = 1e-3  # share of a distance that keeps a key inside in spite of rounding


@dataclass(frozen=True, eq=False, repr=False)
class Codebook:
    """What a block shall put out when its input comes near to a key.

    Args:
        module: name of the block.
        keys: inputs of the block, one row per entry.
        values: what it puts out instead.
        radii: how near an input must come, ε.
        targets: what each entry makes the model say.
        info: method, facts, model.

    Raises:
        ValueError: if the numbers of entries differ, or a number is not finite.

    Book: sec-context-methods
    """

    module: str
    keys: Float[Tensor, "entries d_model"]
    values: Float[Tensor, "entries d_model"]
    radii: Float[Tensor, " entries"]
    targets: tuple[str, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.keys, self.values, self.radii, self.targets)
        if len({len(part) for part in parts}) > 1:
            raise ValueError(
                "A codebook needs one key, value, radius and target per entry; got "
                f"{[len(part) for part in parts]}."
            )
        if not all(bool(part.isfinite().all()) for part in parts[:3]):
            raise ValueError(
                "The codebook holds a NaN or an infinity. Lower GRACE.lr, or load the "
                "model in float32 or bfloat16."
            )

    def __len__(self) -> int:
        return len(self.keys)

    def entries(self, states: Float[Tensor, "... d_model"]) -> Int[Tensor, "..."]:
        """Which entry answers each state: the nearest, if it is within ε; else -1."""
        if not len(self):
            return torch.full(states.shape[:-1], -1, device=states.device)
        keys, radii = self.keys.to(states.device), self.radii.to(states.device)
        flat = states.detach().to(keys.dtype).flatten(0, -2)
        # The fast way by matrix products loses the digits of small distances.
        exact = "donot_use_mm_for_euclid_dist"
        near, which = torch.cdist(flat, keys, compute_mode=exact).min(1)
        return torch.where(near <= radii[which], which, -1).view(states.shape[:-1])

    def replaced(
        self,
        states: Float[Tensor, "... d_model"],
        outputs: Float[Tensor, "... d_model"],
    ) -> Float[Tensor, "... d_model"]:
        """The block's outputs with the values of the entries that its inputs hit."""
        which = self.entries(states).to(outputs.device)
        if not bool((which >= 0).any()):
            return outputs
        values = self.values.to(outputs)[which]  # (..., d_model)
        return torch.where((which >= 0)[..., None], values, outputs)

    @contextmanager
    def applied(self, model: PreTrainedModel, *, strict: bool = True) -> Iterator[None]:
        """Let the model look everything up in the codebook inside a `with` block.

        Every token asks for itself, whatever text it stands in; where no key is near,
        the model computes the very same bits as without. Nested codebooks of one block
        ask the same inputs, and the outer one has the last word.

        Args:
            model: its weights stay untouched.
            strict: refuse a model whose token embedding is not that of the model the
                codebook was written for.

        Raises:
            LookupError: if the model has no block of that name.
            ValueError: if the sizes do not fit or the model is another (`strict`).

        Book: sec-context-methods
        """
        submodule(model, self.module)
        size, made_for = model.config.hidden_size, self.info.get("model") or "another"
        if self.keys.shape[1] != size:
            raise ValueError(
                f"The codebook has keys of size {self.keys.shape[1]}; this model's "
                f"blocks read states of size {size}. Load {made_for!r}."
            )
        known = self.info.get("embedding") if strict else None
        if known is not None and not recognized(embedding_weight(model), known):
            raise ValueError(
                f"This codebook was written for {made_for!r}; the token embedding of "
                "the given model differs. Load that model, or pass strict=False."
            )

        def change(outputs: Tensor) -> Tensor:
            return self.replaced(seen[self.module], outputs)

        with (
            capture(model, self.module, inputs=True) as seen,
            patch(model, {self.module: change}),
        ):
            yield

    def added(
        self,
        key: Float[Tensor, " d_model"],
        value: Float[Tensor, " d_model"],
        target: str,
        radius: float,
    ) -> "Codebook":
        """The codebook with room for one more edit.

        Far from all keys (further than the nearest ε and `radius` together) it is a new
        entry. Otherwise: with the nearest key's target, *expand* that entry until it
        holds the key; with another target, *split*: both keys get at most half their
        distance. A key that is there already gets the new value and target.
        """
        new = Codebook(
            self.module, key[None], value[None], key.new_tensor([radius]), (target,)
        )
        if not len(self):
            return self._with(new)
        near, at = (self.keys - key).norm(dim=1).min(0)
        distance, half, i = float(near), float(near) / 2, int(at)
        if distance > float(self.radii[i]) + radius:
            return self._with(new)
        if target == self.targets[i]:
            wide = max(float(self.radii[i]), distance * (1 + SLACK))
            return replace(self, radii=_set(self.radii, i, wide))
        if distance <= SLACK * float(key.norm()):
            return replace(
                self,
                keys=_set(self.keys, i, key),
                values=_set(self.values, i, value),
                targets=(*self.targets[:i], target, *self.targets[i + 1 :]),
            )
        shrunk = replace(
            self, radii=_set(self.radii, i, min(float(self.radii[i]), half))
        )
        return shrunk._with(replace(new, radii=new.radii.clamp(max=half)))

    def save(self, path: str | Path) -> None:
        """Write it to one safetensors file, which also holds targets and origin.

        Args:
            path: the file; it appears only when it is complete.

        Book: sec-context-methods
        """
        path = a_file(path)
        names = ("keys", "values", "radii")
        tensors = {name: getattr(self, name).cpu().contiguous() for name in names}
        told = {"module": self.module, "targets": self.targets, "info": dict(self.info)}
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, {"format": FORMAT, "told": json.dumps(told)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Codebook":
        """Read what `save` has written.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is truncated, damaged or of another kind.

        Book: sec-context-methods
        """
        path = a_path("path", path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No codebook at {str(path)!r}. Write one with memorize and keep it "
                "with save."
            )
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if metadata.get("format") == FORMAT:
                return cls._read(tensors, metadata)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path.name} ({path.stat().st_size} bytes) is truncated or damaged "
                f"({error}). Copy it again, or write the codebook anew."
            ) from None
        raise ValueError(
            f"{path.name} is not a codebook: its format is "
            f"{metadata.get('format')!r}, not {FORMAT!r}. Give one that save wrote."
        )

    @classmethod
    def _read(
        cls, tensors: Mapping[str, Float[Tensor, "..."]], metadata: Mapping[str, str]
    ) -> "Codebook":
        told = json.loads(metadata["told"])
        module, targets, info = told["module"], tuple(told["targets"]), told["info"]
        marks = info.get("embedding") if isinstance(info, dict) else info
        if marks is not None and not isinstance(marks, (str, list)):
            raise ValueError(f"the part 'info' is {shown(info)}")
        return cls(module, **tensors, targets=targets, info=info)

    def __repr__(self) -> str:
        return f"Codebook({self.module}, {len(self)} entries)"

    def _with(self, other: "Codebook") -> "Codebook":
        """The entries of both."""
        return replace(
            self,
            keys=torch.cat([self.keys, other.keys]),
            values=torch.cat([self.values, other.values]),
            radii=torch.cat([self.radii, other.radii]),
            targets=self.targets + other.targets,
        )


def embedding_of(model: PreTrainedModel) -> list[str]:
    """The fingerprints of the token embedding, by which a codebook knows its model."""
    return fingerprints(embedding_weight(model))


def _set(
    rows: Float[Tensor, "entries ..."], i: int, new: Float[Tensor, "..."] | float
) -> Float[Tensor, "entries ..."]:
    """A copy with one row replaced."""
    rows = rows.clone()
    rows[i] = new
    return rows
