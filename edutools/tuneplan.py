"""What editors that descend need: fine-tuning, and MEND with its training."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from edutools.arch import architecture_of, oriented, submodule
from edutools.editors import mlp_maps
from edutools.finetune import FineTune
from edutools.mend import CHUNK, MEND
from edutools.mendplan import editor_size
from edutools.phase import ADVICE, Phase, Scale, Shapes, write_shape
from edutools.rehearse import Layout, descending, tracing_back

__all__ = ["mend_phase", "mlp_shapes", "training_phase", "tuning_phase"]


def tuning_phase(model: PreTrainedModel, method: FineTune, scale: Scale) -> Phase:
    """Descend on the weights of some layers.

    Book: sec-planning
    """
    i, o = write_shape(model, method.layers)
    names = [architecture_of(model).write(layer) for layer in method.layers]
    together = min(scale.facts, method.batch_size)
    layout = Layout(together, 1, scale.tokens + scale.answer - 1, scale.answer)
    cost, all_values = descending(model, layout, names), len(names) * i * o
    return Phase(
        name="fine-tuning",
        device={
            "Adam and the last gradient": 12 * all_values,
            "the pass and its gradient": max(cost.peak, 16 * all_values),
        },
        units=scale.facts,
        unit="fact",
        flops=-(-scale.facts // together) * method.steps * cost.flops,
        advice=ADVICE["tune"],
    )


def mlp_shapes(model: PreTrainedModel, layers: Sequence[int]) -> Shapes:
    """(o, i) of all maps in the MLPs of these layers.

    Book: sec-planning
    """
    names = [name for layer in layers for name in mlp_maps(model, layer)]
    shapes = [oriented(submodule(model, name)).shape for name in names]
    return [(shape[0], shape[1]) for shape in shapes]


def _networks(method: MEND) -> dict[str, object]:
    names = ("rank", "blocks", "combine", "shared")
    return {name: getattr(method, name) for name in names}


def training_phase(model: PreTrainedModel, method: MEND, scale: Scale) -> Phase:
    """Train MEND's networks; texts are as long as `mendplan` takes them to be.

    Book: sec-planning
    """
    parts = dict(method.plan(model, training=scale.training).parts)
    del parts["model"]
    training = scale.training
    each = 1 + 2 * training.rephrasings + 3 * training.neighbors  # passes per edit
    length = scale.tokens + scale.answer - 1
    values = sum(p.numel() for p in model.parameters())
    return Phase(
        name="training",
        device=parts,
        units=training.steps,
        unit="step",
        flops=4 * values * training.steps * training.edits * each * length,
        advice=ADVICE["training"],
    )


def mend_phase(model: PreTrainedModel, method: MEND, scale: Scale) -> Phase:
    """Turn the gradients of the facts into changes, by trained networks.

    Book: sec-planning
    """
    names = [name for layer in method.layers for name in mlp_maps(model, layer)]
    shapes, together = mlp_shapes(model, method.layers), min(scale.facts, CHUNK)
    length = scale.tokens + scale.answer - 1
    cost = tracing_back(model, Layout(together, 1, length, scale.answer), names)
    kept = together * (length if method.tokens == "all" else 1)
    learned = editor_size(shapes, **_networks(method))  # type: ignore[arg-type]
    found = {
        "gradient factors": 4 * together * length * sum(map(sum, shapes)),
        "transformed factors": 28 * kept * max(map(sum, shapes)),
        "changes": _changes(shapes, method, scale),
    }
    passing = {"the pass and its gradient": cost.peak}
    held = max(passing, found, key=lambda parts: sum(parts.values()))
    return Phase(
        name="editing",
        device={"editor networks": 4 * learned} | held,
        units=scale.facts,
        unit="fact",
        flops=-(-scale.facts // together) * (cost.flops + 2 * kept * learned),
        advice=ADVICE["mend"],
    )


def _changes(shapes: Shapes, method: MEND, scale: Scale) -> int:
    """Bytes of the factors: a chunk has one rank per token, or is kept as a matrix."""
    length = scale.tokens + scale.answer - 1 if method.tokens == "all" else 1
    total, left = 0, scale.facts
    while left > 0:
        rank = min(left, CHUNK) * length
        total += sum(4 * min(rank, o, i) * (o + i) for o, i in shapes)
        left -= CHUNK
    return total
