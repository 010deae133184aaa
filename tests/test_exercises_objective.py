"""Checks of the objective: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_family, check_feasible
from edutools.solve import emmet_update, memit_update

solve = torch.linalg.solve


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def family(R, K, C, lam):
    U = solve(C, K)
    return R @ solve(K.T @ U + lam * eye(K.shape[1]), U.T)


def by_package(R, K, C, lam):
    W = torch.zeros(len(R), len(K), dtype=torch.float64)
    return memit_update(W, K, R, C, lam) if lam else emmet_update(W, K, R, C)


@pytest.mark.parametrize("right", [family, by_package])
def test_the_family_passes(right):
    assert check_family(right)
    assert check_family(right, seed=5)


def primal(R, K, C, lam):
    return R @ K.T @ torch.linalg.inv(lam * C + K @ K.T)


def without_d(R, K, C, lam):
    return R @ solve(C, K).T


def every_entry(R, K, C, lam):
    U = solve(C, K)
    return R @ solve(K.T @ U + lam, U.T)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda R, K, C, lam: -family(R, K, C, lam), "negative"),
        (lambda R, K, C, lam: family(R, K, C, lam).T, "transposed"),
        (lambda R, K, C, lam: family(R, K, eye(len(C)), lam), "C is missing"),
        (lambda R, K, C, lam: family(R, K, torch.linalg.inv(C), lam), "where C⁻¹"),
        (without_d, "n x n matrix is missing"),
        (lambda R, K, C, lam: family(R, K, C, lam * K.shape[1]), "averaged"),
        (lambda R, K, C, lam: family(R, K, C, 0.0), "λ is missing"),
        (every_entry, "every entry"),
        (lambda R, K, C, lam: family(R, K, C, 1 / lam), "wrong side"),
        (lambda R, K, C, lam: 2 * family(R, K, C, lam), "relative error 1"),
        (primal, "That was λ = 0"),
        (lambda R, K, C, lam: family(R.T, K, C, lam), "raised"),
        (lambda R, K, C, lam: None, "returns nothing"),
        (lambda R, K, C: R, "other arguments"),
    ],
)
def test_wrong_families_are_recognised(wrong, message):
    feedback = check_family(wrong)
    assert not feedback
    assert message in feedback.message


def rank(x):
    return int(torch.linalg.matrix_rank(x))


@pytest.mark.parametrize(
    "right",
    [
        lambda K, R: rank(torch.cat([K, R])) == rank(K),
        lambda K, R: torch.allclose(R @ torch.linalg.pinv(K) @ K, R),
    ],
)
def test_feasibility_passes(right):
    assert check_feasible(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda K, R: True, "five keys in three dimensions"),
        (lambda K, R: False, "three independent keys"),
        (lambda K, R: K.shape[1] <= K.shape[0], "two equal keys cannot"),
        (lambda K, R: rank(K) == K.shape[1], "one and the same value"),
        (
            lambda K, R: K.shape[1] <= len(K) and rank(torch.cat([K, R])) == rank(K),
            "more keys than dimensions",
        ),
        (lambda K, R: rank(K), "returns a int; return True or False"),
        (lambda K: True, "other arguments"),
    ],
)
def test_wrong_feasibility_is_recognised(wrong, message):
    feedback = check_feasible(wrong)
    assert not feedback
    assert message in feedback.message
