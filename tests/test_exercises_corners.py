import pytest
import torch

from edutools.corners import alphaedit_update, encore_update
from edutools.exercises import check_alphaedit_update, check_encore_update


def eye(K):
    return torch.eye(len(K)).to(K)


def in_coordinates(W, K, V, P, l2):
    values, vectors = torch.linalg.eigh(P)
    U = vectors[:, values > 0.5]  # (d_in, rank)
    small = U.T @ K
    M = small @ small.T + l2 * torch.eye(len(small)).to(K)
    return torch.linalg.solve(M, small @ (V - W @ K).T).T @ U.T


def small_form(W, K, V, P, l2):
    M = K.T @ P @ K + l2 * torch.eye(K.shape[1]).to(K)
    return (V - W @ K) @ torch.linalg.solve(M, K.T @ P)


def ridge(W, K, V, P, l2):
    M = K @ K.T + l2 * eye(K)
    return torch.linalg.solve(M, K @ (V - W @ K).T).T


def encore(R, K, C, past, weights, *, wide=0.0):
    lam, norm = weights
    M = lam * C + past @ past.T + (norm + wide) * eye(K) + K @ K.T
    return torch.linalg.solve(M, K @ R.T).T


def low_rank(R, K, C, past, weights):
    zero = torch.zeros(len(R), len(K)).to(K)
    return encore_update(zero, K, R, C, weights[0], norm=weights[1], past=past)


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_alphaedit_update, in_coordinates),
        (check_alphaedit_update, small_form),
        (check_alphaedit_update, alphaedit_update),  # a LowRank
        (check_encore_update, encore),
        (check_encore_update, low_rank),
    ],
)
def test_a_right_answer_passes(check, right):
    for seed in (0, 1):
        feedback = check(right, seed=seed)
        assert feedback
        assert repr(feedback).startswith("Correct: ")


def exact(W, K, V, P, l2):
    return (V - W @ K) @ torch.linalg.pinv(P @ K)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: -small_form(*a), "negative"),
        (lambda *a: small_form(*a).T, "transposed"),
        (lambda W, *a: W + small_form(W, *a), "only the change"),
        (lambda W, *a: small_form(0 * W, *a), "not subtracted"),
        (ridge, "P is missing"),
        (lambda W, K, V, P, l2: ridge(W, K, V, P, l2) @ P, "behind the solution"),
        (
            lambda W, K, V, P, l2: (
                torch.linalg.solve(P @ K @ K.T + l2 * eye(K), K @ (V - W @ K).T).T
            ),
            "P stands with the system only",
        ),
        (lambda W, K, V, P, l2: small_form(W, K, V, eye(K) - P, l2), "free ones"),
        (exact, "fits exactly"),
        (lambda W, *a: 0 * W, "the numbers are not"),
        (lambda W, K, *a: K, "shape"),
        (lambda W: W, "other arguments"),
        (lambda *a: "Δ", "returns a str"),
    ],
)
def test_a_wrong_alphaedit_is_recognized(wrong, message):
    feedback = check_alphaedit_update(wrong)
    assert not feedback
    assert message in feedback.message


def void(part):
    """ENCORE's change with one of its parts made void."""

    def wrong(R, K, C, past, weights):
        lam, norm = weights
        if part == "past":
            past = 0 * past
        return encore(
            R,
            K,
            0 * C if part == "C" else C,
            past,
            (1.0 if part == "lam" else lam, 0.0 if part == "norm" else norm),
        )

    return wrong


def strong(R, K, C, past, weights):
    return encore(R, K, C, weights[0] ** 0.5 * past, weights)


def flat(R, K, C, past, weights):
    M = weights[0] * C + past @ past.T + weights[1] + K @ K.T
    return torch.linalg.solve(M, K @ R.T).T


def far(R, K, C, past, weights):
    M = weights[0] * C + past @ past.T + weights[1] * eye(K)
    return torch.linalg.solve(M, K @ R.T).T


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: -encore(*a), "negative"),
        (lambda *a: encore(*a).T, "transposed"),
        (void("past"), "forgotten"),
        (void("norm"), "the norm is missing"),
        (void("C"), "C is missing"),
        (void("lam"), "λ_p is missing"),
        (lambda R, K, C, p, w: encore(R, K, C, p, w[::-1]), "changed places"),
        (strong, "multiplies the earlier keys"),
        (flat, "every entry"),
        (far, "K Kᵀ is missing"),
        (lambda *a: encore(*a, wide=1.0), "the numbers are not"),
        (lambda R, K, *a: K, "shape"),
        (lambda R: R, "other arguments"),
    ],
)
def test_a_wrong_encore_is_recognized(wrong, message):
    feedback = check_encore_update(wrong)
    assert not feedback
    assert message in feedback.message
