"""Checks of causal tracing: right answers pass, known mistakes are recognised."""

import pytest
import torch

from edutools.exercises import check_corruption, check_effect, check_mean_effect


def corrupt(h, subject, noise):
    new = h.clone()
    new[:, subject[0] : subject[1]] += noise
    return new


def effect(p_clean, p_corrupt, p_restored):
    return p_restored.mean(0) - p_corrupt.mean()


def interval(rows, error):
    return torch.stack([rows.nanmean(0), 1.96 * error])


def kept(x):
    return x[~x[:, 0].isnan()]


def mean_effect(x):
    return interval(x, kept(x).std(0) / len(kept(x)) ** 0.5)


@pytest.mark.parametrize("seed", [0, 3])
def test_right_answers_pass(seed):
    assert check_corruption(corrupt, seed=seed)
    assert check_effect(effect, seed=seed)
    assert check_effect(
        lambda c, b, r: (r - b[:, None, None]).mean(0), seed=seed
    )  # the same noise in both runs
    assert check_mean_effect(mean_effect, seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h, s, e: h.clone(), "nothing is corrupted"),
        (lambda h, s, e: torch.cat([h[:, : s[0]], e, h[:, s[1] :]], 1), "in place of"),
        (lambda h, s, e: corrupt(h, s, -e), "subtracted"),
        (lambda h, s, e: corrupt(h, (s[0], s[1] - 1), e[:, :-1]), "stays clean"),
        (lambda h, s, e: corrupt(h, (s[1] - 1, s[1]), e[:, -1:]), "only the last"),
        (lambda h, s, e: corrupt(h, (s[0] + 1, s[1] + 1), e), "too far"),
        (lambda h, s, e: corrupt(h, s, e[:1]), "every sample got the same"),
        (lambda h, s, e: h[:, s[0] : s[1]].add_(e), "in place; work on a copy"),
        (lambda h, s, e: h[:, s[0] : s[1]] + e, "shape"),
        (lambda h, s, e: corrupt(h, s, 3 * e), "relative error"),
    ],
)
def test_wrong_corruptions_are_recognised(wrong, message):
    feedback = check_corruption(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda c, b, r: b.mean() - r.mean(0), "the sign"),
        (lambda c, b, r: r.mean(0) - c, "compares with the clean run"),
        (lambda c, b, r: c - r.mean(0), "still missing"),
        (lambda c, b, r: c - b.mean(), "total effect"),
        (lambda c, b, r: effect(c, b, r) / (c - b.mean()), "fraction"),
        (lambda c, b, r: r.mean(0), "take off"),
        (lambda c, b, r: (r - b[:, None, None]).sum(0), "the sum over samples"),
        (lambda c, b, r: r - b[:, None, None], "not averaged"),
        (lambda c, b, r: effect(c, b, r).T, "shape"),
        (lambda c, b, r: 2.5 * effect(c, b, r), "relative error"),
    ],
)
def test_wrong_effects_are_recognised(wrong, message):
    feedback = check_effect(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: interval(x, kept(x).std(0)), "the spread of single facts"),
        (lambda x: interval(x, kept(x).std(0) / len(kept(x))), "divides by n;"),
        (lambda x: mean_effect(x.nan_to_num(0)), "effects of 0"),
        (lambda x: mean_effect(x.nan_to_num_(0)), "in place; work on a copy"),
        (lambda x: interval(x, kept(x).std(0) / len(x) ** 0.5), "n counts"),
        (
            lambda x: interval(x, kept(x).std(0, correction=0) / len(kept(x)) ** 0.5),
            "divide by n − 1",
        ),
        (lambda x: mean_effect(x) / torch.tensor([[1], [1.96]]).double(), "is one"),
        (lambda x: mean_effect(x) * torch.tensor([[1], [2]]), "whole width"),
        (lambda x: torch.stack([x.mean(0), 1.96 * x.std(0)]), "NaN"),
        (lambda x: mean_effect(x)[0], "shape"),
        (lambda x: -mean_effect(x), "relative error 2"),
    ],
)
def test_wrong_means_are_recognised(wrong, message):
    feedback = check_mean_effect(wrong)
    assert not feedback
    assert message in feedback.message
