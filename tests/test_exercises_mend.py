"""Checks of MEND's exercises: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_editor_block, check_gradient


def gradient(u, d, mask):
    m = mask[..., None].to(u)
    return (d * m).flatten(0, 1).T @ u.flatten(0, 1)


def block(h, U, V, b, s, o):  # noqa: N803
    return h + torch.relu(s * (h @ (U @ V).T + b) + o)


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
        (lambda h, U, V, b, s, o: block(h, U, V, b, s, o) - h, "h itself is missing"),
        (lambda h, U, V, b, s, o: torch.relu(h @ V.T @ U.T + b), "h, scale and shift"),
        (lambda h, U, V, b, s, o: h + torch.relu(h @ V.T @ U.T + b), "scale and shift"),
        (lambda h, U, V, b, s, o: h + s * (h @ V.T @ U.T + b) + o, "linear"),
        (
            lambda h, U, V, b, s, o: torch.relu(h + s * (h @ V.T @ U.T + b) + o),
            "h is cut off",
        ),
        (
            lambda h, U, V, b, s, o: h + s * torch.relu(h @ V.T @ U.T + b) + o,
            "the scale is outside",
        ),
        (lambda h, U, V, b, s, o: block(h, U, V, b + o, s, 0 * o), "the shift, too"),
        (lambda h, U, V, b, s, o: block(h, U, V, 0 * b, s, b + o), "is not scaled"),
        (lambda h, U, V, b, s, o: block(h, U, V, b, o, s), "changed places"),
        (lambda h, U, V, b, s, o: block(h, V.T, U.T, b, s, o), "U and V"),
        (lambda h, U, V, b, s, o: block(h, U, V, b, s, o)[:1], "shape"),
    ],
)
def test_wrong_blocks_are_recognised(wrong, message):
    feedback = check_editor_block(wrong)
    assert not feedback
    assert message in feedback.message
