"""Checks of MEND's exercises: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_editor_block, check_gradient


def gradient(u, d, mask):
    m = mask[..., None].to(u)
    return (d * m).flatten(0, 1).T @ u.flatten(0, 1)


def block(h, shared, own):
    return h + inside(h, shared, own).clamp(min=0)


def inside(h, shared, own):
    (U, V, b), (s, o) = shared, own
    return s * (h @ (U @ V).T + b) + o


def low(h, shared):
    return inside(h, shared, (1.0, 0.0))


@pytest.mark.parametrize("seed", [0, 3])
def test_right_answers_pass(seed):
    assert check_gradient(gradient, seed=seed)
    assert check_editor_block(block, seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda u, d, m: gradient(u, d, torch.ones_like(m)), "padding is counted: "),
        (lambda u, d, m: gradient(u, d, m).T, "transposed: W is"),
        (lambda u, d, m: gradient(u, d, torch.ones_like(m)).T, "transposed, and"),
        (lambda u, d, m: gradient(u, d, m) / m.sum(), "mean over tokens"),
        (lambda u, d, m: gradient(u, d, m) / len(u), "mean over texts"),
        (lambda u, d, m: -gradient(u, d, m), "direction of descent"),
        (
            lambda u, d, m: torch.outer(
                (d * m[..., None]).sum((0, 1)), (u * m[..., None]).sum((0, 1))
            ),
            "two sums",
        ),
        (lambda u, d, m: u.mul_(0), "in place"),
        (lambda u, d, m: None, "returns nothing"),
        (lambda u, d, m: 2 * gradient(u, d, m), "relative error 1"),
    ],
)
def test_wrong_gradients_are_recognised(wrong, message):
    feedback = check_gradient(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h, x, y: block(h, x, y) - h, "h itself is missing"),
        (lambda h, x, y: low(h, x).relu(), "h, scale and shift"),
        (lambda h, x, y: h + low(h, x).relu(), "scale and shift"),
        (lambda h, x, y: h + inside(h, x, y), "linear"),
        (lambda h, x, y: (h + inside(h, x, y)).relu(), "h is cut off"),
        (lambda h, x, y: h + y[0] * low(h, x).relu() + y[1], "the scale is outside"),
        (lambda h, x, y: block(h, (*x[:2], x[2] + y[1]), (y[0], 0)), "the shift, too"),
        (lambda h, x, y: block(h, (*x[:2], 0), (y[0], x[2] + y[1])), "is not scaled"),
        (lambda h, x, y: block(h, x, y[::-1]), "changed places"),
        (lambda h, x, y: block(h, (x[1].T, x[0].T, x[2]), y), "U and V"),
        (lambda h, x, y: block(h, x, y)[:1], "shape"),
    ],
)
def test_wrong_blocks_are_recognised(wrong, message):
    feedback = check_editor_block(wrong)
    assert not feedback
    assert message in feedback.message
