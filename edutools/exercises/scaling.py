"""Checks of an interval that counts seeds, and of ROME one fact after the other."""

# ruff: noqa: N803, N806 (the papers' symbols)

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.exercises.feedback import Feedback, compare
from edutools.studies import student

__all__ = ["check_in_turn", "check_seed_interval"]


def _pair(mean: Float[Tensor, ""], half: Float[Tensor, ""]) -> Float[Tensor, "2"]:
    return torch.stack([mean, half])


def _interval_mistakes(x: Float[Tensor, "m n"]) -> dict[str, Float[Tensor, "..."]]:
    means, (m, n) = x.mean(1), x.shape
    t, mean, sd = student(m - 1), x.mean(), means.std()
    return {
        "this counts facts. All facts of a seed share one edit; take the mean of each "
        "seed first.": _pair(mean, student(m * n - 1) * x.std() / math.sqrt(m * n)),
        "this counts facts, with the normal 1.96. Take the mean of each seed "
        "first.": _pair(mean, 1.96 * x.std() / math.sqrt(m * n)),
        "1.96 is for many values; a few seeds need Student's t.": (
            _pair(mean, 1.96 * sd / math.sqrt(m))
        ),
        "the degrees of freedom are one less than the number of seeds.": (
            _pair(mean, student(m) * sd / math.sqrt(m))
        ),
        "the variance divides by one less than the number of seeds.": (
            _pair(mean, t * means.std(correction=0) / math.sqrt(m))
        ),
        "this is the spread of single seeds; the mean of m of them varies less.": (
            _pair(mean, t * sd)
        ),
        "this is the standard error; multiply it by Student's t.": (
            _pair(mean, sd / math.sqrt(m))
        ),
        "this is the whole width; half of it is asked.": (
            _pair(mean, 2 * t * sd / math.sqrt(m))
        ),
        "these are the ends of the interval; return the mean and half its width.": (
            _pair(mean - t * sd / math.sqrt(m), mean + t * sd / math.sqrt(m))
        ),
        "rows and columns are exchanged: a row is a seed.": (
            _pair(mean, student(n - 1) * x.mean(0).std() / math.sqrt(n))
        ),
    }


def check_seed_interval(function: Callable) -> Feedback:
    """Check a function of outcomes that returns their mean and half of its interval.

    Outcomes have a row for each seed and a column for each fact; the interval is
    Student's, of 95 %, over seeds.

    Book: sec-exercises
    """
    generator = torch.Generator().manual_seed(0)
    for m, n in ((5, 12), (4, 30)):
        draw = torch.randn(m, n + 1, generator=generator, dtype=torch.float64)
        x = draw[:, :n] + 0.7 * draw[:, n:] + 0.4
        means = x.mean(1)
        half = student(m - 1) * means.std() / math.sqrt(m)
        wrong = compare(function, (x,), _pair(x.mean(), half), _interval_mistakes(x))
        if wrong is not None:
            return wrong
    return Feedback(True, "five seeds are five numbers, however many facts they hold.")


def _sweep(
    K: Float[Tensor, "d_in n"],
    R: Float[Tensor, "d_out n"],
    U: Float[Tensor, "d_in n"],
    scale: Float[Tensor, " n"],
) -> Float[Tensor, "d_out d_in"]:
    change = torch.zeros(len(R), len(K), dtype=K.dtype)
    for k, r, u, q in zip(K.T, R.T, U.T, scale, strict=True):
        change = change + torch.outer(r - change @ k, u) / q
    return change


def _turn_mistakes(
    K: Float[Tensor, "d_in n"], R: Float[Tensor, "d_out n"], C: Float[Tensor, "d d"]
) -> dict[str, Float[Tensor, "..."]]:
    U = torch.linalg.solve(C, K)  # C⁻¹K
    q, plain = (K * U).sum(0), (K * K).sum(0)
    right, last = _sweep(K, R, U, q), torch.outer(R[:, -1], U[:, -1]) / q[-1]
    return {
        "each step starts from the residual of the unedited weight. What is asked is "
        "what is still missing after the earlier steps.": (R / q) @ U.T,
        "this is the whole batch at once, EMMET; facts come one after the other.": (
            R @ torch.linalg.solve(K.T @ U, U.T)
        ),
        "C is missing: these are the steps for C = I.": _sweep(K, R, K, plain),
        "C stands where its inverse belongs.": (
            _sweep(K, R, C @ K, (K * (C @ K)).sum(0))
        ),
        "the steps are not divided by kᵀC⁻¹k.": _sweep(K, R, U, torch.ones_like(q)),
        "the steps are divided by kᵀk instead of kᵀC⁻¹k.": _sweep(K, R, U, plain),
        "this is the last fact alone; keep what was written before.": last,
        "this is what the last step adds; return the sum of all steps.": (
            right - _sweep(K[:, :-1], R[:, :-1], U[:, :-1], q[:-1])
        ),
        "the facts are taken from last to first.": (
            _sweep(K.flip(1), R.flip(1), U.flip(1), q.flip(0))
        ),
        "the sign is turned: add what is missing.": -right,
        "this is the transpose.": right.T,
    }


def check_in_turn(function: Callable) -> Feedback:
    """Check a function of K, R and C that writes the facts one after the other.

    It returns the sum of the changes after one round of ROME, from the first column to
    the last.

    Book: sec-exercises
    """
    generator = torch.Generator().manual_seed(0)
    for d_out, d_in, n in ((3, 7, 4), (5, 6, 9)):
        draw = torch.randn(d_in, 3 * d_in + n, generator=generator, dtype=torch.float64)
        K, rest = draw[:, :n], draw[:, n:]
        C = rest @ rest.T / rest.shape[1]
        R = torch.randn(d_out, n, generator=generator, dtype=torch.float64)
        U = torch.linalg.solve(C, K)
        right = _sweep(K, R, U, (K * U).sum(0))
        mistakes = _turn_mistakes(K, R, C) if n <= d_in else {}
        wrong = compare(function, (K, R, C), right, mistakes)
        if wrong is not None:
            return wrong
    message = "the last fact holds exactly, earlier ones as far as keys allow."
    return Feedback(True, message)
