"""Distribution of an edit over layers: a choice apart from the closed form.

Layers are written from the bottom up. After each, keys and residuals are measured anew,
because what is written below changes what arrives above.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, oriented, submodule
from edutools.change import Edit
from edutools.facts import Fact
from edutools.keyvalue import BARE, Contexts, keys, states
from edutools.precision import double
from edutools.solve import LowRank

__all__ = ["DISTRIBUTIONS", "Share", "shares", "spread"]

DISTRIBUTIONS = ("even", "sqrt", "ends")

Update = Callable[
    [
        int,
        Float[Tensor, "d_out d_in"],
        Float[Tensor, "d_in n"],
        Float[Tensor, "d_out n"],
    ],
    LowRank,
]


@dataclass(frozen=True)
class Share:
    """What one layer has to do.

    Attributes:
        layer: which layer is written.
        target: at which layer the wanted state was searched.
        divisor: by how much the residual there is divided.

    Book: sec-spread
    """

    layer: int
    target: int
    divisor: float


def shares(layers: Sequence[int], distribution: str = "even") -> tuple[Share, ...]:
    r"""Who writes how much, from the bottom up.

    .. math:: r^{(l)} = \frac{z - h}{L - l + 1} \;\text{(even)}, \qquad
        \frac{z - h}{\sqrt{L - l + 1}} \;\text{(sqrt)}

    with L - l + 1 the number of layers left, this one included.

    Args:
        layers: which to write, in any order.
        distribution: 'even' divides by the layers left (MEMIT), 'sqrt' by its square
            root (PMET). 'ends' writes the first and the last layer only, each with the
            whole residual of a state searched at that layer (after BLUE).

    Raises:
        ValueError: if there is no layer, one comes twice, or the distribution is
            unknown.

    Source: Meng et al. 2023 (MEMIT), eq. 20; Li et al. 2024 (PMET).
    Book: sec-spread

    >>> [share.divisor for share in shares((3, 4, 5))]
    [3.0, 2.0, 1.0]
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"No distribution {distribution!r}. Known: "
            f"{', '.join(map(repr, DISTRIBUTIONS))}."
        )
    order = sorted(layers)
    if not order or len(set(order)) < len(order):
        raise ValueError(
            f"layers must name at least one layer, each once; got {list(layers)}."
        )
    if distribution == "ends":
        return tuple(Share(x, x, 1.0) for x in sorted({order[0], order[-1]}))
    left = range(len(order), 0, -1)
    root = math.sqrt if distribution == "sqrt" else float
    return tuple(
        Share(layer, order[-1], root(count))
        for layer, count in zip(order, left, strict=True)
    )


def spread(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    plan: Sequence[Share],
    targets: Mapping[int, Float[Tensor, "d_out n"]],
    update: Update,
    contexts: Contexts = BARE,
) -> Edit:
    r"""Write facts into several layers, one after the other.

    .. math:: R^{(l)} = (Z - H) / \text{divisor}, \qquad
        \Delta^{(l)} = \mathrm{update}(W, K, W K + R^{(l)})

    Args:
        model: is changed while layers are written, and given back bit for bit.
        tokenizer: the model's.
        facts: what to write.
        plan: which layer does what, from `shares`.
        targets: wanted block outputs by the layer where they were searched.
        update: a closed form, called as update(layer, W, K, V).
        contexts: texts over which keys are averaged.

    Returns:
        The changes of all layers.

    Source: Meng et al. 2023 (MEMIT), algorithm 1.
    Book: sec-spread
    """
    names = architecture_of(model)
    contexts = contexts.resolved(model, tokenizer)
    total = Edit({})
    for share in plan:
        with total.applied(model):  # what is already written counts
            K = keys(model, tokenizer, facts, share.layer, contexts=contexts)
            H = states(model, tokenizer, facts, share.target)  # (d_out, n)
        name = names.write(share.layer)
        R = (targets[share.target].to(H.device) - H) / share.divisor  # (d_out, n)
        W = double(oriented(submodule(model, name)), "W")  # (d_out, d_in)
        R, K = R.to(W.device), K.to(W.device)
        delta = update(share.layer, W, K, W @ K + R)
        total = total + Edit({name: delta})
    return total
