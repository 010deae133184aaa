"""Checks of the chapter on evaluation: right answers pass, mistakes are recognised."""

import math

import pytest
import torch

from edutools.exercises import check_lead, check_paired_error, check_wilson
from edutools.metrics import wilson


def lead(a, b):
    return a.mean().exp() - b.mean().exp()


@pytest.mark.parametrize("seed", [0, 3])
def test_right_leads_pass(seed):
    assert check_lead(lead, seed=seed)
    assert check_lead(lambda a, b: float(lead(a, b)), seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b: -lead(a, b), "sign"),
        (lambda a, b: a.sum().exp() - b.sum().exp(), "joint"),
        (lambda a, b: a.exp().mean() - b.exp().mean(), "averages probabilities"),
        (lambda a, b: a.mean() - b.mean(), "exp is missing"),
        (lambda a, b: (a.mean() - b.mean()).exp(), "ratio"),
        (lambda a, b: (lead(a, b) > 0).double(), "by how much"),
        (lambda a, b: 2 * lead(a, b), "relative error 1"),
        (lambda a, b: a, "shape"),
        (lambda a, b: None, "returns nothing"),
        (lambda a: a, "other arguments"),
    ],
)
def test_wrong_leads_are_recognised(wrong, message):
    feedback = check_lead(wrong)
    assert not feedback
    assert message in feedback.message


def wald(k, n):
    p = k / n
    half = 1.959964 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def cut(k, n):
    low, high = wald(k, n)
    return max(0.0, low), min(1.0, high)


def around_p(k, n):
    low, high = wilson(k, n)
    half = (high - low) / 2
    return k / n - half, k / n + half


def middle(k, n):
    low, high = wilson(k, n)
    return (low + high) / 2, (high - low) / 2


def test_right_intervals_pass():
    assert check_wilson(wilson)
    assert check_wilson(lambda k, n: torch.tensor(wilson(k, n), dtype=torch.float64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (wald, "Wald, p"),
        (lambda k, n: wilson(k, n)[::-1], "swapped"),
        (lambda k, n: wilson(k, n, z=1.644854), "90 %"),
        (around_p, "stands around p"),
        (middle, "center and half width"),
        (cut, "cut off"),
        (lambda k, n: k / n, "return (low, high)"),
        (lambda k, n: (1, 2, 3), "shape"),
        (lambda k: k, "other arguments"),
        (lambda k, n: k / 0, "ZeroDivisionError"),
    ],
)
def test_wrong_intervals_are_recognised(wrong, message):
    feedback = check_wilson(wrong)
    assert not feedback
    assert message in feedback.message


def paired(a, b):
    return (a - b).std() / len(a) ** 0.5


@pytest.mark.parametrize("seed", [0, 3])
def test_right_errors_pass(seed):
    assert check_paired_error(paired, seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b: ((a.var() + b.var()) / len(a)).sqrt(), "separate samples"),
        (lambda a, b: (a - b).std(), "single differences"),
        (lambda a, b: (a - b).std() / len(a), "with its root"),
        (lambda a, b: (a - b).var() / len(a), "take its root"),
        (lambda a, b: (a - b).mean(), "mean difference"),
        (lambda a, b: (a - b).std(correction=0) / len(a) ** 0.5, "n − 1"),
        (lambda a, b: a.std() / len(a) ** 0.5, "first method alone"),
        (lambda a, b: a - b, "shape"),
        (lambda a, b: None, "returns nothing"),
    ],
)
def test_wrong_errors_are_recognised(wrong, message):
    feedback = check_paired_error(wrong)
    assert not feedback
    assert message in feedback.message
