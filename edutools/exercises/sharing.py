"""Checks around full-size models: what an adapter is, and what a statistic weighs."""

# ruff: noqa: N806 (PEFT's symbols)

from collections.abc import Callable

import torch

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_adapter_change", "check_moment_bytes"]


def check_adapter_change(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (A, B, alpha) that returns the Δ of a LoRA adapter.

    A is (rank, d_in), B is (d_out, rank), Δ is (d_out, d_in).

    Args:
        function: the reader's.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_out, d_in, rank, alpha in ((4, 4, 2, 6.0), (5, 3, 3, 3.0), (3, 6, 4, 1.0)):
        A = torch.randn(rank, d_in, generator=generator, dtype=torch.float64)
        B = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
        right = alpha / rank * B @ A  # (d_out, d_in)
        wrong = compare(
            function,
            (A, B, alpha),
            right,
            {
                "this is Δ transposed; a weight is (d_out, d_in).": right.T,
                "the scale is missing: an adapter counts alpha / rank times.": B @ A,
                "alpha is not divided by the rank.": alpha * B @ A,
                "the scale is upside down: it is alpha / rank.": rank / alpha * B @ A,
                "this divides by the root of the rank, which PEFT does only with "
                "use_rslora.": alpha / rank**0.5 * B @ A,
            },
        )
        if wrong is not None:
            return wrong
    return Feedback(True, "with alpha = rank, as edits are saved, it is B A itself.")


def check_moment_bytes(function: Callable) -> Feedback:
    """Check a function of (d, layers) that returns the bytes of C in float64.

    `d` is a tensor of key sizes, `layers` a tensor of how many layers are measured.

    Book: sec-exercises
    """
    d = torch.tensor([576.0, 6400.0, 16384.0, 11008.0], dtype=torch.float64)
    layers = torch.tensor([1.0, 5.0, 6.0, 2.0], dtype=torch.float64)
    right = 8 * d * d * layers
    mistakes = {
        "these are numbers, not bytes: a float64 takes eight.": right / 8,
        "this is float32; second moments are kept in float64.": right / 2,
        "C is a matrix, d times d; this is a vector.": 8 * d * layers,
        "this is one layer; there are several.": 8 * d * d,
        "these are bits; a byte has eight.": 8 * right,
        "these are GiB; return bytes.": right / 2**30,
        "half of C repeats the other half, but it is kept whole.": (
            4 * d * (d + 1) * layers
        ),
    }
    wrong = compare(function, (d, layers), right, mistakes)
    if wrong is not None:
        return wrong
    return Feedback(True, "it grows with the square of the key size.")
