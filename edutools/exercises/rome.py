"""Checks of ROME's update."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, diagnose, update_of
from edutools.solve import rome_update

__all__ = ["check_rome_update"]


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
        got = update_of(function, inputs)
        if isinstance(got, Feedback):
            return got
        right = rome_update(*inputs).dense()
        wrong = diagnose(got, right, _rome_mistakes(*inputs))
        if wrong is not None:
            return wrong
    message = "it writes v at k and disturbs old keys as little as possible."
    return Feedback(True, message)
