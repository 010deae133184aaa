"""Checks of guesses and bits: right answers pass, known mistakes are recognised."""

import math
from collections import Counter
from statistics import mean

import pytest
import torch

from edutools.exercises import check_bits, check_guess


def tables(relations, objects):
    """Relation -> how often each of its objects occurs."""
    found = {}
    for r, o in zip(relations.tolist(), objects.tolist(), strict=True):
        found.setdefault(r, Counter())[o] += 1
    return found


def shares(counter):
    return [count / counter.total() for count in counter.values()]


def entropy(counter):
    return -sum(p * math.log2(p) for p in shares(counter))


def guess(relations, objects):
    counted = tables(relations, objects).values()
    return sum(max(c.values()) for c in counted) / len(objects)


def bits(relations, objects):
    return sum(c.total() * entropy(c) for c in tables(relations, objects).values())


def alone(objects):
    return Counter(objects.tolist())


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_right_answers_pass(seed):
    assert check_guess(guess, seed=seed)
    assert check_bits(bits, seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r, o: guess(r, o) * len(o), "divide by all"),
        (lambda r, o: max(alone(o).values()) / len(o), "the relation is heard"),
        (
            lambda r, o: mean([max(shares(c)) for c in tables(r, o).values()]),
            "mean over relations",
        ),
        (
            lambda r, o: (
                sum(
                    c.total() * sum(p * p for p in shares(c))
                    for c in tables(r, o).values()
                )
                / len(o)
            ),
            "as often as it occurs",
        ),
        (
            lambda r, o: (
                sum(c.total() / len(c) for c in tables(r, o).values()) / len(o)
            ),
            "as often as any other",
        ),
        (lambda r, o: 1 - guess(r, o), "being wrong"),
        (
            lambda r, o: max(max(shares(c)) for c in tables(r, o).values()),
            "easiest relation",
        ),
        (lambda r, o: 0.5, "numbers are not"),
        (lambda r, o: None, "returns nothing"),
        (lambda r: 1.0, "other arguments"),
        (lambda r, o: {}, "returns a dict"),
    ],
)
def test_wrong_guesses_are_recognised(wrong, message):
    feedback = check_guess(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r, o: -bits(r, o), "sign"),
        (lambda r, o: bits(r, o) * math.log(2), "nats"),
        (lambda r, o: bits(r, o) / len(o), "bits per fact"),
        (
            lambda r, o: sum(entropy(c) for c in tables(r, o).values()),
            "one entropy for each relation",
        ),
        (
            lambda r, o: mean([entropy(c) for c in tables(r, o).values()]),
            "mean entropy",
        ),
        (lambda r, o: len(o) * entropy(alone(o)), "forgets the relation"),
        (lambda r, o: len(o) * entropy(alone(o + 100 * r)), "tells the relation, too"),
        (
            lambda r, o: sum(
                c.total() * math.log2(len(c)) for c in tables(r, o).values()
            ),
            "equally common",
        ),
        (lambda r, o: torch.tensor(math.nan), "NaN"),
    ],
)
def test_wrong_bits_are_recognised(wrong, message):
    feedback = check_bits(wrong)
    assert not feedback
    assert message in feedback.message


def test_facts_come_in_no_order_and_all_of_them():
    seen = []
    check_guess(lambda r, o: seen.append((r, o)) or guess(r, o))
    assert [len(r) for r, _ in seen] == [60, 90, 40]
    for relations, objects in seen:
        assert len(objects) == len(relations)
        assert not bool((relations.sort().values == relations).all())
