import pytest
import torch

from edutools.exercises import (
    check_emmet_update,
    check_lam_for_share,
    check_memit_update,
    check_multipliers,
)
from edutools.solve import LowRank, emmet_update, memit_update

solve = torch.linalg.solve


def memit(W, K, V, C, lam):
    return solve(lam * C + K @ K.T, K @ (V - W @ K).T).T


def dual(W, K, V, C, lam):
    U = solve(C, K)
    return (V - W @ K) @ solve(K.T @ U + lam * torch.eye(K.shape[1]).double(), U.T)


def exact(W, K, V, C):
    U = solve(C, K)
    return (V - W @ K) @ solve(K.T @ U, U.T)


def multipliers(W, K, V, C):
    return solve(K.T @ solve(C, K), (V - W @ K).T).T


def identity(C):
    return torch.eye(len(C)).double()


RIGHT = [
    (check_memit_update, memit),
    (check_memit_update, dual),
    (check_memit_update, memit_update),
    (check_emmet_update, exact),
    (check_emmet_update, emmet_update),
    (check_emmet_update, lambda *a: LowRank.of(exact(*a))),
    (check_multipliers, multipliers),
    (check_lam_for_share, lambda q, share: q * (1 - share) / share),
    (check_lam_for_share, lambda q, share: q / share - q),
]


@pytest.mark.parametrize(("check", "right"), RIGHT)
def test_a_right_answer_passes(check, right):
    feedback = check(right)
    assert feedback
    assert repr(feedback).startswith("Correct: ")


def averaged(W, K, V, C, lam):
    n = K.shape[1]
    return solve(lam * C + K @ K.T / n, K @ (V - W @ K).T / n).T


def only_exact(W, K, V, C, lam):
    U = solve(C, K)
    return (V - W @ K) @ torch.linalg.inv(K.T @ U + 0 * lam) @ U.T


def small_system(W, K, V, C, lam):
    """Right, but only for batches that are smaller than the key space."""
    return memit(W, K[:, : len(K)], V[:, : len(K)], C, lam)


MEMIT_MISTAKES = [
    (lambda W, K, V, C, x: -memit(W, K, V, C, x), "negative"),
    (lambda W, K, V, C, x: memit(W, K, V, C, x).T, "transposed"),
    (lambda W, K, V, C, x: W + memit(W, K, V, C, x), "new weight"),
    (lambda W, K, V, C, x: memit(0 * W, K, V, C, x), "not subtracted"),
    (lambda W, K, V, C, x: memit(W, K, V, C, 1.0), "λ is missing"),
    (lambda W, K, V, C, x: memit(W, K, V, identity(C), x), "C is missing"),
    (lambda W, K, V, C, x: memit(W, K, V, C, 1.0) / x, "λ multiplies K Kᵀ, too"),
    (lambda W, K, V, C, x: memit(W, K, V, C, 1 / x) / x, "λ sits at the new keys"),
    (averaged, "new keys are averaged"),
    (lambda W, K, V, C, x: memit(W, K, V, C, x) / K.shape[1], "R Kᵀ is averaged"),
    (
        lambda W, K, V, C, x: solve(x * C, K @ (V - W @ K).T).T,
        "do not know of one another",
    ),
    (
        lambda W, K, V, C, x: (V - W @ K) @ K.T @ (x * C + K @ K.T),
        "where its inverse belongs",
    ),
    (only_exact, "the numbers are not"),
    (small_system, "more facts than dimensions"),
    (lambda W, K, V, C, x: memit(W, K, V, C, x)[:2], "shape"),
    (lambda W, K, V, C, x: "Δ", "returns a str"),
    (lambda W, K, V, C, x: None, "returns nothing"),
    (lambda W, K, V, C: W, "other arguments"),
]


@pytest.mark.parametrize(("wrong", "message"), MEMIT_MISTAKES)
def test_a_wrong_memit_is_recognized(wrong, message):
    feedback = check_memit_update(wrong)
    assert not feedback
    assert message in feedback.message


def without_moment(W, K, V, C):
    """D without C⁻¹."""
    return (V - W @ K) @ solve(K.T @ K, solve(C, K).T)


def alone(W, K, V, C):
    U = solve(C, K)
    return (V - W @ K) / (K * U).sum(0) @ U.T


def stabilized(W, K, V, C):
    return dual(W, K, V, C, 1.0)


EMMET_MISTAKES = [
    (lambda W, K, V, C: -exact(W, K, V, C), "negative"),
    (lambda W, K, V, C: exact(W, K, V, C).T, "transposed"),
    (lambda W, K, V, C: W + exact(W, K, V, C), "new weight"),
    (lambda W, K, V, C: exact(0 * W, K, V, C), "not subtracted"),
    (lambda W, K, V, C: exact(W, K, V, identity(C)), "C⁻¹ is missing"),
    (lambda W, K, V, C: exact(W, K, V, torch.linalg.inv(C)), "C where C⁻¹"),
    (without_moment, "D lacks C⁻¹"),
    (lambda W, K, V, C: (V - W @ K) @ solve(C, K).T, "D⁻¹ is missing"),
    (
        lambda W, K, V, C: (V - W @ K) @ K.T @ solve(C, K) @ solve(C, K).T,
        "by D where D⁻¹",
    ),
    (alone, "as if it were alone"),
    (stabilized, "1 added to its diagonal"),
    (lambda W, K, V, C: dual(W, K, V, C, 0.1), "the numbers are not"),
    (lambda W, K, V, C: [1.0], "returns a list"),
    (lambda W, K, V, C: 1 / 0, "ZeroDivisionError"),
]


@pytest.mark.parametrize(("wrong", "message"), EMMET_MISTAKES)
def test_a_wrong_emmet_is_recognized(wrong, message):
    feedback = check_emmet_update(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda W, K, V, C: -multipliers(W, K, V, C), "the other one"),
        (lambda W, K, V, C: multipliers(W, K, V, C).T, "transposed"),
        (lambda W, K, V, C: (V - W @ K) @ K.T @ solve(C, K), "by D where D⁻¹"),
        (lambda W, K, V, C: multipliers(W, K, V, identity(C)), "D lacks C⁻¹"),
        (lambda W, K, V, C: multipliers(W, K, V, torch.linalg.inv(C)), "C where C⁻¹"),
        (lambda W, K, V, C: V - W @ K, "residuals themselves"),
        (
            lambda W, K, V, C: (V - W @ K) / (K * solve(C, K)).sum(0),
            "only the diagonal",
        ),
        (lambda W, K, V, C: multipliers(0 * W, K, V, C), "not subtracted"),
        (lambda W, K, V, C: exact(W, K, V, C), "shape"),
    ],
)
def test_wrong_multipliers_are_recognized(wrong, message):
    feedback = check_multipliers(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda q, s: q * s / (1 - s), "upside down"),
        (lambda q, s: q / (s + q), "solve for λ"),
        (lambda q, s: q * (1 - s), "not divided by"),
        (lambda q, s: q - q / s, "wrong sign"),
        (lambda q, s: (1 - s) / s, "does not depend on q"),
        (lambda q, s: 2 * q * (1 - s) / s, "the numbers are not"),
        (lambda q: q, "other arguments"),
    ],
)
def test_a_wrong_lam_is_recognized(wrong, message):
    feedback = check_lam_for_share(wrong)
    assert not feedback
    assert message in feedback.message
