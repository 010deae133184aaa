"""Checks for the reader's own functions: right or not, and which mistake it looks like.

A check calls the reader's function on fresh random inputs, compares it with the
reference, and, where the two differ, looks for a known mistake that gives the same
numbers. It never shows the reference.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from edutools.checks import number
from edutools.evaluate import harmonic_mean
from edutools.solve import LowRank, rome_update

__all__ = ["Feedback", "check_rome_update", "check_score"]


@dataclass(frozen=True)
class Feedback:
    """The outcome of a check; true if the answer is right.

    Book: sec-exercises
    """

    correct: bool
    message: str

    def __bool__(self) -> bool:
        return self.correct

    def __repr__(self) -> str:
        return f"{'Correct' if self.correct else 'Not yet'}: {self.message}"


def _call(function: Callable, arguments: tuple) -> Any:
    """The reader's result, or a Feedback that says why there is none."""
    copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
    try:
        inspect.signature(function).bind(*copies)
    except TypeError as error:
        return Feedback(False, f"the function takes other arguments ({error}).")
    try:
        result = function(*copies)
    except Exception as error:  # the reader's own code may raise anything
        return Feedback(False, f"it raised {type(error).__name__}: {error}")
    for given, copy in zip(arguments, copies, strict=True):
        if isinstance(given, Tensor) and not torch.equal(given, copy):
            return Feedback(False, "it changes its input in place; work on a copy.")
    if result is None:
        return Feedback(False, "it returns nothing. Is there a `return`?")
    return result


def _close(a: Shaped[Tensor, "..."], b: Float[Tensor, "..."]) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b, rtol=1e-6, atol=1e-8)


def _diagnose(
    got: Shaped[Tensor, "..."],
    right: Float[Tensor, "..."],
    mistakes: Mapping[str, Float[Tensor, "..."]],
) -> Feedback | None:
    """None if `got` is right, else the mistake that explains it."""
    if _close(got, right):
        return None
    for message, wrong in mistakes.items():
        if _close(got, wrong):
            return Feedback(False, message)
    if got.shape != right.shape:
        wanted, found = tuple(right.shape), tuple(got.shape)
        return Feedback(False, f"the result has shape {found}; {wanted} was expected.")
    if not bool(got.isfinite().all()):
        return Feedback(False, "the result holds a NaN or an infinity.")
    off = float((got.double() - right).norm() / right.norm())
    return Feedback(
        False, f"the shape is right, the numbers are not (relative error {off:.1g})."
    )


def _rome_mistakes(
    weight: Float[Tensor, "d_out d_in"],
    k: Float[Tensor, " d_in"],
    v: Float[Tensor, " d_out"],
    moment: Float[Tensor, "d_in d_in"],
) -> dict[str, Float[Tensor, "..."]]:
    u, r = torch.linalg.solve(moment, k), v - weight @ k
    delta = torch.outer(r, u) / (u @ k)
    return {
        "this is the negative of Δ: the residual is v − Wk, not Wk − v.": -delta,
        "this is Δ transposed: W is (d_out, d_in), so the residual goes to the left.": (
            delta.T
        ),
        "this is the new weight; return only the change Δ.": weight + delta,
        "C⁻¹ is missing: as it stands all old keys count as equally common in every "
        "direction (C = I).": torch.outer(r, k) / (k @ k),
        "this uses C where C⁻¹ belongs.": torch.outer(r, moment @ k) / (k @ moment @ k),
        "the denominator lacks C⁻¹: it is kᵀC⁻¹k, so that Δk = v − Wk.": (
            torch.outer(r, u) / (k @ k)
        ),
        "the denominator is missing: Δk must equal v − Wk.": torch.outer(r, u),
        "what the old weight already gives is not subtracted: the residual is "
        "v − Wk.": torch.outer(v, u) / (u @ k),
    }


def _rome_inputs(
    d_out: int, d_in: int, generator: torch.Generator
) -> tuple[Float[Tensor, "..."], ...]:
    """Random W, k, v and a C of full rank, in float64."""

    def normal(*size: int) -> Float[Tensor, "..."]:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    weight, old_keys = normal(d_out, d_in), normal(d_in, 4 * d_in)
    k, v = normal(d_in), normal(d_out)
    return weight, k, v, old_keys @ old_keys.T / old_keys.shape[1]


def check_rome_update(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (W, k, v, C) that returns the rank-one change of ROME.

    Args:
        function: returns Δ as a matrix (or as a `LowRank`) of W's shape.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_out, d_in in ((4, 4), (3, 7), (8, 5)):
        inputs = _rome_inputs(d_out, d_in, generator)
        got = _call(function, inputs)
        if isinstance(got, Feedback):
            return got
        got = got.dense() if isinstance(got, LowRank) else got
        if not isinstance(got, Tensor):
            kind = type(got).__name__
            return Feedback(False, f"it returns a {kind}; return a tensor.")
        right = rome_update(*inputs).dense()
        wrong = _diagnose(got, right, _rome_mistakes(*inputs))
        if wrong is not None:
            return wrong
    message = "it writes v at k and disturbs old keys as little as possible."
    return Feedback(True, message)


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
        got = _call(function, rates)
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
        wrong = _diagnose(number, right, _score_mistakes(rates))
        if wrong is not None:
            return wrong
    return Feedback(True, "it is high only if all three rates are high.")
