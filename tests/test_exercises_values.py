"""Checks of mixed keys and of the essence: right answers pass, mistakes are named."""

import math

import pytest
import torch
from torch.nn.functional import kl_div

from edutools.exercises import check_kl, check_mixed_cost
from edutools.solve import rome_update

inv = torch.linalg.inv


def ratio(k, k_star, M):
    return (k @ M @ k) * (k_star @ M @ k_star) / (k @ M @ k_star) ** 2


def by_cost(k, k_star, C):
    """What the two changes really cost, for some residual."""
    r = torch.tensor([1.0, -2.0], dtype=torch.float64)
    u = torch.linalg.solve(C, k_star)
    mixed = torch.outer(r, u) / (u @ k)
    best = rome_update(torch.zeros(2, len(k)).double(), k, r, C).dense()
    costs = [torch.trace(delta @ C @ delta.T) for delta in (mixed, best)]
    return costs[0] / costs[1]


@pytest.mark.parametrize(
    "right", [by_cost, lambda k, k_star, C: ratio(k, k_star, inv(C))]
)
def test_the_cost_of_mixing_passes(right):
    assert check_mixed_cost(right)
    assert check_mixed_cost(right, seed=5)


def cosine(k, k_star, C):
    M = inv(C)
    return k @ M @ k_star / ((k @ M @ k) * (k_star @ M @ k_star)).sqrt()


def overshoot(k, k_star, C):
    M = inv(C)
    return (k_star @ M @ k_star) / (k @ M @ k_star)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (cosine, "this is the cosine"),
        (lambda k, s, C: cosine(k, s, C) ** 2, "squared cosine"),
        (lambda k, s, C: 1 / cosine(k, s, C), "one over the cosine"),
        (lambda k, s, C: 1 / cosine(k, s, C).abs(), "growth of the norm"),
        (lambda k, s, C: ratio(k, s, torch.eye(len(C)).double()), "C⁻¹ is missing"),
        (lambda k, s, C: ratio(k, s, C), "where C⁻¹ belongs"),
        (overshoot, "overshoots"),
        (lambda k, s, C: overshoot(k, s, C) ** 2, "hits k_star"),
        (lambda k, s, C: 3 * ratio(k, s, inv(C)), "relative error 2"),
        (lambda k, s, C: k, "shape"),
        (lambda k, s, C: None, "returns nothing"),
        (lambda k, s: 1.0, "other arguments"),
    ],
)
def test_wrong_costs_are_recognised(wrong, message):
    feedback = check_mixed_cost(wrong)
    assert not feedback
    assert message in feedback.message


def kl(now, before):
    p, q = now.log_softmax(-1), before.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def by_torch(now, before):
    p, q = now.log_softmax(-1), before.log_softmax(-1)
    return kl_div(q, p, log_target=True, reduction="batchmean")


@pytest.mark.parametrize("right", [kl, by_torch])
def test_the_divergence_passes(right):
    assert check_kl(right)
    assert check_kl(right, seed=5)


def raw(now, before):
    return (now.exp() * (now - before)).sum(-1).mean()


def half(now, before):
    p = now.log_softmax(-1)
    return (p.exp() * (p - before)).sum(-1).mean()


def unweighted(now, before):
    return (now.log_softmax(-1) - before.log_softmax(-1)).sum(-1).mean()


def cross(now, before):
    return -(now.softmax(-1) * before.log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda now, before: kl(before, now), "direction"),
        (lambda now, before: -kl(now, before), "sign"),
        (raw, "logits"),
        (half, "only one"),
        (lambda now, before: kl(now, before) / now.shape[1], "averaged over the words"),
        (unweighted, "not weighted"),
        (cross, "cross-entropy"),
        (lambda now, before: kl(now, before) / math.log(2), "bits"),
        (lambda now, before: 2 * kl(now, before), "relative error 1"),
        (lambda now, before: (now - before)[:, 0], "shape"),
        (lambda now, before: now, "shape"),
    ],
)
def test_wrong_divergences_are_recognised(wrong, message):
    feedback = check_kl(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("reduce", "message"),
    [(lambda x: x.sum(), "rows are summed"), (lambda x: x, "one number per row")],
)
def test_rows_must_be_averaged(reduce, message):
    def wrong(now, before):
        p, q = now.log_softmax(-1), before.log_softmax(-1)
        return reduce((p.exp() * (p - q)).sum(-1))

    feedback = check_kl(wrong)
    assert not feedback
    assert message in feedback.message
