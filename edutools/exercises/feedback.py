"""What a check tells the reader: right or not, and which mistake it looks like.

A check calls the reader's function on fresh random inputs, compares it with the
reference, and, where the two differ, looks for a known mistake that gives the same
numbers. It never shows the reference.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from edutools.solve import LowRank

__all__ = ["Feedback", "call", "close", "compare", "diagnose", "update_of"]


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


def call(function: Callable, arguments: tuple) -> Any:
    """The reader's result on copies, or a Feedback that says why there is none.

    Book: sec-exercises
    """
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
        if isinstance(given, Tensor) and not _same(given, copy):
            return Feedback(False, "it changes its input in place; work on a copy.")
    if result is None:
        return Feedback(False, "it returns nothing. Is there a `return`?")
    return result


def _same(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    """Whether two tensors are equal, with nan in the same places."""
    if a.shape != b.shape:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def close(a: Shaped[Tensor, "..."], b: Float[Tensor, "..."]) -> bool:
    """Whether a result agrees with the reference in shape and numbers.

    Book: sec-exercises
    """
    return a.shape == b.shape and torch.allclose(a.double(), b, rtol=1e-6, atol=1e-8)


def diagnose(
    got: Shaped[Tensor, "..."],
    right: Float[Tensor, "..."],
    mistakes: Mapping[str, Float[Tensor, "..."]],
) -> Feedback | None:
    """None if `got` is right, else the mistake that explains it.

    Args:
        got: the reader's result.
        right: the reference's.
        mistakes: what to tell the reader -> the result that this mistake gives.

    Book: sec-exercises
    """
    if close(got, right):
        return None
    for message, wrong in mistakes.items():
        if close(got, wrong):
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


def compare(
    function: Callable,
    arguments: tuple,
    right: Float[Tensor, "..."],
    mistakes: Mapping[str, Float[Tensor, "..."]],
) -> Feedback | None:
    """None if the reader's function gives the right tensor, else what is wrong.

    Args:
        function: the reader's.
        arguments: what it is called with.
        right: the reference's result.
        mistakes: what to tell the reader -> the result that this mistake gives.

    Book: sec-exercises
    """
    got = call(function, arguments)
    if isinstance(got, Feedback):
        return got
    if isinstance(got, float | int):
        got = torch.tensor(float(got), dtype=torch.float64)
    if not isinstance(got, Tensor):
        kind = type(got).__name__
        return Feedback(False, f"it returns a {kind}; return a tensor.")
    return diagnose(got, right, mistakes)


def update_of(function: Callable, arguments: tuple) -> Tensor | Feedback:
    """The reader's Δ as a matrix, or a Feedback that says why there is none.

    Book: sec-exercises
    """
    got = call(function, arguments)
    got = got.dense() if isinstance(got, LowRank) else got
    if isinstance(got, Feedback | Tensor):
        return got
    return Feedback(False, f"it returns a {type(got).__name__}; return a tensor.")
