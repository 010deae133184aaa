"""Checks of what the chapter on evaluation asks for: leads, intervals, pairs."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.exercises.feedback import Feedback, call, compare, diagnose
from edutools.metrics import wilson

__all__ = ["check_lead", "check_paired_error", "check_wilson"]

Z = 1.959964


def check_lead(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of the token log-probabilities of two answers.

    It gets those of the wanted answer and of the other one, of different lengths, and
    returns by how much probability per token the wanted one leads, from -1 to 1.

    Args:
        function: the reader's.
        seed: of the random inputs.

    Book: sec-exercises
    """
    generator = torch.Generator().manual_seed(seed)
    for lengths in ((3, 1), (2, 4)):
        wanted, other = [
            -torch.rand(n, generator=generator, dtype=torch.float64) for n in lengths
        ]
        right = wanted.mean().exp() - other.mean().exp()
        mistakes = {
            "this is the lead of the other answer; the sign is wrong.": -right,
            "these are joint probabilities; they are not divided by the lengths.": (
                wanted.sum().exp() - other.sum().exp()
            ),
            "this averages probabilities; average their logarithms, then exp.": (
                wanted.exp().mean() - other.exp().mean()
            ),
            "this is a difference of logarithms; the exp is missing.": (
                wanted.mean() - other.mean()
            ),
            "this takes exp of the difference, a ratio of probabilities.": (
                (wanted.mean() - other.mean()).exp()
            ),
            "this says who leads; say by how much.": (right > 0).double(),
        }
        wrong = compare(function, (wanted, other), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "each answer counts with its geometric mean per token.")


def check_wilson(function: Callable) -> Feedback:
    """Check a function of (successes, n) that returns both ends of Wilson's interval.

    Book: sec-exercises
    """
    for successes, n in ((9, 10), (7, 10), (10, 10), (0, 20), (180, 200)):
        got = call(function, (successes, n))
        if isinstance(got, Feedback):
            return got
        try:
            ends = torch.tensor([float(end) for end in got], dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            return Feedback(
                False, f"it returns a {type(got).__name__}; return (low, high)."
            )
        right = _pair(wilson(successes, n))
        wrong = diagnose(ends, right, _wilson_mistakes(successes, n))
        if wrong is not None:
            return wrong
    return Feedback(True, "it stays inside [0, 1] and has a width at 0 and at 1.")


def _wilson_mistakes(successes: int, n: int) -> dict[str, Float[Tensor, " 2"]]:
    p, low_high = successes / n, wilson(successes, n)
    wald = Z * math.sqrt(p * (1 - p) / n)
    center = sum(low_high) / 2
    return {
        "this is the interval of Wald, p ± z·sqrt(p(1−p)/n); it has no width at 0 "
        "and 1.": _pair((p - wald, p + wald)),
        "this is the interval of Wald, cut off at 0 and 1.": _pair(
            (max(0.0, p - wald), min(1.0, p + wald))
        ),
        "the ends are swapped; return (low, high).": _pair((low_high[1], low_high[0])),
        "this is a 90 % interval; z is 1.96 for 95 %.": _pair(
            wilson(successes, n, z=1.644854)
        ),
        "the width is right, but the interval stands around p.": _pair(
            (p - low_high[1] + center, p + low_high[1] - center)
        ),
        "these are center and half width; return both ends.": _pair(
            (center, low_high[1] - center)
        ),
    }


def _pair(ends: tuple[float, float]) -> Float[Tensor, " 2"]:
    return torch.tensor(ends, dtype=torch.float64)


def check_paired_error(function: Callable, *, seed: int = 0) -> Feedback:
    """Check the standard error of the mean difference of two methods on the same cases.

    The function gets two columns of numbers, one per method and in the order of the
    cases, and returns one number.

    Args:
        function: the reader's.
        seed: of the random inputs.

    Book: sec-exercises
    """
    generator = torch.Generator().manual_seed(seed)
    for n in (12, 30):
        hard = torch.randn(n, generator=generator, dtype=torch.float64)
        a, b = [
            hard + torch.randn(n, generator=generator, dtype=torch.float64) / 2
            for _ in range(2)
        ]
        right = (a - b).std() / math.sqrt(n)
        apart = (a.var() + b.var()).sqrt()
        mistakes = {
            "this treats the columns as two separate samples; the cases are the "
            "same.": apart / math.sqrt(n),
            "this is the spread of single differences; a mean of n varies less.": (
                (a - b).std()
            ),
            "this divides by n; the error of a mean falls with its root.": (
                (a - b).std() / n
            ),
            "this is the variance of the mean; take its root.": (a - b).var() / n,
            "this is the mean difference; its error was asked for.": (a - b).mean(),
            "this divides the squares by n; by n − 1, since the mean is estimated.": (
                (a - b).std(correction=0) / math.sqrt(n)
            ),
            "this is the error of the first method alone.": a.std() / math.sqrt(n),
        }
        wrong = compare(function, (a, b), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "what both methods find hard or easy cancels.")
