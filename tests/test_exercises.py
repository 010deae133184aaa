import pytest
import torch

from edutools.exercises import check_rome_update, check_score
from edutools.solve import rome_update

solve = torch.linalg.solve


def delta(W, k, v, C):
    u = solve(C, k)
    return torch.outer(v - W @ k, u) / (u @ k)


def in_place(W, k, v, C):
    W += delta(W, k, v, C)
    return delta(W, k, v, C)


@pytest.mark.parametrize("right", [delta, rome_update])
def test_a_right_update_passes(right):
    feedback = check_rome_update(right)
    assert feedback
    assert repr(feedback).startswith("Correct: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda W, k, v, C: -delta(W, k, v, C), "negative"),
        (lambda W, k, v, C: delta(W, k, v, C).T, "transposed"),
        (lambda W, k, v, C: W + delta(W, k, v, C), "new weight"),
        (lambda W, k, v, C: torch.outer(v - W @ k, k) / (k @ k), "C⁻¹ is missing"),
        (lambda W, k, v, C: delta(W, k, v, torch.linalg.inv(C)), "C where C⁻¹"),
        (lambda W, k, v, C: torch.outer(v - W @ k, solve(C, k)) / (k @ k), "lacks C⁻¹"),
        (
            lambda W, k, v, C: torch.outer(v - W @ k, solve(C, k)),
            "denominator is missing",
        ),
        (lambda W, k, v, C: delta(0 * W, k, v, C), "not subtracted"),
        (lambda W, k, v, C: 1.5 * delta(W, k, v, C), "relative error 0.5"),
        (lambda W, k, v, C: delta(W, k, v, C)[:2], "shape"),
        (lambda W, k, v, C: None, "returns nothing"),
        (lambda W, k, v, C: "Δ", "returns a str"),
        (lambda W, k, v: W, "other arguments"),
        (lambda W, k, v, C: 1 / 0, "ZeroDivisionError"),
        (in_place, "in place"),
    ],
)
def test_a_wrong_update_is_recognized(wrong, message):
    feedback = check_rome_update(wrong)
    assert not feedback
    assert message in feedback.message
    assert repr(feedback).startswith("Not yet: ")


def mean(es, ps, ns):
    return 0.0 if min(es, ps, ns) == 0 else 3 / (1 / es + 1 / ps + 1 / ns)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (mean, "all three"),
        (lambda a, b, c: (a + b + c) / 3, "arithmetic"),
        (lambda a, b, c: (a * b * c) ** (1 / 3), "geometric"),
        (lambda a, b, c: mean(a, b, c) / 3, "numerator"),
        (lambda a, b, c: (1 / a + 1 / b + 1 / c) / 3, "mean of the inverses"),
        (lambda a, b, c: 3 / (1 / a + 1 / b + 1 / c), "can be 0"),
        (lambda a, b: a, "other arguments"),
        (lambda a, b, c: [a, b, c], "returns a list; return a number"),
        (lambda a, b, c: torch.tensor([a, b, c]), "returns a Tensor; return a number"),
        (lambda a, b, c: torch.tensor(mean(a, b, c), dtype=torch.float64), "all three"),
    ],
)
def test_scores_are_checked(function, message):
    feedback = check_score(function)
    assert message in feedback.message
    assert bool(feedback) == (message == "all three")
