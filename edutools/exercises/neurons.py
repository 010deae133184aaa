"""Checks of knowledge neurons: integrated gradients, and what wordings share.

Axes: neurons of a layer · n wordings of a fact.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_integrated_gradients", "check_shared"]


def check_integrated_gradients(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (gradient, w, m) that returns integrated gradients from 0.

    Args:
        function: takes a function that returns the gradient at a point, the present
            values w (neurons) and the number m of steps; returns the scores by the
            right Riemann sum, k from 1 to m.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for neurons, m in ((3, 4), (5, 7), (4, 1)):
        a, w = (_normal(generator, neurons) for _ in range(2))

        def gradient(x: Tensor, a: Tensor = a) -> Tensor:  # of sigmoid(a·x + ½)
            p = torch.sigmoid(a @ x + 0.5)
            return p * (1 - p) * a

        slopes = torch.stack([gradient(k / m * w) for k in range(m + 1)])
        right = w * slopes[1:].mean(0)
        mistakes = _path_mistakes(gradient, w, slopes)
        wrong = compare(function, (gradient, w, m), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "the sum of the scores tends to f(w) - f(0) as m grows.")


def _path_mistakes(
    gradient: Callable,
    w: Float[Tensor, " neurons"],
    slopes: Float[Tensor, "m1 neurons"],
) -> dict[str, Float[Tensor, "..."]]:
    m = len(slopes) - 1
    middle = torch.stack([gradient((k + 0.5) / m * w) for k in range(m)])
    mean = slopes[1:].mean(0)
    return {
        "this is one gradient, at the end of the path; average over the path.": (
            slopes[-1]
        ),
        "this is the gradient at the end times w; average over the path.": (
            w * slopes[-1]
        ),
        "the average gradient is right; multiply it by w.": mean,
        "the mean over steps is missing: divide by m.": w * slopes[1:].sum(0),
        "this goes from k = 0 to m - 1, as the released code does; the paper's sum, "
        "and this exercise, from 1 to m.": w * slopes[:-1].mean(0),
        "this counts m + 1 points; take k from 1 to m.": w * slopes.mean(0),
        "this is the midpoint rule. It is more exact, but the paper's sum is asked "
        "for.": w * middle.mean(0),
        "these scores are already added up; return one per neuron.": (w * mean).sum(),
        "the path runs from w to 0; the sign is the wrong way round.": -w * mean,
    }


def check_shared(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (scores, threshold, share) that tells which neurons stay.

    Args:
        function: takes scores (n, neurons) of n wordings of one fact; returns 1 or true
            for each neuron that has, in at least the `share` of the wordings, a
            positive score of at least `threshold` times that wording's largest one.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for n, neurons, threshold, share in ((8, 30, 0.2, 0.5), (5, 20, 0.1, 0.6)):
        loud = 10 ** torch.arange(n)[:, None].double()  # wordings differ in scale
        always = _normal(generator, neurons)
        scores = loud * (always + 0.7 * _normal(generator, n, neurons))
        largest = scores.amax(1, keepdim=True)
        counts = (scores >= threshold * largest) & (scores > 0)
        right = (counts.double().mean(0) >= share).double()
        mistakes = _shared_mistakes(scores, threshold, share)
        wrong = compare(function, (scores, threshold, share), right, mistakes)
        if wrong is not None:
            return wrong
    return Feedback(True, "each wording votes once, by its own scale.")


def _shared_mistakes(
    scores: Float[Tensor, "n neurons"], threshold: float, share: float
) -> dict[str, Float[Tensor, "..."]]:
    largest = scores.amax(1, keepdim=True)
    own = (scores >= threshold * largest).double()
    absolute = scores.abs() >= threshold * scores.abs().amax(1, keepdim=True)
    mean = scores.mean(0)
    return {
        "the threshold is a share of each wording's own largest score, not of the "
        "largest of all.": (
            (scores >= threshold * scores.max()).double().mean(0) >= share
        ).double(),
        "the threshold stands alone: multiply it by the wording's largest score.": (
            (scores >= threshold).double().mean(0) >= share
        ).double(),
        "one wording is enough here; ask for the share of them.": own.amax(0),
        "all wordings must agree here; ask for the share of them.": own.amin(0),
        "the scores are averaged first, so one loud wording decides; let each vote.": (
            mean >= threshold * mean.max()
        ).double(),
        "neurons that hinder count, too; leave the sign where it is.": (
            absolute.double().mean(0) >= share
        ).double(),
        "this is the share of the wordings; compare it with `share`.": own.mean(0),
    }


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
