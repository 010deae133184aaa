"""Checks of knowledge neurons: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_integrated_gradients, check_shared


def slopes(g, w, points):
    return torch.stack([g(s * w) for s in points])


def path(g, w, m):
    return w * slopes(g, w, [k / m for k in range(1, m + 1)]).mean(0)


def votes(x, t, p):
    return ((x > 0) & (x >= t * x.amax(1, keepdim=True))).double().mean(0) >= p


@pytest.mark.parametrize("seed", [0, 3])
def test_right_answers_pass(seed):
    assert check_integrated_gradients(path, seed=seed)
    assert check_shared(votes, seed=seed)
    assert check_shared(lambda x, t, p: votes(x, t, p).double(), seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g, w, m: g(w), "one gradient"),
        (lambda g, w, m: w * g(w), "at the end times w"),
        (lambda g, w, m: path(g, w, m) / w, "multiply it by w"),
        (lambda g, w, m: path(g, w, m) * m, "divide by m"),
        (
            lambda g, w, m: w * slopes(g, w, [k / m for k in range(m)]).mean(0),
            "from k = 0",
        ),
        (
            lambda g, w, m: w * slopes(g, w, [k / m for k in range(m + 1)]).mean(0),
            "m + 1 points",
        ),
        (
            lambda g, w, m: w * slopes(g, w, [(k + 0.5) / m for k in range(m)]).mean(0),
            "midpoint",
        ),
        (lambda g, w, m: path(g, w, m).sum(), "added up"),
        (lambda g, w, m: -path(g, w, m), "wrong way round"),
        (lambda g, w, m: 3.5 * path(g, w, m), "relative error 2"),
    ],
)
def test_wrong_integrals_are_recognised(wrong, message):
    feedback = check_integrated_gradients(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, t, p: (x >= t * x.max()).double().mean(0) >= p, "largest of all"),
        (lambda x, t, p: (x >= t).double().mean(0) >= p, "stands alone"),
        (lambda x, t, p: votes(x, t, 1e-9), "one wording is enough"),
        (lambda x, t, p: votes(x, t, 1), "must agree"),
        (lambda x, t, p: x.mean(0) >= t * x.mean(0).max(), "averaged first"),
        (lambda x, t, p: votes(x.abs(), t, p), "leave the sign"),
        (
            lambda x, t, p: (x >= t * x.amax(1, keepdim=True)).double().mean(0),
            "compare it with",
        ),
        (lambda x, t, p: votes(x, t, p).nonzero(), "shape"),
    ],
)
def test_wrong_refinements_are_recognised(wrong, message):
    feedback = check_shared(wrong)
    assert not feedback
    assert message in feedback.message
