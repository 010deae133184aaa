"""What each part of an edit needs, in bytes and operations.

Passes through the model are rehearsed on the meta device; everything else is a formula
for the tensors that are alive together at the worst moment.

Axes: n facts · i, o the input and output size of the write map · s bytes of a weight.
"""

from math import prod

from transformers import PreTrainedModel

from edutools.arch import architecture_of
from edutools.batch import BatchMethod
from edutools.keyvalue import ValueSearch, site_name
from edutools.method import Method
from edutools.phase import ADVICE, READ, Phase, Scale, Shapes, write_shape
from edutools.rehearse import Layout, head_shape, reading, searching
from edutools.sequential import AlphaEdit
from edutools.spread import shares

__all__ = [
    "apply_phase",
    "evaluation_phase",
    "moments_phase",
    "search_phase",
    "solve_phase",
]

TEXT = 512  # tokens of a text behind second moments
TOGETHER = 2048  # tokens that a CPU searches together
ASKED = 26  # texts per case: 1 + 2 + 10 prompts as in CounterFact, two answers each


def moments_phase(model: PreTrainedModel, layers: list[int], scale: Scale) -> Phase:
    """Measure C of the layers over ordinary text.

    Book: sec-planning
    """
    i, _ = write_shape(model, layers)
    s, count = model.dtype.itemsize, len(layers)
    limit = getattr(model.config, "max_position_embeddings", None) or TEXT
    length = min(TEXT, limit, scale.batch_tokens)
    rows = max(1, scale.batch_tokens // length)
    names = [architecture_of(model).write(layer) for layer in layers]
    cost = reading(model, Layout(rows, 1, length, 1), names)
    kept = count * rows * length * i * s
    adding = kept + rows * length * i * (s + 4) + 20 * i * i
    passes = -(-scale.moment_tokens // (rows * length))
    return Phase(
        name="second moments",
        device={
            "sums of k kᵀ, old and new": 16 * count * i * i - 8 * i * i,
            "keys and the pass": max(cost.peak, adding),
        },
        host={"C": 8 * count * i * i},
        units=scale.moment_tokens,
        unit="token",
        flops=passes * (cost.flops + 2 * count * rows * length * i * i),
        advice=ADVICE["moments"],
    )


def _widest(search: ValueSearch) -> tuple[int, int]:
    """How many contexts, and the tokens of the longest one."""
    given = search.contexts.given
    if given is not None:
        return len(given), max(2 * len(text.split()) for text in given)
    written = search.contexts.prefixes
    return 1 + sum(n for n, _ in written), max((size for _, size in written), default=0)


def search_phase(
    model: PreTrainedModel, method: Method, scale: Scale, room: int | None
) -> Phase:
    """Search the values of the facts, as many together as the search itself takes.

    Args:
        model: on the meta device.
        method: whose search.
        scale: how many facts.
        room: bytes beside the weights. None: as on a CPU, some thousand tokens
            together.

    Book: sec-planning
    """
    search = _search(method)
    places = {max(method.edited())}
    if isinstance(method, BatchMethod):
        places = {x.target for x in shares(method.layers, method.distribution)}
    contexts, front = _widest(search)
    longest = front + scale.tokens + scale.answer - 1
    one = Layout(1, contexts, longest, scale.answer)
    rows = Layout(contexts + 1, 1, longest, scale.answer)
    sites = [site_name(model, x, search.site) for x in places]
    step = [searching(model, one, site) for site in sites]  # of one fact
    arch = architecture_of(model)
    below = [reading(model, rows, [arch.block(x + 1)]) for x in places]
    vocab, width = head_shape(model)
    kept = (
        8 * vocab + 24 * width + (contexts + 1) * longest * width * model.dtype.itemsize
    )
    each = kept + max(cost.peak for cost in step)
    fits = TOGETHER // (rows.n * longest) if room is None else room // (2 * each)
    together = min(scale.facts, 2 ** (max(1, fits).bit_length() - 1))
    values = 24 * len(places) * scale.facts * width
    again = (search.steps - 1) * sum(
        x.flops - y.flops for x, y in zip(step, below, strict=True)
    )
    return Phase(
        name="value search",
        device={
            f"the pass of {together} together, and its gradient": together
            * max(cost.peak for cost in step),
            "what is below, and the essence": together * kept,
            "values": values,
        },
        least=each + values,
        units=scale.facts,
        unit="fact",
        flops=scale.facts * (sum(cost.flops for cost in step) + again),
        advice=ADVICE["search"],
    )


def _search(method: Method) -> ValueSearch:
    return getattr(method, "search", None) or ValueSearch()


def solve_phase(
    model: PreTrainedModel, method: Method, layers: list[int], scale: Scale
) -> Phase:
    """Read keys and states, and solve the closed form, layer by layer.

    Book: sec-planning
    """
    i, o = write_shape(model, layers)
    s, n, count = model.dtype.itemsize, scale.facts, len(layers)
    contexts, front = _widest(_search(method))
    names = [architecture_of(model).write(layers[-1])]
    rows = min(n * contexts, READ)
    cost = reading(model, Layout(rows, 1, front + scale.tokens, 1), names)
    square, spectral = 8 * i * i, isinstance(method, AlphaEdit)
    kept = "eigenvectors of C" if spectral else "factors of C"
    held = {
        kept: count * square,
        "written weights": (count - 1) * s * i * o,
        "changes": 4 * count * n * (i + o),
    }
    making = {"C while it is factorised": (4 if spectral else 2) * square}
    read = {"the pass that reads keys": cost.peak, "keys": 16 * n * contexts * i}
    solved = {
        "C with the new keys, and its factor": 4 * square
        if _primal(method, n, i)
        else 0,
        "W in float64": 9 * i * o,
        "keys and values": 8 * n * (3 * i + 6 * o),
        "n x n systems": 40 * n * n,
    }
    worst = max(making, read, solved, key=lambda parts: sum(parts.values()))
    passes = 2 * count * -(-n * contexts // rows)
    closed = i**3 // 3 + 4 * i * i * n + n**3 // 3 + 4 * n * n * (i + o)
    return Phase(
        name="keys and solve",
        device=held | worst,
        host={"C": count * square},
        units=n,
        unit="fact",
        flops=passes * cost.flops + count * closed,
        advice=ADVICE["solve"],
    )


def _primal(method: Method, n: int, i: int) -> bool:
    """Whether an i x i system is solved for each layer."""
    return n >= i and not isinstance(method, AlphaEdit)


def apply_phase(model: PreTrainedModel, shapes: Shapes, rank: int) -> Phase:
    """Change weights of shapes (o, i) in place, and keep what they were.

    Book: sec-planning
    """
    s = model.dtype.itemsize
    return Phase(
        name="applying",
        device={
            "saved weights": sum(s * o * i for o, i in shapes),
            "changes": sum(4 * min(rank, o, i) * (o + i) for o, i in shapes),
            "one changed weight": (9 if s >= 4 else 13 + s) * max(map(prod, shapes)),
        },
        units=len(shapes),
        unit="weight",
        flops=sum(2 * min(rank, o, i) * o * i for o, i in shapes),
        advice=ADVICE["apply"],
    )


def evaluation_phase(model: PreTrainedModel, scale: Scale) -> Phase:
    """Score the cases of all facts, as CounterFact has them, once.

    Book: sec-planning
    """
    length = scale.tokens + 4 + scale.answer - 1  # paraphrases are longer
    layout = Layout(scale.batch_size, 1, length, scale.answer)
    cost = reading(model, layout, [], head=True)
    asked = ASKED * scale.facts
    return Phase(
        name="evaluation",
        device={"the pass": cost.peak},
        units=asked,
        unit="text",
        flops=-(-asked // scale.batch_size) * cost.flops,
        advice=ADVICE["evaluation"],
    )
