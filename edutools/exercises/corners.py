"""Checks of AlphaEdit's and ENCORE's updates: which key is spared, and how."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.corners import alphaedit_update, encore_update
from edutools.exercises.feedback import Feedback, diagnose, update_of
from edutools.exercises.memit import Batch, batch_inputs

__all__ = ["check_alphaedit_update", "check_encore_update"]

Wrong = dict[str, Float[Tensor, "..."]]


def _eye(K: Float[Tensor, "d_in n"]) -> Float[Tensor, "d_in d_in"]:
    return torch.eye(len(K)).to(K)


def _written(
    R: Float[Tensor, "d_out n"],
    K: Float[Tensor, "d_in n"],
    system: Float[Tensor, "d_in d_in"],
) -> Float[Tensor, "d_out d_in"]:
    """R Kᵀ system⁻¹."""
    return torch.linalg.solve(system.T, K @ R.T).T


def _alphaedit_mistakes(
    batch: Batch, P: Float[Tensor, "d_in d_in"], l2: float
) -> Wrong:
    W, K, V, _ = batch
    R, eye, KK = V - W @ K, _eye(K), K @ K.T
    PK = P @ K
    delta = _written(R, PK, KK @ P + l2 * eye)
    free = _written(R, K, KK + l2 * eye)
    return {
        "this is the negative of Δ: the residual is V - WK, not WK - V.": -delta,
        "this is Δ transposed: W is (d_out, d_in), so the residuals go to the left.": (
            delta.T
        ),
        "this is the new weight; return only the change Δ.": W + delta,
        "what the old weight already gives is not subtracted: the residual is "
        "V - WK.": _written(V, PK, KK @ P + l2 * eye),
        "P is missing: as it stands old keys are not protected.": free,
        "P is applied behind the solution: the result is in the null space, but it is "
        "not the best fit there. The problem itself must be posed in it.": free @ P,
        "P stands with the system only; K Pᵀ on the left lacks it, so Δ leaves the "
        "null space.": _written(R, K, KK @ P + l2 * eye),
        "this projects on the old keys' directions: P keeps the free ones.": (
            _written(R, K - PK, KK @ (eye - P) + l2 * eye)
        ),
        "L₂ is missing, and with it the softness: it fits exactly.": (
            R @ torch.linalg.pinv(PK)
        ),
    }


def check_alphaedit_update(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (W, K, V, P, l2) that returns the change of AlphaEdit.

    Args:
        function: returns Δ as a matrix (or as a `LowRank`) of W's shape; P is a matrix.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_out, d_in, n, rank, l2 in ((4, 6, 2, 3, 0.5), (6, 6, 3, 4, 2.0)):
        batch = batch_inputs(d_out, d_in, n, generator)
        basis = torch.linalg.qr(batch[3]).Q[:, :rank]
        P = basis @ basis.T  # (d_in, d_in)
        W, K, V, _ = batch
        got = update_of(function, (W, K, V, P, l2))
        if isinstance(got, Feedback):
            return got
        right = alphaedit_update(W, K, V, P, l2).dense()
        wrong = diagnose(got, right, _alphaedit_mistakes(batch, P, l2))
        if wrong is not None:
            return wrong
    return Feedback(True, "old keys feel nothing, and the new ones get their best fit.")


def _encore_mistakes(
    R: Float[Tensor, "d_out n"],
    K: Float[Tensor, "d_in n"],
    C: Float[Tensor, "d_in d_in"],
    past: Float[Tensor, "d_in m"],
    weights: tuple[float, float],
) -> Wrong:
    eye, KK, pp, (lam, norm) = _eye(K), K @ K.T, past @ past.T, weights

    def written(system: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_out d_in"]:
        return _written(R, K, system + KK)

    delta = written(lam * C + pp + norm * eye)
    return {
        "this is the negative of Δ: the residual is what is missing.": -delta,
        "this is Δ transposed: W is (d_out, d_in), so the residuals go to the left.": (
            delta.T
        ),
        "the earlier keys are forgotten: K_p K_pᵀ is missing.": (
            written(lam * C + norm * eye)
        ),
        "the norm is missing: λ_n I belongs to the system.": written(lam * C + pp),
        "C is missing: as it stands old keys are not spared.": written(pp + norm * eye),
        "λ_p is missing: as it stands an old token weighs as much as a fact.": (
            written(C + pp + norm * eye)
        ),
        "λ_p and λ_n have changed places.": written(norm * C + pp + lam * eye),
        "λ_p multiplies the earlier keys, too; an earlier fact weighs as much as a "
        "new one.": written(lam * (C + pp) + norm * eye),
        "λ_n is not multiplied by I: as it stands it is added to every entry.": (
            written(lam * C + pp + norm)
        ),
        "K Kᵀ is missing in the system: the new facts do not know of one another.": (
            _written(R, K, lam * C + pp + norm * eye)
        ),
    }


def check_encore_update(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (R, K, C, past, weights) that returns the change of ENCORE.

    The weights are the pair (λ_p, λ_n).

    Args:
        function: returns Δ as a matrix (or as a `LowRank`) of W's shape.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    sizes = ((4, 5, 2, 3.0, 0.5), (5, 5, 3, 0.5, 2.0), (3, 4, 6, 2.0, 1.0))
    for d_out, d_in, n, *weights in sizes:
        W, K, V, C = batch_inputs(d_out, d_in, n, generator)
        past = torch.randn(d_in, 2, generator=generator, dtype=torch.float64)
        problem = V - W @ K, K, C, past, (weights[0], weights[1])
        got = update_of(function, problem)
        if isinstance(got, Feedback):
            return got
        right = encore_update(W, K, V, C, weights[0], norm=weights[1], past=past)
        wrong = diagnose(got, right.dense(), _encore_mistakes(*problem))
        if wrong is not None:
            return wrong
    return Feedback(
        True, "old tokens, earlier facts and the size, each with its weight."
    )
