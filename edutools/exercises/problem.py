"""Checks of the problem: what stays, how far a memory reaches, what a step moves."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_gradient_shift", "check_locality", "check_radius"]


def check_locality(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (before, after, truth, outside) that returns the locality.

    Args:
        function: takes three rows of answers as numbers, those of the unedited model,
            of the edited one and of the world, and a mask of the prompts outside the
            scope; returns a number from 0 to 1.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for prompts in (24, 31, 40):
        asked, right, mistakes = _telling(generator, prompts)
        wrong = compare(function, asked, right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "it asks what has changed, not what is true.")


def _telling(
    generator: torch.Generator, prompts: int
) -> tuple[tuple[Tensor, ...], Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Answers for which every mistake gives another number, the right one, these."""
    while True:
        before = torch.randint(3, (prompts,), generator=generator)
        truth = torch.where(_often(generator, prompts, 0.7), before, before + 1)
        after = torch.where(_often(generator, prompts, 0.8), before, before + 2)
        outside = _often(generator, prompts, 0.6)
        asked = (before, after, truth, outside)
        right = (after == before)[outside].double().mean()
        mistakes = _locality_mistakes(*asked)
        found = {round(float(x), 9) for x in (right, *mistakes.values())}
        if len(found) > len(mistakes):
            return asked, right, mistakes


def _locality_mistakes(
    before: Int[Tensor, " n"],
    after: Int[Tensor, " n"],
    truth: Int[Tensor, " n"],
    outside: Bool[Tensor, " n"],
) -> dict[str, Float[Tensor, ""]]:
    same, rest = (after == before).double(), outside.double()
    return {
        "this compares with the truth: an answer that was wrong before and is still "
        "the same has not been moved.": (after == truth)[outside].double().mean(),
        "this is the share of answers that changed; count those that did not.": (
            1 - same[outside].mean()
        ),
        "this averages over all prompts; those inside the scope shall change.": (
            same.mean()
        ),
        "this looks inside the scope, where answers shall change.": (
            same[~outside].mean()
        ),
        "this is the sum over prompts; locality is their mean.": same[outside].sum(),
        "this divides by the number of all prompts; divide by those outside the "
        "scope.": (same * rest).mean(),
    }


def check_radius(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (key, inside, outside) that returns (reach, limit).

    Args:
        function: takes a key (d,) and states of prompts inside and outside the scope,
            one per row; returns two numbers: the smallest radius whose ball holds all
            states inside, and the distance at which the first one outside comes in.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d, inside, outside in ((3, 5, 6), (6, 4, 9), (2, 7, 3)):
        key = _normal(generator, d)
        near = key + _normal(generator, inside, d)
        far = key + 2 * _normal(generator, outside, d)
        to_near, to_far = (near - key).norm(dim=1), (far - key).norm(dim=1)
        right = torch.stack([to_near.max(), to_far.min()])
        mistakes = _radius_mistakes(key, near, far)
        wrong = compare(function, (key, near, far), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "one ball serves if the first number is below the second.")


def _radius_mistakes(
    key: Float[Tensor, " d"],
    inside: Float[Tensor, "n d"],
    outside: Float[Tensor, "m d"],
) -> dict[str, Float[Tensor, "2"]]:
    near, far = (inside - key).norm(dim=1), (outside - key).norm(dim=1)
    right = torch.stack([near.max(), far.min()])
    sums = [(x - key).abs().sum(1) for x in (inside, outside)]
    return {
        "these are squared distances; take the root.": right**2,
        "the two numbers are swapped: the reach, which the states inside need, comes "
        "first.": right.flip(0),
        "the reach is that of the nearest state inside; all of them must fit in.": (
            torch.stack([near.min(), far.min()])
        ),
        "the limit is the farthest state outside; already the nearest one must stay "
        "out.": torch.stack([near.max(), far.max()]),
        "these are mean distances; one prompt that misses is an error, too.": (
            torch.stack([near.mean(), far.mean()])
        ),
        "these are sums of absolute differences; the ball is Euclidean.": (
            torch.stack([sums[0].max(), sums[1].min()])
        ),
        "these are lengths of the states; measure from the key.": (
            torch.stack([inside.norm(dim=1).max(), outside.norm(dim=1).min()])
        ),
    }


def check_gradient_shift(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (g, k, K, lr) that returns how far a step moves outputs.

    Args:
        function: takes the loss's gradient g at the output Wk of a linear map, the key
            k, other keys as columns of K, and a learning rate; returns the changes of
            the outputs for K after one step of gradient descent on W, as (d_out, n).
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_out, d_in, n, lr in ((3, 4, 5, 0.1), (5, 5, 5, 0.3), (4, 7, 2, 0.02)):
        g, k = _normal(generator, d_out), _normal(generator, d_in)
        K = _normal(generator, d_in, n)
        right = -lr * torch.outer(g, k @ K)  # (d_out, n)
        wrong = compare(function, (g, k, K, lr), right, _shift_mistakes(g, k, K, lr))
        if wrong is not None:
            return wrong
    return Feedback(True, "every key moves that is not orthogonal to k.")


def _shift_mistakes(
    g: Float[Tensor, " d_out"],
    k: Float[Tensor, " d_in"],
    K: Float[Tensor, "d_in n"],
    lr: float,
) -> dict[str, Float[Tensor, "..."]]:
    shift = -lr * torch.outer(g, k @ K)  # (d_out, n)
    own = -lr * (k @ k) * g  # (d_out,)
    return {
        "the sign is wrong: descent goes against the gradient.": -shift,
        "the learning rate is missing.": shift / lr,
        "this is transposed; outputs are columns, (d_out, n).": shift.T,
        "this divides by |k|²; that is the step that would fit k exactly, not one of "
        "gradient descent.": shift / (k @ k),
        "this is how far the output of k itself moves, the same for all; compare each "
        "key with k.": own[:, None].expand(-1, K.shape[1]),
        "this is the change of the matrix; apply it to K.": -lr * torch.outer(g, k),
        "this takes cosines; long keys move farther.": (
            shift / (k.norm() * K.norm(dim=0))
        ),
        "this is the sum over the other keys; each has its own change.": shift.sum(1),
    }


def _often(
    generator: torch.Generator, size: int, share: float
) -> Bool[Tensor, " size"]:
    return torch.rand(size, generator=generator) < share


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
