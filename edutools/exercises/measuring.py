"""Checks of what evaluation computes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.evaluate import harmonic_mean
from edutools.exercises.feedback import Feedback, call, diagnose

__all__ = ["check_score"]


def _score_mistakes(rates: tuple[float, ...]) -> dict[str, Float[Tensor, ""]]:
    n = len(rates)
    wrong = {
        "this is the arithmetic mean; it forgives a method that fails in one "
        "respect.": sum(rates) / n,
        "this is the geometric mean; S is the harmonic one.": (
            math.prod(rates) ** (1 / n)
        ),
        "the 3 in the numerator is missing.": harmonic_mean(*rates) / n,
        "this is the mean of the inverses; take its inverse.": (
            sum(1 / max(rate, 1e-300) for rate in rates) / n
        ),
    }
    return {text: _number(value) for text, value in wrong.items()}


def _number(value: Any) -> Float[Tensor, ""]:
    return torch.tensor(float(value), dtype=torch.float64)


def check_score(function: Callable) -> Feedback:
    """Check a function of (ES, PS, NS) that returns the score S, their harmonic mean.

    Book: sec-exercises
    """
    for rates in ((1.0, 1.0, 1.0), (1.0, 0.5, 0.25), (0.9, 0.6, 0.99), (1.0, 1.0, 0.0)):
        got = call(function, rates)
        if isinstance(got, Feedback):
            if 0.0 in rates and "ZeroDivisionError" in got.message:
                message = "one rate can be 0; the harmonic mean is then 0."
                return Feedback(False, message)
            return got
        try:
            number = _number(got)
        except (TypeError, ValueError, RuntimeError):
            kind = type(got).__name__
            return Feedback(False, f"it returns a {kind}; return a number.")
        right = _number(harmonic_mean(*rates))
        wrong = diagnose(number, right, _score_mistakes(rates))
        if wrong is not None:
            return wrong
    return Feedback(True, "it is high only if all three rates are high.")
