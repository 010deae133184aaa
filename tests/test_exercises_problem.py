"""Checks of the problem: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_gradient_shift, check_locality, check_radius


def same(before, after):
    return (before == after).double()


def ends(key, inside, outside):
    return (inside - key).norm(dim=1), (outside - key).norm(dim=1)


def reach(key, inside, outside):
    near, far = ends(key, inside, outside)
    return torch.stack([near.max(), far.min()])


def shift(g, k, K, lr):
    return -lr * torch.outer(g, k @ K)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_right_answers_pass(seed):
    assert check_locality(lambda b, a, t, o: same(b, a)[o].mean(), seed=seed)
    assert check_locality(
        lambda b, a, t, o: float((same(b, a) * o).sum() / o.sum()), seed=seed
    )
    assert check_radius(reach, seed=seed)
    assert check_gradient_shift(shift, seed=seed)
    assert check_gradient_shift(
        lambda g, k, K, lr: (-lr * g[:, None] * k[None]) @ K, seed=seed
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda b, a, t, o: same(a, t)[o].mean(), "the truth"),
        (lambda b, a, t, o: 1 - same(a, b)[o].mean(), "that changed"),
        (lambda b, a, t, o: same(a, b).mean(), "over all prompts"),
        (lambda b, a, t, o: same(a, b)[~o].mean(), "inside the scope"),
        (lambda b, a, t, o: same(a, b)[o].sum(), "the sum"),
        (lambda b, a, t, o: (same(a, b) * o).mean(), "number of all prompts"),
        (lambda b, a, t, o: same(a, b)[o], "shape"),
        (lambda b, a, t, o: None, "returns nothing"),
    ],
)
def test_wrong_localities_are_recognised(wrong, message):
    for seed in (0, 1, 7):
        feedback = check_locality(wrong, seed=seed)
        assert not feedback
        assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *x: reach(*x) ** 2, "squared"),
        (lambda *x: reach(*x).flip(0), "swapped"),
        (lambda *x: torch.stack([d.min() for d in ends(*x)]), "nearest state inside"),
        (lambda *x: torch.stack([d.max() for d in ends(*x)]), "farthest state outside"),
        (lambda *x: torch.stack([d.mean() for d in ends(*x)]), "mean distances"),
        (
            lambda k, i, o: torch.stack(
                [(i - k).abs().sum(1).max(), (o - k).abs().sum(1).min()]
            ),
            "absolute differences",
        ),
        (
            lambda k, i, o: torch.stack([i.norm(dim=1).max(), o.norm(dim=1).min()]),
            "lengths of the states",
        ),
        (lambda *x: tuple(reach(*x)), "tuple"),
        (lambda *x: reach(*x)[:1], "shape"),
    ],
)
def test_wrong_radii_are_recognised(wrong, message):
    feedback = check_radius(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *x: -shift(*x), "sign"),
        (lambda g, k, K, lr: shift(g, k, K, 1.0), "learning rate"),
        (lambda *x: shift(*x).T, "transposed"),
        (lambda g, k, K, lr: shift(g, k, K, lr) / (k @ k), "|k|²"),
        (
            lambda g, k, K, lr: shift(g, k, k[:, None].expand_as(K), lr),
            "output of k itself",
        ),
        (lambda g, k, K, lr: -lr * torch.outer(g, k), "change of the matrix"),
        (
            lambda g, k, K, lr: shift(g, k / k.norm(), K / K.norm(dim=0), lr),
            "cosines",
        ),
        (lambda *x: shift(*x).sum(1), "sum over the other keys"),
        (lambda *x: 3 * shift(*x), "relative error 2"),
    ],
)
def test_wrong_shifts_are_recognised(wrong, message):
    feedback = check_gradient_shift(wrong)
    assert not feedback
    assert message in feedback.message
