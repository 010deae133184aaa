"""Checks of what surrounds ROME's update: mixed keys, and the essence of a subject."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_kl", "check_mixed_cost"]


def check_mixed_cost(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (k, k_star, C) that says what mixing two keys costs.

    Args:
        function: returns how many times as much r (C⁻¹k_star)ᵀ / (k_starᵀC⁻¹k) costs
            as the cheapest change with Δk = r.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for size, sign in ((4, 1), (7, -1), (3, 1)):
        old = _normal(generator, size, 4 * size)
        C = old @ old.T / old.shape[1]  # (d_in, d_in)
        k = _normal(generator, size)
        k_star = sign * (k + _normal(generator, size))
        wrong = compare(
            function,
            (k, k_star, C),
            _ratio(k, k_star, torch.linalg.inv(C)),
            _cost_mistakes(k, k_star, C),
        )
        if wrong is not None:
            return wrong
    return Feedback(True, "one over the squared cosine, in the metric of C⁻¹.")


def _ratio(
    a: Float[Tensor, " d_in"], b: Float[Tensor, " d_in"], M: Float[Tensor, "d_in d_in"]
) -> Float[Tensor, ""]:
    """1/cos² of the angle between a and b in the metric of M."""
    return (a @ M @ a) * (b @ M @ b) / (a @ M @ b) ** 2


def _cost_mistakes(
    k: Float[Tensor, " d_in"],
    k_star: Float[Tensor, " d_in"],
    C: Float[Tensor, "d_in d_in"],
) -> dict[str, Float[Tensor, "..."]]:
    M = torch.linalg.inv(C)
    right, I = _ratio(k, k_star, M), torch.eye(len(C)).to(C)  # noqa: E741
    over = (k_star @ M @ k_star) / (k @ M @ k_star)
    return {
        "this is the cosine. The cost is quadratic in Δ, and it is never below 1.": (
            (k @ M @ k_star).sign() / right.sqrt()
        ),
        "this is the squared cosine, so it says that mixing is cheaper. Which of the "
        "two changes is the cheapest?": 1 / right,
        "this is one over the cosine: the growth of the norm. The cost is quadratic "
        "in Δ.": (k @ M @ k_star).sign() * right.sqrt(),
        "this is the size of 1/cos, the growth of the norm. The cost is quadratic in "
        "Δ.": right.sqrt(),
        "the angle is the one on paper: C⁻¹ is missing.": _ratio(k, k_star, I),
        "this uses C where C⁻¹ belongs.": _ratio(k, k_star, C),
        "this is by how much the change overshoots at k_star, not what it does to old "
        "keys.": over,
        "this compares with the cheapest change that hits k_star; k is the key that "
        "is hit here.": over**2,
    }


def check_kl(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (now, before), logits, that returns the essence term.

    Args:
        function: returns KL(P_now ‖ P_before) in nats, a mean over the rows.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for rows, words in ((1, 6), (3, 5), (4, 9)):
        now = 2 * _normal(generator, rows, words)
        before = 2 * _normal(generator, rows, words) + 1
        right = _kl(now, before)
        wrong = compare(function, (now, before), right, _kl_mistakes(now, before))
        if wrong is not None:
            return wrong
    return Feedback(True, "what the edited model expects is what weighs the terms.")


def _kl(
    a: Float[Tensor, "rows words"], b: Float[Tensor, "rows words"]
) -> Float[Tensor, ""]:
    """KL(P_a ‖ P_b), a mean over rows."""
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def _kl_mistakes(
    now: Float[Tensor, "rows words"], before: Float[Tensor, "rows words"]
) -> dict[str, Float[Tensor, "..."]]:
    p, q = now.log_softmax(-1), before.log_softmax(-1)
    right, terms = _kl(now, before), p.exp() * (p - q)
    return {
        "the direction is the other one: what weighs the logarithms is the "
        "probability now, with δ.": _kl(before, now),
        "the sign is wrong: a divergence is never negative.": -right,
        "these are logits, not log-probabilities: normalise each row first.": (
            (now.exp() * (now - before)).sum(-1).mean()
        ),
        "only one of the two is normalised; both are logits.": (
            (p.exp() * (p - before)).sum(-1).mean()
        ),
        "it is averaged over the words; sum over words, average over rows.": (
            terms.mean()
        ),
        "the rows are summed; average over them.": terms.sum(),
        "there is one number per row; average over them.": terms.sum(-1),
        "the logarithms are not weighted by probabilities.": (p - q).sum(-1).mean(),
        "this is the cross-entropy: the entropy of the new distribution is not "
        "subtracted.": -(p.exp() * q).sum(-1).mean(),
        "this is in bits; the other parts of the loss are in nats.": (
            right / torch.tensor(2.0).double().log()
        ),
    }


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
