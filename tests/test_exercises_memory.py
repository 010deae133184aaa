"""Checks of the linear memory: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_least_squares, check_second_moment

pinv = torch.linalg.pinv


def rows(keys, mask):
    return keys[mask.bool()]


def moment(keys, mask):
    x = rows(keys, mask)
    return x.T @ x / len(x)


@pytest.mark.parametrize(
    "right",
    [
        lambda K, V: V @ pinv(K),
        lambda K, V: torch.linalg.solve(K @ K.T, K @ V.T).T,
        lambda K, V: torch.linalg.lstsq(K.T, V.T)[0].T,
    ],
)
def test_right_memories_pass(right):
    assert check_least_squares(right)
    assert check_least_squares(right, seed=3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda K, V: (V @ pinv(K)).T, "transposed"),
        (lambda K, V: V @ K.T, "sum of outer products"),
        (lambda K, V: V @ K.T / K.shape[1], "mean of the outer products"),
        (lambda K, V: V @ K.T @ K @ K.T, "where its inverse belongs"),
        (lambda K, V: K @ pinv(V), "swapped"),
        (lambda K, V: -V @ pinv(K), "relative error 2"),
        (lambda K, V: V @ pinv(K)[:, 1:], "shape"),
        (lambda K, V: None, "returns nothing"),
        (lambda K: K, "other arguments"),
    ],
)
def test_wrong_memories_are_recognised(wrong, message):
    feedback = check_least_squares(wrong)
    assert not feedback
    assert message in feedback.message


def test_right_moments_pass():
    assert check_second_moment(moment)
    masked = "btd,bte,bt->de"
    assert check_second_moment(
        lambda k, m: torch.einsum(masked, k, k, m.double()) / m.sum()
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda k, m: moment(k, m) * m.sum(), "the sum over tokens"),
        (lambda k, m: rows(k, m).T.cov(correction=0), "subtracts the mean"),
        (lambda k, m: rows(k, m).T.cov(), "the covariance"),
        (lambda k, m: moment(k, torch.ones_like(m)), "padding is counted"),
        (lambda k, m: moment(k, m) * m.sum() / m.numel(), "counted in the mean"),
        (lambda k, m: moment(k, m) * m.sum() / (m.sum() - 1), "divides by N − 1"),
        (lambda k, m: rows(k, m) @ rows(k, m).T / m.sum(), "KᵀK"),
        (
            lambda k, m: torch.stack(
                [moment(a[None], b[None]) for a, b in zip(k, m, strict=True)]
            ).mean(0),
            "mean over texts",
        ),
        (lambda k, m: moment(k, m).diagonal(), "shape"),
        (lambda k, m: 2.5 * moment(k, m), "relative error"),
    ],
)
def test_wrong_moments_are_recognised(wrong, message):
    feedback = check_second_moment(wrong)
    assert not feedback
    assert message in feedback.message
