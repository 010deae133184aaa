import math

import pytest
import torch

from edutools.exercises import check_in_turn, check_seed_interval
from edutools.solve import emmet_update, rome_update
from edutools.studies import student, summary


def interval(x):
    means = x.mean(1)
    half = student(len(means) - 1) * means.std() / math.sqrt(len(means))
    return torch.stack([means.mean(), half])


def by_summary(x):
    rows = [{"seed": i, "x": float(row.mean())} for i, row in enumerate(x)]
    (found,) = summary(rows, by=[], value="x")
    return torch.tensor([found["mean"], found["high"] - found["mean"]]).double()


def turn(K, R, C, *, lam=0.0):
    change = torch.zeros(len(R), len(K)).double()
    for k, r in zip(K.T, R.T, strict=True):
        u = torch.linalg.solve(C, k)
        change = change + torch.outer(r - change @ k, u) / (lam + u @ k)
    return change


def by_rome(K, R, C):
    W = torch.zeros(len(R), len(K)).double()
    for k, r in zip(K.T, R.T, strict=True):
        W = W + rome_update(W, k, r, C).dense()
    return W


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_seed_interval, interval),
        (check_seed_interval, by_summary),
        (check_in_turn, turn),
        (check_in_turn, by_rome),
    ],
)
def test_a_right_answer_passes(check, right):
    feedback = check(right)
    assert feedback
    assert repr(feedback).startswith("Correct: ")


def pair(x, half):
    return torch.stack([x.mean(), torch.as_tensor(half).double()])


def over_facts(x):
    return x.std() / x.numel() ** 0.5


def over_seeds(x):
    return x.mean(1).std() / len(x) ** 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: pair(x, student(x.numel() - 1) * over_facts(x)), "mean of each"),
        (lambda x: pair(x, 1.96 * over_facts(x)), "the normal 1.96"),
        (lambda x: pair(x, 1.96 * over_seeds(x)), "need Student's"),
        (lambda x: pair(x, student(len(x)) * over_seeds(x)), "freedom"),
        (lambda x: pair(x, interval(x)[1] * (1 - 1 / len(x)) ** 0.5), "divides"),
        (lambda x: pair(x, interval(x)[1] * len(x) ** 0.5), "single seeds"),
        (lambda x: pair(x, over_seeds(x)), "standard error"),
        (lambda x: pair(x, 2 * interval(x)[1]), "whole width"),
        (lambda x: interval(x)[0] + torch.tensor([-1, 1]) * interval(x)[1], "ends"),
        (lambda x: interval(x.T), "rows and columns"),
        (lambda x: 0 * interval(x), "the numbers are not"),
        (lambda x: interval(x)[1], "shape"),
        (lambda: 1.0, "other arguments"),
    ],
)  # fmt: skip
def test_a_wrong_interval_is_recognized(wrong, message):
    feedback = check_seed_interval(wrong)
    assert not feedback
    assert message in feedback.message


def solved(K, C):
    return torch.linalg.solve(C, K)


def lengths(K, C):
    return (K * solved(K, C)).sum(0)


def zero(K, R):
    return torch.zeros(len(R), len(K)).double()


def eye(C):
    return torch.eye(len(C)).double()


def undivided(K, R, C, by):
    change = zero(K, R)
    for k, r in zip(K.T, R.T, strict=True):
        u = torch.linalg.solve(C, k)
        change = change + torch.outer(r - change @ k, u) / by(k)
    return change


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda K, R, C: (R / lengths(K, C)) @ solved(K, C).T, "still missing"),
        (lambda K, R, C: emmet_update(zero(K, R), K, R, C).dense(), "at once"),
        (lambda K, R, C: turn(K, R, eye(C)), "C is missing"),
        (lambda K, R, C: turn(K, R, torch.linalg.inv(C)), "its inverse belongs"),
        (lambda K, R, C: undivided(K, R, C, lambda k: 1.0), "not divided"),
        (lambda K, R, C: undivided(K, R, C, lambda k: k @ k), "kᵀk instead"),
        (lambda K, R, C: turn(K[:, -1:], R[:, -1:], C), "last fact alone"),
        (lambda K, R, C: turn(K, R, C) - turn(K[:, :-1], R[:, :-1], C), "last step"),
        (lambda K, R, C: turn(K.flip(1), R.flip(1), C), "last to first"),
        (lambda K, R, C: -turn(K, R, C), "sign"),
        (lambda K, R, C: turn(K, R, C).T, "transpose"),
        (lambda K, R, C: turn(K, R, C, lam=1.0), "the numbers are not"),
        (lambda K, R, C: turn(K, R, C)[0], "shape"),
    ],
)
def test_a_wrong_sequence_is_recognized(wrong, message):
    feedback = check_in_turn(wrong)
    assert not feedback
    assert message in feedback.message


def test_more_facts_than_dimensions_are_asked_as_well():
    def only_small(K, R, C):
        return turn(K, R, C) if K.shape[1] <= len(K) else zero(K, R)

    assert not check_in_turn(only_small)
