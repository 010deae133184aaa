"""Reading folders of numbers recorded from the original implementations.

Nothing here knows how many requests, layers or contexts a folder has, or how its models
are called: everything is read from the files, and what is missing is skipped.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edutools.contexts import Contexts
from edutools.facts import Fact
from edutools.keyvalue import ValueSearch
from edutools.secondmoment import SecondMoment

Tensors = dict[str, torch.Tensor]


@cache
def model_of(folder: Path) -> PreTrainedModel:
    """The model that the numbers of a folder were recorded on."""
    place = folder.parent / "models" / folder.name
    model = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager")
    return model.eval()


@cache
def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(folder.parent / "models" / folder.name)


@cache
def json_of(path: Path) -> Any:
    """What is in a file; skips the test if there is none."""
    if not path.exists():
        pytest.skip(f"no {path.name} in this folder")
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def tensors_of(path: Path) -> Tensors:
    """Tensors by name; none if there is no file."""
    return load_file(path) if path.exists() else {}


@dataclass(frozen=True)
class Record:
    """One recorded file: its JSON, its tensors, and the model it belongs to.

    Args:
        path: the file without its suffix.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the file, without suffix."""
        return self.path.name

    @property
    def kind(self) -> str:
        """Name of the model's folder."""
        return self.path.parent.name

    @property
    def data(self) -> dict[str, Any]:
        """The JSON."""
        return json_of(self.path.with_name(f"{self.name}.json"))

    @property
    def tensors(self) -> Tensors:
        """The tensors by name."""
        return tensors_of(self.path.with_name(f"{self.name}.safetensors"))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in float64; skips the test if there is none."""
        if name not in self.tensors:
            pytest.skip(f"no {name} in {self.name}")
        return self.tensors[name].double()

    @property
    def layers(self) -> list[int]:
        """The layers that the tensors' names tell."""
        found = (re.match(r"layer(\d+)\.", name) for name in self.tensors)
        return sorted({int(match[1]) for match in found if match})

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return model_of(self.path.parent)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return tokenizer_of(self.path.parent)

    @property
    def both(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer."""
        return self.model, self.tokenizer

    @property
    def common(self) -> dict[str, Any]:
        """The inputs that all files share."""
        return json_of(self.path.parent.parent / "facts.json")

    @property
    def texts(self) -> list[str]:
        """The texts of the second moment."""
        return json_of(self.path.parent.parent / "texts.json")

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters."""
        return self.data["hparams"]

    @cached_property
    def facts(self) -> list[Fact]:
        """The requests, written out or as `facts.json:facts[first:end]`."""
        records = self.data["requests"]
        if isinstance(records, str):
            first, end = map(int, re.findall(r"\[(\d+):(\d+)\]", records)[0])
            records = self.common["facts"][first:end]
        return [fact_of(record) for record in records]

    @cached_property
    def contexts(self) -> Contexts:
        """The templates over which keys and values were averaged."""
        told = self.data.get("templates") or self.data.get("memit_templates")
        groups = told or self.common["memit_templates"]
        if isinstance(groups[0], str):
            return Contexts(given=tuple(groups))
        if len(groups) > 2:
            pytest.skip(f"{len(groups)} groups of templates; two have an option")
        texts = tuple(text for group in groups for text in group)
        return Contexts(given=texts, average="grouped")

    def beside(self, pattern: str) -> "list[Record]":
        """The files of this name in the same folder."""
        found = sorted(self.path.parent.glob(f"{pattern}.json"))
        return [Record(path.with_suffix("")) for path in found]

    def search(self, site: str) -> ValueSearch:
        """The search that the hyperparameters describe."""
        told = self.settings
        if told.get("fact_token", "subject_last") != "subject_last":
            pytest.skip(f"keys at {told['fact_token']!r} are not part of the methods")
        return ValueSearch(
            site=site,
            steps=told["v_num_grad_steps"],
            lr=float(told["v_lr"]),
            weight_decay=float(told["v_weight_decay"]),
            kl=float(told["kl_factor"]),
            clamp=float(told["clamp_norm_factor"]),
            essence="subject",
            contexts=self.contexts,
        )

    def moments(self, layers: list[int], suffix: str = "") -> dict[int, SecondMoment]:
        """The recorded moments of these layers, of a variant of them if there is one.

        Skips the test if one is missing.
        """
        other = Record(self.path.parent / "3_second_moment")
        about, found = other.data["layers"], {}
        for layer in layers:
            plain = f"layer{layer}.moment_f32"
            matrix = other.tensors.get(plain + suffix, other.tensors.get(plain))
            if matrix is None:
                pytest.skip(f"no second moment of layer {layer} in this folder")
            count = about[f"{layer}.float32"]["count"]
            found[layer] = SecondMoment(matrix.double() * count, count)
        return found


def fact_of(record: dict[str, Any]) -> Fact:
    """One editing request."""
    return Fact(
        subject=record["subject"],
        prompt=record["prompt"],
        target=record["target_new"]["str"],
        truth=record["target_true"]["str"],
    )


def records(golden: Path, pattern: str, *, weights: bool) -> list[Record]:
    """The files of this name in all folders whose model (or tokenizer) is there."""
    needed = "model.safetensors" if weights else "tokenizer.json"
    return [
        record
        for place in sorted(golden.glob(f"models/*/{needed}"))
        for record in Record(golden / place.parent.name / "any").beside(pattern)
    ]


def relative(
    found: torch.Tensor | float, wanted: torch.Tensor | float, *, least: float = 0.0
) -> float:
    """The norm of the difference over the norm of what was recorded, or over `least`.

    Float32 leaves nothing relative of what is zero but for rounding.
    """
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    scale = max(float(wanted.norm()), least)
    return float((found - wanted).norm()) / (scale or 1.0)


@dataclass
class Table:
    """The largest error of each quantity and model, and where we differ on purpose."""

    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    differences: dict[tuple[str, str], float] = field(default_factory=dict)

    def check(self, quantity: str, kind: str, error: float, bound: float) -> None:
        """Note an error and demand that it keeps its bound."""
        row = self.errors.setdefault((quantity, kind), [0.0, bound, 0])
        row[0], row[1] = max(row[0], error), max(row[1], bound)
        row[2] += 1
        assert error <= bound, f"{quantity}: {error:.1e} > {bound:.1e}"

    def compare(
        self,
        quantity: str,
        record: Record,
        name: str,
        found: torch.Tensor,
        bound: float,
        *,
        least: float = 0.0,
    ) -> None:
        """Demand that a tensor is the recorded one, if the file has it."""
        if name in record.tensors:
            error = relative(found, record.tensors[name], least=least)
            self.check(quantity, record.kind, error, bound)

    def same(self, quantity: str, kind: str, found: Any, wanted: Any) -> None:
        """Demand that both are equal: indices, booleans, tokens."""
        self.check(quantity, kind, 0.0, 0.0)
        assert found == wanted, quantity

    def differs(self, what: str, kind: str, size: float, least: float) -> None:
        """Note how far our default is from an original; it must be visible."""
        row = what, kind
        self.differences[row] = max(self.differences.get(row, 0.0), size)
        assert size > least, f"{what}: {size:.1e} is no difference"

    def write(self, line: Callable[[str], None]) -> None:
        """Print both tables."""
        line("")
        line(f"{'quantity':<44} {'model':<12} {'compared':>8} {'error':>8}  bound")
        for (quantity, kind), (error, bound, n) in sorted(self.errors.items()):
            shown = f"{error:8.1e}  {bound:.0e}" if bound else "   exact"
            line(f"{quantity:<44} {kind:<12} {n:8} {shown}")
        line("")
        line(f"{'where a default differs, or a bug was':<44} {'model':<12} by at most")
        for (what, kind), size in sorted(self.differences.items()):
            line(f"{what:<44} {kind:<12} {size:.1e}")
