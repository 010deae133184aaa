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


def encore(W, K, V, C, lam, norm, past, *, wide=0.0):
    M = lam * C + past @ past.T + (norm + wide) * eye(K) + K @ K.T
    return torch.linalg.solve(M, K @ (V - W @ K).T).T


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_alphaedit_update, in_coordinates),
        (check_alphaedit_update, small_form),
        (check_alphaedit_update, alphaedit_update),  # a LowRank
        (check_encore_update, encore),
        (
            check_encore_update,
            lambda W, K, V, C, lam, norm, past: encore_update(
                W, K, V, C, lam, norm=norm, past=past
            ),
        ),
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


def without(name):
    """ENCORE's change with one argument made void."""

    def wrong(W, K, V, C, lam, norm, past):
        given = {"lam": lam, "norm": norm, "past": past}
        given[name] = {"lam": 1.0, "norm": 0.0, "past": 0 * past}[name]
        return encore(W, K, V, C, given["lam"], given["norm"], given["past"])

    return wrong


def far(W, K, V, C, lam, norm, past):
    M = lam * C + past @ past.T + norm * eye(K)
    return torch.linalg.solve(M, K @ (V - W @ K).T).T


def pulled(W, K, V, C, lam, norm, past):
    both = torch.cat([past, K], 1)
    R = torch.cat([-W @ past, V - W @ K], 1)
    M = lam * C + both @ both.T + norm * eye(K)
    return torch.linalg.solve(M, both @ R.T).T


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *a: -encore(*a), "negative"),
        (lambda *a: encore(*a).T, "transposed"),
        (lambda W, *a: W + encore(W, *a), "only the change"),
        (lambda W, *a: encore(0 * W, *a), "not subtracted"),
        (without("past"), "forgotten"),
        (without("norm"), "the norm is missing"),
        (without("lam"), "λ_p is missing"),
        (lambda W, K, V, C, a, b, p: encore(W, K, V, C, b, a, p), "changed places"),
        (
            lambda W, K, V, C, a, b, p: encore(W, K, V, C, a, b, a**0.5 * p),
            "multiplies the earlier keys",
        ),
        (far, "K Kᵀ is missing"),
        (pulled, "a residual of zero"),
        (lambda *a: encore(*a, wide=1.0), "the numbers are not"),
        (lambda W, K, *a: K, "shape"),
        (lambda W: W, "other arguments"),
    ],
)
def test_a_wrong_encore_is_recognized(wrong, message):
    feedback = check_encore_update(wrong)
    assert not feedback
    assert message in feedback.message
