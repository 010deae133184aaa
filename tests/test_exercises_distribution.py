import pytest
import torch

from edutools.exercises import check_fractions, check_leftover


def layers_left(shares):
    return torch.arange(len(shares), 0, -1).double()


def leftover(shares):
    return (1 - shares / layers_left(shares)).prod()


def by_loop(shares):
    rest = 1.0
    for i, share in enumerate(shares.tolist()):
        rest -= share * rest / (len(shares) - i)
    return rest


def fractions(price):
    return (1 / price) / (1 / price).sum()


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_leftover, leftover),
        (check_leftover, by_loop),
        (check_fractions, fractions),
        (check_fractions, lambda p: torch.softmax(-p.log(), 0)),
    ],
)
def test_a_right_answer_passes(check, right):
    feedback = check(right)
    assert feedback
    assert repr(feedback).startswith("Correct: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: 1 - leftover(s), "what has arrived"),
        (lambda s: 1 - (s / layers_left(s)).sum(), "measures the residual once"),
        (lambda s: leftover(s.flip(0)), "upside down"),
        (lambda s: (1 - s / len(s)).prod(), "number of all layers; it is"),
        (lambda s: (1 - s / layers_left(s).sqrt()).prod(), "square root"),
        (lambda s: (1 - s).prod(), "nothing is divided"),
        (lambda s: (1 - s / (layers_left(s) + 1)).prod(), "one too many"),
        (lambda s: (1 - s / layers_left(s)).cumprod(0), "after each layer"),
        (lambda s: 1 - s / layers_left(s), "multiply them"),
        (lambda s: 0.0 * s.sum(), "the numbers are not"),
        (lambda s: s[None], "shape"),
        (lambda: 1.0, "other arguments"),
    ],
)
def test_a_wrong_leftover_is_recognized(wrong, message):
    feedback = check_leftover(wrong)
    assert not feedback
    assert message in feedback.message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: p / p.sum(), "upside down"),
        (lambda p: torch.ones_like(p) / len(p), "even rule"),
        (lambda p: 1 / p, "add up to one"),
        (lambda p: p**-0.5 / (p**-0.5).sum(), "root too many"),
        (lambda p: p**-2 / (p**-2).sum(), "square too many"),
        (lambda p: (p == p.min()).double(), "cheapest layer"),
        (lambda p: 1 / (1 / p).sum(), "lowest price"),
        (lambda p: -fractions(p), "the numbers are not"),
    ],
)
def test_wrong_fractions_are_recognized(wrong, message):
    feedback = check_fractions(wrong)
    assert not feedback
    assert message in feedback.message
