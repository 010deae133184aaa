"""Checks of MEMIT's update and of the share of a fact that it writes."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare, diagnose, update_of
from edutools.solve import memit_update

Batch = tuple[
    Float[Tensor, "d_out d_in"],
    Float[Tensor, "d_in n"],
    Float[Tensor, "d_out n"],
    Float[Tensor, "d_in d_in"],
]

__all__ = ["batch_inputs", "check_lam_for_share", "check_memit_update"]


def batch_inputs(d_out: int, d_in: int, n: int, generator: torch.Generator) -> Batch:
    """Random W, K, V and a C of full rank, in float64.

    Book: sec-exercises
    """

    def normal(*size: int) -> Float[Tensor, "..."]:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    old = normal(d_in, 4 * d_in)
    return normal(d_out, d_in), normal(d_in, n), normal(d_out, n), old @ old.T / d_in


def _memit_mistakes(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    C: Float[Tensor, "d_in d_in"],
    lam: float,
) -> dict[str, Float[Tensor, "..."]]:
    R, KK, eye = V - W @ K, K @ K.T, torch.eye(len(K)).to(K)
    n = K.shape[1]

    def written(residual: Tensor, system: Tensor) -> Float[Tensor, "..."]:
        return torch.linalg.solve(system, K @ residual.T).T

    delta = written(R, lam * C + KK)
    return {
        "this is the negative of Δ: the residual is V - WK, not WK - V.": -delta,
        "this is Δ transposed: W is (d_out, d_in), so the residuals go to the left.": (
            delta.T
        ),
        "this is the new weight; return only the change Δ.": W + delta,
        "what the old weight already gives is not subtracted: the residual is "
        "V - WK.": written(V, lam * C + KK),
        "λ is missing: as it stands an old token weighs as much as if λ were 1.": (
            written(R, C + KK)
        ),
        "C is missing: as it stands all old keys count as equally common in every "
        "direction (C = I).": written(R, lam * eye + KK),
        "λ multiplies K Kᵀ, too; it weighs the old keys only.": (
            written(R, lam * (C + KK))
        ),
        "λ sits at the new keys; it weighs the old ones.": written(R, C + lam * KK),
        "the new keys are averaged: K Kᵀ is a sum over the facts, and so is R Kᵀ.": (
            written(R / n, lam * C + KK / n)
        ),
        "R Kᵀ is averaged over the facts, but K Kᵀ is not.": (
            written(R / n, lam * C + KK)
        ),
        "K Kᵀ is missing in the system: the facts do not know of one another.": (
            written(R, lam * C)
        ),
        "the system is multiplied where its inverse belongs.": (
            R @ K.T @ (lam * C + KK)
        ),
    }


def check_memit_update(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (W, K, V, C, lam) that returns the change of MEMIT.

    Args:
        function: returns Δ as a matrix (or as a `LowRank`) of W's shape.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_out, d_in, n, lam in ((4, 4, 3, 0.5), (3, 7, 2, 10.0), (5, 4, 9, 2.0)):
        batch = batch_inputs(d_out, d_in, n, generator)
        got = update_of(function, (*batch, lam))
        if isinstance(got, Feedback):
            return _too_many(got, n > d_in)
        right = memit_update(*batch, lam).dense()
        wrong = diagnose(got, right, _memit_mistakes(*batch, lam))
        if wrong is not None:
            return _too_many(wrong, n > d_in)
    message = "it writes as much as λ allows, for few facts and for many."
    return Feedback(True, message)


def _too_many(found: Feedback, many: bool) -> Feedback:
    """The same, with a word on what only a batch larger than d_in brings to light."""
    hint = " (This shows only where there are more facts than dimensions.)"
    return Feedback(False, found.message + hint) if many else found


def check_lam_for_share(function: Callable) -> Feedback:
    """Check a function of (q, share) that returns the λ which writes that share.

    Both are tensors of one number per fact; q is kᵀC⁻¹k, the share lies in (0, 1].

    Book: sec-exercises
    """
    q = torch.tensor([2.0, 5.0, 100.0, 3000.0], dtype=torch.float64)
    share = torch.tensor([0.5, 0.8, 0.9, 1.0], dtype=torch.float64)
    mistakes = {
        "the share is upside down: a larger share needs a smaller λ.": (
            q * share / (1 - share)
        ),
        "this is the share that λ = share would write; solve for λ.": q / (share + q),
        "the share is subtracted from 1 but not divided by.": q * (1 - share),
        "this has the wrong sign; λ is positive.": q * (share - 1) / share,
        "it does not depend on q as it should: an unusual key bears a larger λ.": (
            (1 - share) / share
        ),
    }
    wrong = compare(function, (q, share), q * (1 - share) / share, mistakes)
    if wrong is not None:
        return wrong
    return Feedback(True, "at λ = q one half is written; all of it only at λ = 0.")
