"""Checks of MEND: the gradient from its factors, and one block of an editor.

Axes: texts · tokens · d_in, d_out sizes of the edited map · size of what a block
transforms · rank.
"""

# ruff: noqa: N806 (the paper's symbols)

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_editor_block", "check_gradient"]


def check_gradient(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (u, d, mask) that returns the gradient of a weight.

    Args:
        function: takes the map's inputs u (texts, tokens, d_in), the gradients d of the
            texts' losses with respect to its outputs (texts, tokens, d_out), and a mask
            (texts, tokens) that is 0 where a text has been filled up; returns the
            gradient of the sum of the losses as (d_out, d_in).
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for texts, tokens, d_in, d_out in ((2, 5, 4, 3), (3, 4, 5, 5), (1, 6, 2, 4)):
        u = _normal(generator, texts, tokens, d_in)
        d = _normal(generator, texts, tokens, d_out)
        mask = torch.ones(texts, tokens, dtype=torch.long)
        mask[0, tokens - 2 :] = 0
        right = torch.einsum("nto,nti,nt->oi", d, u, mask.double())
        mistakes = _gradient_mistakes(u, d, mask, right)
        wrong = compare(function, (u, d, mask), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "one outer product per token, and none for padding.")


def _gradient_mistakes(
    u: Float[Tensor, "texts tokens d_in"],
    d: Float[Tensor, "texts tokens d_out"],
    mask: Int[Tensor, "texts tokens"],
    right: Float[Tensor, "d_out d_in"],
) -> dict[str, Float[Tensor, "..."]]:
    everywhere = torch.einsum("nto,nti->oi", d, u)
    m = mask[..., None].double()
    sums = torch.outer((d * m).sum((0, 1)), (u * m).sum((0, 1)))
    return {
        "this is the gradient transposed, and padding is counted.": everywhere.T,
        "padding is counted: leave out tokens whose mask is 0.": everywhere,
        "this is the gradient transposed: W is (d_out, d_in).": right.T,
        "this is the outer product of two sums; sum the outer products instead.": sums,
        "this is the mean over tokens; the losses are added up, so are the products.": (
            right / mask.sum()
        ),
        "this is the mean over texts; the losses are added up.": right / len(u),
        "this is the direction of descent; the gradient has the other sign.": -right,
    }


def check_editor_block(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (h, shared, own) that is one block of MEND's editor.

    Args:
        function: takes vectors h (tokens, size), the shared (U, V, b), which are (size,
            rank), (rank, size) and (size), and a weight's own scale and shift (s, o),
            (size) each; returns the transformed vectors.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for tokens, size, rank in ((5, 4, 2), (4, 4, 4), (3, 6, 1)):
        h = _normal(generator, tokens, size)
        U, V = _normal(generator, size, rank), _normal(generator, rank, size)
        b, s, o = (_normal(generator, size) for _ in range(3))
        right = h + (s * (h @ V.T @ U.T + b) + o).clamp(min=0)
        mistakes = _block_mistakes(h, (U, V, b), (s, o))
        wrong = compare(function, (h, (U, V, b), (s, o)), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "with U, b and o at zero it would be the identity.")


def _block_mistakes(
    h: Float[Tensor, "tokens size"],
    shared: tuple[
        Float[Tensor, "size rank"], Float[Tensor, "rank size"], Float[Tensor, " size"]
    ],
    own: tuple[Float[Tensor, " size"], Float[Tensor, " size"]],
) -> dict[str, Float[Tensor, "..."]]:
    (U, V, b), (s, o) = shared, own
    low = h @ V.T @ U.T
    inside = s * (low + b) + o
    return {
        "h itself is missing: the block is residual.": inside.clamp(min=0),
        "h, scale and shift are missing.": (low + b).clamp(min=0),
        "scale and shift are missing.": h + (low + b).clamp(min=0),
        "nothing is cut off below zero, so the block is linear.": h + inside,
        "h is cut off, too; only what is added to it is.": (h + inside).clamp(min=0),
        "the scale is outside: it belongs to the bracket that is cut off.": (
            h + s * (low + b).clamp(min=0) + o
        ),
        "the scale multiplies the shift, too.": h + (s * (low + b + o)).clamp(min=0),
        "the bias is not scaled; it is inside the inner bracket.": (
            h + (s * low + b + o).clamp(min=0)
        ),
        "scale and shift have changed places.": h + (o * (low + b) + s).clamp(min=0),
        "U and V have changed places.": h + (s * (h @ U @ V + b) + o).clamp(min=0),
    }


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
