"""One part of the work on an edit, and how much of it there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from edutools.arch import architecture_of, oriented, submodule
from edutools.mendfit import Training

__all__ = ["ADVICE", "READ", "Phase", "Scale", "Shapes", "write_shape"]

Bytes = Mapping[str, int]
Shapes = list[tuple[int, int]]
READ = 64  # texts per pass that reads keys and states, or scores answers
ADVICE = {
    "moments": "lower batch_tokens, measure fewer layers at once",
    "search": "take fewer contexts, or shorter ones",
    "solve": "edit fewer layers, write fewer facts at once",
    "tune": "lower FineTune.batch_size, edit fewer layers",
    "mend": "write fewer facts at once, lower MEND.rank",
    "training": "lower MEND.rank and Training.edits, edit fewer layers",
    "apply": "write fewer facts at once",
    "evaluation": "lower batch_size",
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much there is to do.

    Attributes:
        facts: to write.
        tokens: of a fact's prompt.
        answer: tokens of an answer.
        moment_tokens: tokens that second moments are measured on; 0 if they are known.
        batch_tokens: tokens per pass of that.
        batch_size: texts per pass of an evaluation.
        training: of MEND's networks, if they are not trained.

    Book: sec-planning
    """

    facts: int = 1
    tokens: int = 16
    answer: int = 2
    moment_tokens: int = 100_000
    batch_tokens: int = 4096
    batch_size: int = READ
    training: Training = field(default_factory=Training)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of the work.

    Attributes:
        name: what it is.
        device: bytes beside the weights, where the model is, by purpose.
        host: bytes in the main memory, by purpose.
        least: `peak`, where the work makes itself smaller if there is less room.
        units: how much there is to do.
        unit: in what that is counted.
        flops: operations of matrix products, at most.
        advice: what makes it smaller.

    Book: sec-planning
    """

    name: str
    device: Bytes
    host: Bytes = field(default_factory=dict)
    least: int | None = None
    units: int
    unit: str
    flops: int
    advice: str

    @property
    def peak(self) -> int:
        """Bytes beside the weights, where the model is."""
        return sum(self.device.values())

    @property
    def floor(self) -> int:
        """Bytes without which it cannot be done."""
        return self.peak if self.least is None else self.least

    @property
    def host_peak(self) -> int:
        """Bytes in the main memory."""
        return sum(self.host.values())


def write_shape(model: PreTrainedModel, layers: Sequence[int]) -> tuple[int, int]:
    """(i, o) of the write map; alike in all layers.

    Book: sec-planning
    """
    o, i = oriented(submodule(model, architecture_of(model).write(layers[0]))).shape
    return i, o
