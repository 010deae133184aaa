"""Checks of the objective: its solutions, and whether there are any."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, call, compare
from edutools.factored import LowRank

__all__ = ["check_family", "check_feasible"]


def check_family(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (R, K, C, lam) that returns the change Δ of the family.

    Args:
        function: for lam = 0 returns the exact fit that disturbs old keys least, for
            lam > 0 the least-squares compromise; as a matrix (or a `LowRank`).
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)

    @wraps(function)  # and so with its signature
    def dense(*arguments: Any) -> Any:
        result = function(*arguments)
        return result.dense() if isinstance(result, LowRank) else result

    for d_out, d_in, n, lam in ((3, 6, 2, 2.0), (4, 5, 7, 0.5), (3, 6, 2, 0.0)):
        R, K = _normal(generator, d_out, n), _normal(generator, d_in, n)
        old = _normal(generator, d_in, d_in) @ _normal(generator, d_in, 5 * d_in)
        C = old @ old.T / old.shape[1]  # (d_in, d_in)
        right = _change(R, K, C, lam)
        wrong = compare(dense, (R, K, C, lam), right, _mistakes(R, K, C, lam))
        if wrong is not None:
            hint = " That was λ = 0, where λC + KKᵀ has no inverse; D still has one."
            return Feedback(False, wrong.message + ("" if lam else hint))
    return Feedback(True, "one formula, from the exact fit to the gentlest.")


def _change(
    R: Float[Tensor, "d_out n"],
    K: Float[Tensor, "d_in n"],
    C: Float[Tensor, "d_in d_in"],
    lam: float,
) -> Float[Tensor, "d_out d_in"]:
    U = torch.linalg.solve(C, K)  # C⁻¹K  (d_in, n)
    D = K.T @ U + lam * torch.eye(K.shape[1]).to(K)  # (n, n)
    return R @ torch.linalg.solve(D, U.T)


def _mistakes(
    R: Float[Tensor, "d_out n"],
    K: Float[Tensor, "d_in n"],
    C: Float[Tensor, "d_in d_in"],
    lam: float,
) -> dict[str, Float[Tensor, "..."]]:
    U, I = torch.linalg.solve(C, K), torch.eye(len(C)).to(C)  # noqa: E741
    delta, n = _change(R, K, C, lam), K.shape[1]
    wrong = {
        "this is the negative of Δ. Which way round is the residual?": -delta,
        "this is Δ transposed: it has the shape of W, (d_out, d_in).": delta.T,
        "C is missing: this is plain ridge regression, in which every direction of "
        "key space is as precious as any other (C = I).": _change(R, K, I, lam),
        "this uses C where C⁻¹ belongs.": _change(R, K, torch.linalg.inv(C), lam),
        "the n x n matrix is missing: without it Δ does not fit R, it only points "
        "the right way.": R @ U.T,
        "the new facts are averaged: their errors are summed in the objective, so "
        "KKᵀ has no 1/n.": _change(R, K, C, lam * n),
    }
    if lam:
        spread = K.T @ U + lam  # λ in every entry
        wrong |= {
            "λ is missing.": R @ torch.linalg.lstsq(K.T @ U, U.T, driver="gelsd")[0],
            "λ is added to every entry of D; it belongs on the diagonal.": (
                R @ torch.linalg.lstsq(spread, U.T, driver="gelsd")[0]
            ),
            "λ is on the wrong side: it multiplies C, the old keys' part.": (
                _change(R, K, C, 1 / lam)
            ),
        }
    return wrong


def _cases(
    generator: torch.Generator,
) -> Iterator[tuple[Float[Tensor, "d_in n"], Float[Tensor, "d_out n"], bool, str]]:
    """K, R, whether ΔK = R can be solved, and why."""
    K, R = _normal(generator, 5, 3), _normal(generator, 4, 3)
    yield K, R, True, "three independent keys in five dimensions take any values"
    K, R = _normal(generator, 3, 5), _normal(generator, 4, 5)
    yield K, R, False, "five keys in three dimensions cannot take arbitrary values"
    K, R = _normal(generator, 5, 3), _normal(generator, 4, 3)
    K[:, 2] = K[:, 0]
    yield K, R, False, "two equal keys cannot have two different values"
    R = R.clone()
    R[:, 2] = R[:, 0]
    yield K, R, True, "two equal keys can have one and the same value"
    K = _normal(generator, 3, 5)
    R = _normal(generator, 4, 3) @ K
    yield (
        K,
        R,
        True,
        ("there may be more keys than dimensions if their values come from one matrix"),
    )
    K = _normal(generator, 6, 3)
    K[:, 2] = K[:, 0] - 2 * K[:, 1]
    R = _normal(generator, 4, 3)
    yield K, R, False, "a key that combines two others must have the combined value"


def check_feasible(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (K, R) that tells whether some Δ has ΔK = R exactly.

    Args:
        function: returns True or False.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for K, R, right, why in _cases(generator):
        got = call(function, (K, R))
        if isinstance(got, Feedback):
            return got
        if isinstance(got, Tensor) and got.numel() == 1:
            got = bool(got)
        if not isinstance(got, bool):
            kind = type(got).__name__
            return Feedback(False, f"it returns a {kind}; return True or False.")
        if got != right:
            return Feedback(False, f"it says {got} for K {tuple(K.shape)}; but {why}.")
    return Feedback(True, "it asks whether R respects what the keys have in common.")


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
