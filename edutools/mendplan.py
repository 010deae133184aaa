"""What training MEND's editors will hold in memory, before it starts."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from edutools.arch import n_layers, oriented, submodule
from edutools.editors import mlp_maps
from edutools.mendfit import Training

__all__ = ["MemoryPlan", "editor_size", "memory_plan"]

TOKENS = 32  # per text, padding included, where nothing better is known
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose.

    Book: sec-mend-training

    >>> print(MemoryPlan({"model": 6 * 2**30, "networks": 2**29}))
    model                              6.00 GiB
    networks                           0.50 GiB
    together                           6.50 GiB
    """

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        rows = [*self.parts.items(), ("together", self.total)]
        return "\n".join(f"{name:<32} {_readable(size)}" for name, size in rows)

    def announce(self, *, progress: bool) -> None:
        """Log the plan; with progress also show it on the terminal's error stream."""
        LOG.info("memory plan of MEND's training:\n%s", self)
        if progress:
            tqdm.write(str(self), file=sys.stderr)


def _readable(size: int) -> str:
    if size >= 2**28:
        return f"{size / 2**30:>10.2f} GiB"
    return f"{size / 2**20:>10.2f} MiB"


def editor_size(
    shapes: Sequence[tuple[int, int]],
    *,
    rank: int,
    blocks: int,
    combine: bool,
    shared: bool,
    **_: Any,
) -> int:
    """Number of learned values in the editors of weights of these shapes."""
    groups = {shape: shapes.count(shape) for shape in shapes}
    per_editor = list(groups.items()) if shared else [(shape, 1) for shape in shapes]
    total = len(shapes)  # the rates
    for (d_out, d_in), modes in per_editor:
        for size in [d_out + d_in] if combine else [d_in, d_out]:
            total += blocks * (2 * size * rank + size + 2 * modes * size)
    return total


def memory_plan(
    model: PreTrainedModel,
    layers: Sequence[int],
    training: Training,
    **networks: Any,
) -> MemoryPlan:
    """What training editors for these layers will need; activations are an estimate.

    The estimate counts, for texts of 32 tokens, what autograd keeps of the edited pass:
    from the lowest edited layer upwards about 34 values per token, layer and unit of
    width, and the scores of all words at the answers.

    Args:
        model: may be on the meta device.
        layers: whose MLP weights are edited.
        training: how many edits and texts a step takes.
        networks: settings of the editors.

    Book: sec-mend-training
    """
    maps = [oriented(submodule(model, n)) for at in layers for n in mlp_maps(model, at)]
    shapes = [(weight.shape[0], weight.shape[1]) for weight in maps]
    learned = 4 * editor_size(shapes, **networks)
    width = model.config.get_text_config().hidden_size
    rows = training.edits * (training.rephrasings + training.neighbors)
    size = model.dtype.itemsize
    above = n_layers(model) - min(layers)
    tokens = training.edits * TOKENS
    return MemoryPlan(
        {
            "model": sum(p.numel() * p.dtype.itemsize for p in model.parameters()),
            "editor networks": learned,
            "their gradients and Adam": 3 * learned,
            "their best state so far": learned,
            "gradient factors": 16 * tokens * sum(sum(shape) for shape in shapes),
            "activations (estimate)": rows * TOKENS * above * 34 * width * size
            + 12 * rows * model.config.vocab_size,
        }
    )
