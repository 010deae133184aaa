"""Checks of what a distribution over layers leaves over, and of the cheapest one."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_fractions", "check_leftover"]


def _leftover_mistakes(
    shares: Float[Tensor, " m"],
) -> dict[str, Float[Tensor, "..."]]:
    m = len(shares)
    left = torch.arange(m, 0, -1).to(shares)  # layers left, this one included
    factors = 1 - shares / left  # (m,)
    return {
        "this is what has arrived; one minus it is left over.": 1 - factors.prod(),
        "this measures the residual once. It is measured anew after each layer, so "
        "what is left is a product.": 1 - (shares / left).sum(),
        "the order is upside down: the lowest layer comes first and divides by the "
        "number of all layers, the last one by 1.": (1 - shares / left.flip(0)).prod(),
        "every layer divides by the number of all layers; it is the number of layers "
        "that are left.": (1 - shares / m).prod(),
        "this is the square root's rule; the even one divides by the layers left.": (
            (1 - shares / left.sqrt()).prod()
        ),
        "nothing is divided: as it stands each layer is asked for the whole rest.": (
            (1 - shares).prod()
        ),
        "the layers left are one too many: the last layer divides by 1.": (
            (1 - shares / (left + 1)).prod()
        ),
        "this is what is left after each layer; return the last one only.": (
            factors.cumprod(0)
        ),
        "these are the factors of the layers; multiply them.": factors,
    }


def check_leftover(function: Callable) -> Feedback:
    """Check a function of the shares that returns what the even rule leaves over.

    The shares are one number in (0, 1) per layer, from the bottom up: how much of what
    a layer is asked for it writes. What is left is a fraction of the first residual.

    Book: sec-exercises
    """
    for numbers in ((0.5, 0.8, 0.3), (0.9, 0.2, 0.6, 0.7, 0.45)):
        shares = torch.tensor(numbers, dtype=torch.float64)
        left = torch.arange(len(shares), 0, -1).to(shares)
        right = (1 - shares / left).prod()
        wrong = compare(function, (shares,), right, _leftover_mistakes(shares))
        if wrong is not None:
            return wrong
    message = "each layer leaves 1 - share/(layers left) of what it found."
    return Feedback(True, message)


def check_fractions(function: Callable) -> Feedback:
    """Check a function of prices that returns the cheapest fractions of a residual.

    A price is what it costs old keys if that layer writes the whole residual alone.

    Book: sec-exercises
    """
    for numbers in ((2.0, 8.0), (30.0, 5.0, 12.0, 7.0)):
        price = torch.tensor(numbers, dtype=torch.float64)
        cheap, root = 1 / price, 1 / price.sqrt()
        only = torch.nn.functional.one_hot(price.argmin(), len(price)).to(price)
        mistakes = {
            "this is upside down: dear layers get less.": price / price.sum(),
            "this is the even rule, whatever the layers cost.": (
                torch.full_like(price, 1 / len(price))
            ),
            "the fractions must add up to one.": cheap,
            "one root too many: the derivative of p w² is 2 p w.": root / root.sum(),
            "one square too many: the derivative of p w² is 2 p w.": (
                cheap.square() / cheap.square().sum()
            ),
            "everything goes to the cheapest layer. But the price is quadratic: the "
            "first small part costs next to nothing in any layer.": only,
            "this is the lowest price; return the fractions that reach it.": (
                1 / cheap.sum()
            ),
        }
        wrong = compare(function, (price,), cheap / cheap.sum(), mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "every layer's last bit now costs the same.")
