"""What an edit will need, before anything is loaded: bytes, operations, known times.

The estimates take the worst moment of each part of the work. They leave out what torch
and its kernels take for themselves; on a GPU keep a tenth free.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from edutools.arch import check_layer
from edutools.checks import number, of_kind
from edutools.finetune import FineTune
from edutools.measured import Measured, measured
from edutools.mend import MEND
from edutools.method import Method
from edutools.outline import outline
from edutools.phase import Phase, Scale, write_shape
from edutools.phases import (
    apply_phase,
    evaluation_phase,
    moments_phase,
    search_phase,
    solve_phase,
)
from edutools.tuneplan import mend_phase, mlp_shapes, training_phase, tuning_phase

__all__ = ["Phase", "Plan", "Scale", "available", "plan", "readable_size"]

UNITS = {"GIB": 2**30, "MIB": 2**20, "GB": 10**9, "MB": 10**6}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What writing facts into a model will need.

    Attributes:
        model: its name.
        dtype: of its weights.
        method: name and settings.
        scale: how much there is to do.
        weights: bytes of the model.
        values: how many weights it has.
        phases: the parts of the work in their order.

    Book: sec-planning
    """

    model: str
    dtype: torch.dtype
    method: dict[str, Any]
    scale: Scale
    weights: int
    values: int
    phases: tuple[Phase, ...]

    @property
    def worst(self) -> Phase:
        """The part that needs most where the model is."""
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def peak(self) -> int:
        """Bytes where the model is, weights included, at the worst moment."""
        return self.weights + self.worst.peak

    @property
    def host_peak(self) -> int:
        """Bytes in the main memory beside that, at the worst moment."""
        return max(phase.host_peak for phase in self.phases)

    def times(self) -> dict[str, Measured | None]:
        """How long a unit of each part took where it was measured, by its name."""
        name = self.method["method"]
        return {p.name: measured(self.model, name, p.name) for p in self.phases}

    def check(self, memory: int, *, shared: bool = False) -> None:
        """Refuse what does not fit.

        Args:
            memory: bytes there are where the model is.
            shared: whether the main memory is the same one, as on a CPU.

        Raises:
            ValueError: says how much is needed, how much is there, and what helps.
        """
        number("memory", memory, int, positive=True)
        extra = [p.floor + (p.host_peak if shared else 0) for p in self.phases]
        need = self.weights + max(extra)
        if need <= memory:
            return
        worst = self.phases[extra.index(max(extra))]
        facts = f"{self.scale.facts} fact{'s' if self.scale.facts > 1 else ''}"
        kind = str(self.dtype).removeprefix("torch.")
        raise ValueError(
            f"{self.method['method']} of {facts} on {self.model!r} in {kind} needs "
            f"{readable_size(need)}, most of all for {worst.name}; there are "
            f"{readable_size(memory)}. {self._advice(worst, memory)}"
        )

    def _advice(self, worst: Phase, memory: int) -> str:
        """What makes it smaller, the smallest sacrifice first."""
        tips = []
        if self.weights < memory:
            tips.append(worst.advice)
        if self.dtype.itemsize > 2:
            tips.append(f"load it in bfloat16 ({readable_size(2 * self.values)})")
        tips.append("spread it over several devices with device_map='auto'")
        text = ", or ".join(tips)
        return f"{text[0].upper()}{text[1:]}."


def plan(
    model: PreTrainedModel | str | Path,
    *,
    method: Method,
    scale: Scale | None = None,
    memory: int | None = None,
) -> Plan:
    """Tell what writing facts will need; nothing is loaded or computed.

    Args:
        model: a name as of `outline`, or a model, which is only looked at.
        method: with its layers.
        scale: how much there is to do; one fact by default.
        memory: bytes where the model will be. The value search takes as many facts
            together as half of what is left there holds.

    Raises:
        TypeError: if the method is something else.
        ValueError: if a number is too small, or the model lacks a layer.

    Book: sec-planning

    >>> from edutools import MEMIT
    >>> found = plan("pocket-gptj", method=MEMIT.preset("pocket-gptj"))
    >>> [phase.name for phase in found.phases][:3]
    ['second moments', 'value search', 'keys and solve']
    """
    of_kind("method", method, Method, "MEMIT(layers=(3, 4, 5))")
    scale = scale or Scale()
    for name in ("facts", "tokens", "answer", "batch_tokens", "batch_size"):
        number(name, getattr(scale, name), int, least=1)
    number("moment_tokens", scale.moment_tokens, int, least=0)
    shape = model if isinstance(model, PreTrainedModel) else outline(model)
    if not shape.device.type == "meta":
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(shape.config, dtype=shape.dtype)
        shape.eval().requires_grad_(False)
    layers = sorted(check_layer(shape, x) for x in method.edited())
    values = sum(p.numel() for p in shape.parameters())
    weights = values * shape.dtype.itemsize
    room = None if memory is None else memory - weights
    return Plan(
        model=str(getattr(model, "name_or_path", "") or model.config.model_type)
        if isinstance(model, PreTrainedModel)
        else str(model),
        dtype=shape.dtype,
        method=method.to_dict(),
        scale=scale,
        weights=weights,
        values=values,
        phases=tuple(_phases(shape, method, layers, scale, room)),
    )


def _phases(
    model: PreTrainedModel,
    method: Method,
    layers: list[int],
    scale: Scale,
    room: int | None,
) -> Iterator[Phase]:
    """The parts of the work in the order in which they are done."""
    if method.needs_moments and scale.moment_tokens:
        yield moments_phase(model, layers, scale)
    i, o = write_shape(model, layers)
    shapes, rank = [(o, i)] * len(layers), scale.facts
    if isinstance(method, FineTune):
        yield tuning_phase(model, method, scale)
        rank = min(shapes[0])
    elif isinstance(method, MEND):
        if method.editors is None:
            yield training_phase(model, method, scale)
        yield mend_phase(model, method, scale)
        shapes = mlp_shapes(model, layers)
        rank = scale.facts * (scale.tokens + scale.answer - 1)
    else:
        yield search_phase(model, method, scale, room)
        yield solve_phase(model, method, layers, scale)
    yield apply_phase(model, shapes, rank)
    yield evaluation_phase(model, scale)


def readable_size(size: int) -> str:
    """Bytes as GiB, or as MiB where they are few.

    Book: sec-planning

    >>> readable_size(3 * 2**29), readable_size(2**20)
    ('1.5 GiB', '1.0 MiB')
    """
    if size >= 2**28:
        return f"{size / 2**30:,.1f} GiB"
    return f"{size / 2**20:,.1f} MiB"


def available(text: str) -> tuple[int, bool]:
    """How many bytes of memory are meant, and whether CPU and model share them.

    Args:
        text: '24GB' (10⁹ bytes each), '22.5GiB' (2³⁰), 'MB', 'MiB', or 'auto' for what
            the first GPU has, or without one the main memory.

    Raises:
        ValueError: if it is something else.

    Book: sec-planning

    >>> available("24GB")
    (24000000000, False)
    """
    if text == "auto":
        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[1], False
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), True
    plain = text.strip().upper()
    for unit, size in UNITS.items():
        digits = plain.removesuffix(unit).strip()
        if plain.endswith(unit) and digits.replace(".", "", 1).isdecimal():
            return int(float(digits) * size), False
    raise ValueError(
        f"The memory is {text!r}; write it as '24GB', '22.5GiB' or 'auto'."
    )
