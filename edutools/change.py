"""Edits as values: what changes in which weight; apply it, undo it, keep it, share it.

An edit does not touch a model until it is applied, and every application can be undone
bit for bit, because the weights are copied and not computed back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edutools.arch import oriented, submodule
from edutools.checks import of_kind
from edutools.folder import load_folder, push_folder, save_folder
from edutools.loaded import a_model, in_memory
from edutools.places import a_path
from edutools.provenance import fingerprints, provenance, recognized
from edutools.solve import LowRank

__all__ = ["Edit", "edit_info", "weight_at"]

Saved = dict[str, Float[Tensor, "d_out d_in"]]


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """The changes of some weights, by module name, and where they come from.

    Args:
        deltas: module name -> change, oriented as (output, input). Kept in float32. A
            name with '.bias' behind it is that of a bias, whose change is one column.
        info: method, facts, model, fingerprints, versions, diagnostics; JSON values.

    Raises:
        ValueError: if a change holds a NaN or an infinity.

    Book: sec-edits-as-values

    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> before = net[0].weight.clone()
    >>> with Edit({"0": LowRank(torch.ones(3, 1), torch.ones(1, 2))}).applied(net):
    ...     print((net[0].weight - before).mean().item())
    1.0
    >>> torch.equal(net[0].weight, before)
    True
    """

    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        of_kind("deltas", self.deltas, Mapping, "{'lm_head': LowRank(left, right)}")
        for name, delta in self.deltas.items():
            of_kind(f"deltas[{name!r}]", delta, LowRank, "LowRank(left, right)")
        kept = {name: delta.to(torch.float32) for name, delta in self.deltas.items()}
        for name, delta in kept.items():
            if not bool(delta.left.isfinite().all() & delta.right.isfinite().all()):
                raise ValueError(
                    f"The change of {name} holds a NaN or an infinity and would ruin "
                    "the model. Look at the keys, values and moments it was made of."
                )
        object.__setattr__(self, "deltas", kept)

    def apply_(self, model: nn.Module, *, strict: bool = True) -> Callable[[], None]:
        """Change the model's weights; return the function that undoes it.

        Undo restores the weights bit for bit. Edits are undone in the reverse of the
        order in which they were applied. Tied weights stay tied.

        Args:
            model: the model to change, in place.
            strict: refuse a model whose weights are not those the edit was made for.

        Raises:
            TypeError: if it is no model.
            LookupError: if the model has no module of a name.
            ValueError: if a shape does not fit, the weights are others (`strict`), or
                the changed weights overflow the model's dtype. The model is left whole.
            RuntimeError: from undo, if it is not this edit's turn.

        Book: sec-edits-as-values
        """
        a_model(model)
        self._check(model, model.__dict__.get("_applied_edits", []), strict)
        stack: list[Saved] = model.__dict__.setdefault("_applied_edits", [])
        saved: Saved = {}
        try:
            for name, delta in self.deltas.items():
                weight = weight_at(model, name)
                saved[name] = weight.clone()
                _add(weight, delta, name)
        except BaseException:
            _restore(model, saved)
            raise
        stack.append(saved)

        def undo() -> None:
            if not any(entry is saved for entry in stack):
                raise RuntimeError("This edit has been undone already.")
            if stack[-1] is not saved:
                raise RuntimeError(
                    "This edit is not the last one applied to the model; undo the "
                    "later ones first."
                )
            _restore(model, stack.pop())

        return undo

    @contextmanager
    def applied(self, model: nn.Module, *, strict: bool = True) -> Iterator[None]:
        """Change the model's weights inside a `with` block only.

        If an exception flies, later edits that were applied inside the block are
        undone as well.

        Raises:
            LookupError, ValueError, RuntimeError: as `apply_`.

        Book: sec-edits-as-values
        """
        undo = self.apply_(model, strict=strict)
        stack: list[Saved] = model.__dict__["_applied_edits"]
        mine = len(stack)
        try:
            yield
        except BaseException:
            while len(stack) > mine:
                _restore(model, stack.pop())
            undo()
            raise
        undo()

    def __add__(self, other: "Edit") -> "Edit":
        """Both changes at once, to be applied where the first one can be."""
        if not isinstance(other, Edit):
            return NotImplemented
        both = {
            name: self.deltas[name] + delta if name in self.deltas else delta
            for name, delta in other.deltas.items()
        }
        return Edit({**self.deltas, **both}, _joined(self.info, other.info))

    @property
    def rank(self) -> int:
        """The largest rank among the changes."""
        return max((delta.rank for delta in self.deltas.values()), default=0)

    def norms(self) -> dict[str, float]:
        """Frobenius norm of each change."""
        return {name: delta.norm() for name, delta in self.deltas.items()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, and PEFT as a LoRA adapter, can read.

        Raises:
            TypeError: if `info` holds what JSON cannot keep.
            OSError: if the folder cannot be made or written to.

        Book: sec-sharing-edits
        """
        save_folder(self.deltas, self.info, a_path("folder", folder))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None
    ) -> "Edit":
        """Read an edit from a folder, or by its Hub id.

        Raises:
            FileNotFoundError: if neither exists.
            ValueError: if a file is truncated or damaged.

        Book: sec-sharing-edits
        """
        return cls(*load_folder(folder, revision=revision))

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Upload the folder; return its address. Private unless said otherwise.

        The card lists the facts and says that they may be false.

        Book: sec-sharing-edits
        """
        return push_folder(self.deltas, self.info, repo_id, private=private)

    def _check(self, model: nn.Module, stack: list[Saved], strict: bool) -> None:
        known = self.info.get("fingerprints", {}) if strict else {}
        for name, delta in self.deltas.items():
            weight = weight_at(model, name)
            if tuple(weight.shape) != delta.shape:
                raise ValueError(
                    f"The change of {name} has shape {delta.shape}; the weight of this "
                    f"model has {tuple(weight.shape)}. Load the model it was made for."
                )
            in_memory(name, weight)
            states = [weight, *(entry[name] for entry in stack if name in entry)]
            if name in known and not any(recognized(s, known[name]) for s in states):
                made_for = self.info.get("model") or "another model"
                raise ValueError(
                    f"This edit was made for {made_for!r} (revision "
                    f"{self.info.get('revision')}); layer {name} of the given model "
                    "differs from it. Load that model, or pass strict=False to apply "
                    "anyway."
                )

    def __repr__(self) -> str:
        facts = len(self.info.get("facts", ()))
        method = self.info.get("method", {}).get("method", "unnamed")
        weights = len(self.deltas)
        return f"Edit({method}, {facts} facts, {weights} weights, rank {self.rank})"


def edit_info(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Any]:
    """Return what an edit of these modules has to remember of the model.

    To be called on the unedited model; `Edit.info` is this and what the method adds.

    Book: sec-edits-as-values
    """
    names = list(names)
    modules = dict(model.named_modules())
    return provenance(model) | {
        "fingerprints": {name: fingerprints(weight_at(model, name)) for name in names},
        "transposed": [name for name in names if isinstance(modules.get(name), Conv1D)],
    }


def weight_at(model: nn.Module, name: str) -> Float[Tensor, "d_out d_in"]:
    """Return what an edit of this name changes, as a view: a weight, or a bias.

    Args:
        model: the model.
        name: of a linear map; or of its bias, which is one column wide.

    Raises:
        LookupError: if there is no such module, or it has no bias.

    Book: sec-edits-as-values

    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> weight_at(net, "0").shape, weight_at(net, "0.bias").shape
    (torch.Size([3, 2]), torch.Size([3, 1]))
    """
    place, _, last = name.rpartition(".")
    if last != "bias":
        return oriented(submodule(model, name))
    bias = getattr(submodule(model, place), "bias", None)
    if not isinstance(bias, Tensor):
        raise LookupError(
            f"{place} has no bias in this model, but the edit changes one. Load the "
            "model it was made for."
        )
    return bias.detach()[:, None]


def _add(weight: Float[Tensor, "d_out d_in"], delta: LowRank, name: str) -> None:
    """weight += delta, rounded once to the weight's dtype."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    change = delta.to(weight.device).to(exact).dense()
    new = (weight.to(exact) + change).to(weight.dtype)
    if not bool(new.isfinite().all()):
        raise ValueError(
            f"The edited weight of {name} overflows {weight.dtype}. Load the model in "
            "bfloat16 or float32."
        )
    weight.copy_(new)


def _restore(model: nn.Module, saved: Saved) -> None:
    for name in reversed(saved):  # two names may share one weight
        weight_at(model, name).copy_(saved[name])


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Facts and fingerprints of both; everything else stays with its part."""
    if not first or not second:
        return dict(first or second)
    parts = [*first.get("parts", [dict(first)]), *second.get("parts", [dict(second)])]
    names = ("model", "revision", "model_type", "dtype", "versions")
    return {name: first[name] for name in names if name in first} | {
        "facts": [*first.get("facts", []), *second.get("facts", [])],
        "fingerprints": {
            **second.get("fingerprints", {}),
            **first.get("fingerprints", {}),
        },
        "transposed": sorted(
            {*first.get("transposed", []), *second.get("transposed", [])}
        ),
        "parts": parts,
    }
