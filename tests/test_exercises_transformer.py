"""Checks of blocks, gated keys and places: right passes, mistakes are recognised."""

import pytest
import torch
from torch.nn.functional import gelu, silu

from edutools.exercises import check_block, check_gated_key, check_last_token


def block(h, attention, mlp, norm_a, norm_m, parallel):
    a = attention(norm_a(h))
    return h + a + mlp(norm_m(h if parallel else h + a))


def with_norms(function):
    """The signature that the check wants: both norms in one argument."""
    return lambda h, a, m, norms, p: function(h, a, m, *norms, p)


def test_a_right_block_passes():
    assert check_block(with_norms(block))
    assert check_block(with_norms(block), seed=5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h, a, m, n, k, p: block(h, a, m, n, k, True), "comes second here"),
        (lambda h, a, m, n, k, p: block(h, a, m, n, k, False), "side by side"),
        (lambda h, a, m, n, k, p: block(h, a, m, n, k, p) - h, "stream is lost"),
        (lambda h, a, m, n, k, p: block(h, a, m, n, k, p) - a(n(h)), "not arrive"),
        (lambda h, a, m, n, k, p: h + a(n(h)) + m(k(a(n(h)))), "output alone"),
        (lambda h, a, m, n, k, p: block(h, a, m, n, lambda x: x, p), "MLP reads with"),
        (lambda h, a, m, n, k, p: block(h, a, m, lambda x: x, k, p), "attention reads"),
        (
            lambda h, a, m, n, k, p: block(h, a, m, *[lambda x: x] * 2, p),
            "both parts read without",
        ),
        (
            lambda h, a, m, n, k, p: block(n(h), a, m, lambda x: x, k, p),
            "put on the residual stream",
        ),
        (lambda h, a, m, n, k, p: block(h, a, m, k, n, p), "norms are swapped"),
        (lambda h, a, m, n, k, p: block(h, a, m, n, k, p)[:, :1], "shape"),
        (lambda h, a, m, n, k, p: -block(h, a, m, n, k, p), "relative error 2"),
    ],
)
def test_wrong_blocks_are_recognised(wrong, message):
    feedback = check_block(with_norms(wrong))
    assert not feedback
    assert message in feedback.message


def test_a_block_takes_five_arguments():
    assert "other arguments" in check_block(lambda h: h).message


def test_the_kind_of_block_is_told():
    wrong = with_norms(lambda h, a, m, n, k, p: block(h, a, m, n, k, False))
    always = check_block(wrong)
    assert always.message.startswith("parallel block: ")


@pytest.mark.parametrize("seed", [0, 3])
def test_a_right_gate_passes(seed):
    assert check_gated_key(lambda x, G, U: silu(G @ x) * (U @ x), seed=seed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, G, U: G @ x * silu(U @ x), "swapped"),
        (lambda x, G, U: (G @ x) * (U @ x), "σ is missing"),
        (lambda x, G, U: (G @ x).sigmoid() * (U @ x), "SiLU multiplies it"),
        (lambda x, G, U: (G @ x).relu() * (U @ x), "ReLU"),
        (lambda x, G, U: gelu(G @ x) * (U @ x), "GELU"),
        (lambda x, G, U: silu(G @ x) * silu(U @ x), "not to both"),
        (lambda x, G, U: silu((G @ x) * (U @ x)), "before the product"),
        (lambda x, G, U: silu(G @ x) + U @ x, "added"),
        (lambda x, G, U: silu(U @ x), "gate is missing"),
        (lambda x, G, U: silu(G @ x), "W_up is missing"),
        (lambda x, G, U: silu(G @ x) @ (U @ x), "summed to a number"),
        (lambda x, G, U: torch.outer(silu(G @ x), U @ x), "shape"),
        (lambda x, G, U: -silu(G @ x) * (U @ x), "relative error 2"),
    ],
)
def test_wrong_gates_are_recognised(wrong, message):
    feedback = check_gated_key(wrong)
    assert not feedback
    assert message in feedback.message


def overlapping(offsets, begin, end):
    return [i for i, (x, y) in enumerate(offsets) if x < end and y > begin]


def test_the_right_token_passes():
    assert check_last_token(lambda o, b, e: overlapping(o, b, e)[-1])
    # The last character's last token is the same thing.
    assert check_last_token(
        lambda o, b, e: max(i for i, (x, y) in enumerate(o) if x <= e - 1 < y)
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda o, b, e: overlapping(o, b, e)[-1] + 1, "one past"),
        (lambda o, b, e: overlapping(o, b, e)[0], "first token"),
        (
            lambda o, b, e: overlapping([p for p in o if p[0] < p[1]], b, e)[-1],
            "without the special tokens",
        ),
        (lambda o, b, e: len(o) - 1, "last token of the text"),
        (lambda o, b, e: max(i for i, (x, _) in enumerate(o) if x < e), "empty ranges"),
        (
            lambda o, b, e: next(i for i, (x, y) in enumerate(o) if x < e <= y),
            "several tokens",
        ),
        (
            lambda o, b, e: max(i for i, (x, y) in enumerate(o) if x < y <= e),
            "beyond the subject's end",
        ),
        (lambda o, b, e: 0, "'The Eiffel Tower is' with a BOS: token 0 is not"),
        (lambda o, b, e: [y for _, y in o].index(e), "Anna"),
        (lambda o, b, e: 1.0, "a float; return an int"),
        (lambda o, b, e: True, "a bool; return an int"),
        (lambda o, b, e: None, "returns nothing"),
        (lambda o: 0, "other arguments"),
    ],
)
def test_wrong_tokens_are_recognised(wrong, message):
    feedback = check_last_token(wrong)
    assert not feedback
    assert message in feedback.message
