"""Checks of causal tracing: corrupting a subject, and the effects of restoring.

Axes: samples of the noise · tokens of the prompt · layers · facts.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_corruption", "check_effect", "check_mean_effect"]


def check_corruption(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (h, subject, noise) that corrupts the subject's embeddings.

    Args:
        function: takes embeddings (samples, tokens, d_model), the range [first, end)
            of the subject's tokens and noise (samples, end - first, d_model); returns
            the corrupted embeddings and leaves its input as it is.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for tokens, first, end in ((7, 2, 5), (6, 1, 4), (5, 0, 3)):
        h = _normal(generator, 1, tokens, 4).repeat(3, 1, 1)
        noise = _normal(generator, 3, end - first, 4)
        right = _added(h, first, noise)
        mistakes = _corruption_mistakes(h, (first, end), noise)
        wrong = compare(function, (h, (first, end), noise), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "every subject token is corrupted, and no other.")


def _corruption_mistakes(
    h: Float[Tensor, "samples tokens d_model"],
    subject: tuple[int, int],
    noise: Float[Tensor, "samples subject d_model"],
) -> dict[str, Float[Tensor, "samples tokens d_model"]]:
    first, end = subject
    in_place = h.clone()
    in_place[:, first:end] = noise
    last_kept = _added(h, first, noise[:, :-1])
    return {
        "nothing is corrupted; the embeddings come back as they went in.": h,
        "the noise stands in place of the embeddings; add it to them.": in_place,
        "the noise is subtracted; add it.": _added(h, first, -noise),
        "the last token of the subject stays clean: the range [first, end) ends "
        "before `end`, so the last one is end - 1.": last_kept,
        "only the last token of the subject is corrupted; take all of them.": (
            _added(h, end - 1, noise[:, -1:])
        ),
        "the noise lies one token too far to the right.": _added(h, first + 1, noise),
        "every sample got the same noise; sample i takes noise[i].": (
            _added(h, first, noise[:1].expand_as(noise))
        ),
    }


def _added(
    h: Float[Tensor, "samples tokens d_model"],
    first: int,
    noise: Float[Tensor, "samples subject d_model"],
) -> Float[Tensor, "samples tokens d_model"]:
    new = h.clone()
    new[:, first : first + noise.shape[1]] += noise
    return new


def check_effect(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (p_clean, p_corrupt, p_restored) that returns the effect IE.

    Args:
        function: takes the answer's probability in the clean run (no axis), in the
            corrupted run (samples) and with each state restored (samples, tokens,
            layers); returns the mean indirect effect (tokens, layers).
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for samples, tokens, layers in ((5, 3, 4), (4, 4, 4), (7, 2, 6)):
        shape = (samples, tokens, layers)
        p_clean = 0.8 + 0.2 * _uniform(generator)
        p_corrupt = 0.3 * _uniform(generator, samples)
        p_restored = _uniform(generator, *shape)
        given = (p_clean, p_corrupt, p_restored)
        right = p_restored.mean(0) - p_corrupt.mean()  # (tokens, layers)
        wrong = compare(function, given, right, _effect_mistakes(*given))
        if wrong is not None:
            return wrong
    return Feedback(True, "it is what restoring brings back, over all noises.")


def _effect_mistakes(
    p_clean: Float[Tensor, ""],
    p_corrupt: Float[Tensor, " samples"],
    p_restored: Float[Tensor, "samples tokens layers"],
) -> dict[str, Float[Tensor, "..."]]:
    mean, base = p_restored.mean(0), p_corrupt.mean()
    right, total = mean - base, p_clean - base
    return {
        "the sign is the wrong way round; what comes back counts as positive.": -right,
        "this compares with the clean run; the corrupted run is where restoring "
        "starts from.": mean - p_clean,
        "this is what is still missing to the clean run.": p_clean - mean,
        "this is the total effect; no state is restored in it.": total,
        "this is the fraction of the total effect; IE is a difference of "
        "probabilities.": right / total,
        "this is the probability after restoring; take off the corrupted run's.": mean,
        "this is the sum over samples; take the mean.": right * len(p_corrupt),
        "the samples are not averaged yet.": p_restored - p_corrupt[:, None, None],
    }


def check_mean_effect(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of effects (facts, layers) that returns AIE and its interval.

    Args:
        function: takes one row per fact, of nan where the fact has no token of the
            role; returns a tensor (2, layers): the mean over facts and half the width
            of its 95 % interval, 1.96 standard errors.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for facts, layers in ((9, 4), (6, 6), (12, 3)):
        effects = _uniform(generator, facts, layers)
        effects[1:3] = torch.nan
        there = effects[~effects[:, 0].isnan()]  # (n, layers)
        right = _interval(there, there.std(0) / len(there) ** 0.5)
        wrong = compare(function, (effects,), right, _mean_mistakes(effects, there))
        if wrong is not None:
            return wrong
    return Feedback(True, "it counts the facts that have something to say.")


def _mean_mistakes(
    effects: Float[Tensor, "facts layers"], there: Float[Tensor, "n layers"]
) -> dict[str, Float[Tensor, "2 layers"]]:
    n, every = len(there), len(effects)
    spread = there.std(0)
    zeros = effects.nan_to_num(0)
    plain = there.std(0, correction=0) / n**0.5
    return {
        "this is the spread of single facts; the mean of n facts wobbles by "
        "1 / √n of it.": _interval(there, spread),
        "this divides by n; the mean of a sample is divided by √n.": (
            _interval(there, spread / n)
        ),
        "missing facts count as effects of 0; leave them out.": (
            _interval(zeros, zeros.std(0) / every**0.5)
        ),
        "n counts the missing facts, too.": _interval(there, spread / every**0.5),
        "the variance is divided by n; from a sample, divide by n − 1.": (
            _interval(there, plain)
        ),
        "half the width is 1.96 standard errors; this is one.": (
            _interval(there, spread / n**0.5 / 1.96)
        ),
        "this is the whole width of the interval; return half of it.": (
            _interval(there, 2 * spread / n**0.5)
        ),
    }


def _interval(
    rows: Float[Tensor, "n layers"], error: Float[Tensor, " layers"]
) -> Float[Tensor, "2 layers"]:
    return torch.stack([rows.mean(0), 1.96 * error])


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.rand(size, generator=generator, dtype=torch.float64)
