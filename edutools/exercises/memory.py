"""Checks of the linear memory: fitting it, and measuring which keys it reads."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_least_squares", "check_second_moment"]


def check_least_squares(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (K, V) that returns the least-squares memory W.

    Args:
        function: takes keys and values, one pair per column, at least as many as keys
            have entries; returns the W that minimises the sum of |W k - v|².
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_out, d_in, n in ((3, 4, 12), (4, 4, 9), (5, 6, 6)):
        K = _normal(generator, d_in, d_in) @ _normal(generator, d_in, n)
        V = _normal(generator, d_out, n)
        right = torch.linalg.solve(K @ K.T, K @ V.T).T  # VKᵀ(KKᵀ)⁻¹  (d_out, d_in)
        wrong = compare(function, (K, V), right, _memory_mistakes(K, V, right))
        if wrong is not None:
            return wrong
    return Feedback(True, "no other matrix recalls these values with a smaller error.")


def _memory_mistakes(
    K: Float[Tensor, "d_in n"], V: Float[Tensor, "d_out n"], W: Float[Tensor, "..."]
) -> dict[str, Float[Tensor, "..."]]:
    hebb = V @ K.T
    return {
        "this is W transposed: W is (d_out, d_in).": W.T,
        "this is the sum of outer products VKᵀ: it is right for orthonormal keys "
        "only. What does the normal equation still want?": hebb,
        "this is the mean of the outer products; it is no solution of the normal "
        "equation either.": hebb / K.shape[1],
        "this multiplies by KKᵀ where its inverse belongs.": hebb @ K @ K.T,
        "this maps values to keys; keys and values are swapped.": (
            K @ torch.linalg.pinv(V)
        ),
    }


def check_second_moment(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (keys, mask) that returns C, the second moment per token.

    Args:
        function: takes keys as (texts, tokens, d_in) and a mask (texts, tokens) that
            is 0 where a text has been filled up; returns E[k kᵀ] as (d_in, d_in).
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for texts, tokens, d_in in ((3, 5, 4), (4, 6, 6), (1, 7, 3)):
        keys = _normal(generator, texts, tokens, d_in) + 1
        mask = torch.ones(texts, tokens, dtype=torch.long)
        mask[0, tokens - 2 :] = 0
        rows = keys[mask.bool()]  # (N, d_in)
        right = rows.T @ rows / len(rows)  # (d_in, d_in)
        mistakes = _moment_mistakes(keys, mask, right)
        wrong = compare(function, (keys, mask), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "it counts every token once and padding never.")


def _moment_mistakes(
    keys: Float[Tensor, "texts tokens d_in"],
    mask: Int[Tensor, "texts tokens"],
    right: Float[Tensor, "d_in d_in"],
) -> dict[str, Float[Tensor, "..."]]:
    rows, every = keys[mask.bool()], keys.flatten(0, 1)
    n, mean = len(rows), rows.mean(0)
    per_text = [k[m.bool()] for k, m in zip(keys, mask, strict=True)]
    return {
        "this is the sum over tokens; C is the mean per token.": n * right,
        "this subtracts the mean key: C is E[kkᵀ] itself, uncentred, because a change "
        "of the mean's value is a disturbance, too.": right - torch.outer(mean, mean),
        "this is the covariance, centred and over N − 1; C is E[kkᵀ] itself.": (
            rows.T.cov()
        ),
        "padding is counted: leave out tokens whose mask is 0.": (
            every.T @ every / len(every)
        ),
        "padding is left out of the sum but counted in the mean.": (
            n * right / len(every)
        ),
        "this divides by N − 1; nothing was subtracted, so divide by N.": (
            n * right / (n - 1)
        ),
        "this is KᵀK, how tokens resemble one another; C is (d_in, d_in).": (
            rows @ rows.T / n
        ),
        "this is the mean over texts of each text's C: short texts count as much as "
        "long ones. Every token counts alike.": (
            torch.stack([k.T @ k / len(k) for k in per_text]).mean(0)
        ),
    }


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
