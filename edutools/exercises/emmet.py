"""Checks of EMMET's update and of its multipliers."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare, diagnose, update_of
from edutools.exercises.memit import batch_inputs
from edutools.solve import emmet_update

__all__ = ["check_emmet_update", "check_multipliers"]

SIZES = ((4, 4, 3), (3, 7, 4), (5, 6, 1))


def _emmet_mistakes(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    C: Float[Tensor, "d_in d_in"],
) -> dict[str, Float[Tensor, "..."]]:
    R, U = V - W @ K, torch.linalg.solve(C, K)  # C⁻¹K  (d_in, n)
    D, G = K.T @ U, K.T @ K
    solve, one = torch.linalg.solve, torch.eye(len(D)).to(D)
    delta = R @ solve(D, U.T)
    return {
        "this is the negative of Δ: the residual is V - WK, not WK - V.": -delta,
        "this is Δ transposed: W is (d_out, d_in), so the residuals go to the left.": (
            delta.T
        ),
        "this is the new weight; return only the change Δ.": W + delta,
        "what the old weight already gives is not subtracted: the residual is "
        "V - WK.": V @ solve(D, U.T),
        "C⁻¹ is missing: as it stands all old keys count as equally common in every "
        "direction (C = I).": R @ solve(G, K.T),
        "this uses C where C⁻¹ belongs.": R @ solve(K.T @ C @ K, K.T @ C),
        "D lacks C⁻¹: it is KᵀC⁻¹K, so that ΔK = R.": R @ solve(G, U.T),
        "D⁻¹ is missing: ΔK must equal R, not R D.": R @ U.T,
        "this multiplies by D where D⁻¹ belongs.": R @ D @ U.T,
        "only the diagonal of D is used: each fact is written as if it were alone.": (
            R @ torch.diag(1 / D.diagonal()) @ U.T
        ),
        "D has 1 added to its diagonal: the fit is no longer exact.": (
            R @ solve(D + one, U.T)
        ),
    }


def check_emmet_update(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (W, K, V, C) that returns the exact change of EMMET.

    Args:
        function: returns Δ as a matrix (or as a `LowRank`) of W's shape.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for sizes in SIZES:
        inputs = batch_inputs(*sizes, generator)
        got = update_of(function, inputs)
        if isinstance(got, Feedback):
            return got
        right = emmet_update(*inputs).dense()
        wrong = diagnose(got, right, _emmet_mistakes(*inputs))
        if wrong is not None:
            return wrong
    message = "it writes every value, and disturbs old keys as little as possible."
    return Feedback(True, message)


def check_multipliers(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (W, K, V, C) that returns the multipliers Λ of EMMET.

    Their sign is that of ΔC = ΛKᵀ; one column per fact.

    Args:
        function: returns Λ, of the shape of V.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for sizes in SIZES:
        W, K, V, C = batch_inputs(*sizes, generator)
        R, D = V - W @ K, K.T @ torch.linalg.solve(C, K)
        right = torch.linalg.solve(D, R.T).T  # R D⁻¹  (d_out, n)
        mistakes = {
            "the sign is the other one: ΔC = ΛKᵀ and ΛD = R.": -right,
            "this is Λ transposed: one column per fact.": right.T,
            "this multiplies by D where D⁻¹ belongs.": R @ D,
            "D lacks C⁻¹: it is KᵀC⁻¹K.": torch.linalg.solve(K.T @ K, R.T).T,
            "this uses C where C⁻¹ belongs.": (torch.linalg.solve(K.T @ C @ K, R.T).T),
            "these are the residuals themselves; ΛD = R.": R,
            "only the diagonal of D is used.": R / D.diagonal(),
            "what the old weight already gives is not subtracted: R = V - WK.": (
                torch.linalg.solve(D, V.T).T
            ),
        }
        wrong = compare(function, (W, K, V, C), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "a column of Λ is what the value of its fact presses for.")
