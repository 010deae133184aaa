"""Checks of the transformer as a memory: blocks, gated keys, last subject tokens."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, silu

from edutools.checks import number
from edutools.exercises.feedback import Feedback, call, compare

__all__ = ["check_block", "check_gated_key", "check_last_token"]

Map = Callable[[Tensor], Tensor]
Offsets = Sequence[tuple[int, int]]


def check_block(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function (h, attention, mlp, norms, parallel) that runs a block.

    Args:
        function: takes states of shape (tokens, size), two functions of such states,
            the pair of norms in front of them, and whether attention and MLP work side
            by side; returns the states behind the block.
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for parallel in (False, True):
        for tokens, size in ((1, 4), (5, 3)):
            h = _normal(generator, tokens, size)
            parts = [_part(generator, size) for _ in range(4)]
            right, mistakes = _blocks(h, parts, parallel)
            given = (h, *parts[:2], tuple(parts[2:]), parallel)
            wrong = compare(function, given, right, mistakes)
            if wrong is not None:
                kind = "parallel" if parallel else "sequential"
                return Feedback(False, f"{kind} block: {wrong.message}")
    return Feedback(True, "three terms, each read from where it should be.")


def _part(generator: torch.Generator, size: int) -> Map:
    weight = _normal(generator, size, size)
    return lambda x: torch.tanh(x @ weight)


def _blocks(
    h: Float[Tensor, "tokens size"],
    parts: Sequence[Map],
    parallel: bool,
) -> tuple[Float[Tensor, "..."], dict[str, Float[Tensor, "..."]]]:
    """The right answer, and what known mistakes give."""
    attention, mlp, norm_a, norm_m = parts
    a = attention(norm_a(h))
    read = h if parallel else h + a
    m = mlp(norm_m(read))
    other = h + a if parallel else h
    clean = norm_a(h)
    swapped = attention(norm_m(h))
    order = (
        "the MLP sees the attention's output; side by side it reads the block's input."
        if parallel
        else "the MLP does not see the attention's output; it comes second here."
    )
    return h + a + m, {
        order: h + a + mlp(norm_m(other)),
        "the residual stream is lost: the parts are added to h.": a + m,
        "the attention's output does not arrive behind the block.": h + m,
        "the MLP reads the attention's output alone.": h + a + mlp(norm_m(a)),
        "the MLP reads without its norm.": h + a + mlp(read),
        "the attention reads without its norm.": (
            h + attention(h) + mlp(norm_m(h if parallel else h + attention(h)))
        ),
        "both parts read without their norms.": (
            h + attention(h) + mlp(h if parallel else h + attention(h))
        ),
        "the norm is put on the residual stream; it is on what the parts read only.": (
            clean + a + mlp(norm_m(clean if parallel else clean + a))
        ),
        "the two norms are swapped.": (
            h + swapped + mlp(norm_a(h if parallel else h + swapped))
        ),
    }


def check_gated_key(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (x, W_gate, W_up) that returns the key of a gated MLP.

    Args:
        function: takes what the MLP reads, (d_out,), and two matrices (d_in, d_out);
            returns the key, (d_in,).
        seed: of the random inputs.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for d_in, d_out in ((6, 4), (4, 4), (3, 5)):
        x = _normal(generator, d_out)
        gate, up = (_normal(generator, d_in, d_out) for _ in range(2))
        g, u = gate @ x, up @ x
        right = silu(g) * u
        wrong = compare(function, (x, gate, up), right, _gate_mistakes(g, u))
        if wrong is not None:
            return wrong
    return Feedback(
        True, "one matrix opens the gate, the other says what goes through."
    )


def _gate_mistakes(
    g: Float[Tensor, " d_in"], u: Float[Tensor, " d_in"]
) -> dict[str, Float[Tensor, "..."]]:
    return {
        "gate and up are swapped: σ belongs to the gate.": g * silu(u),
        "σ is missing.": g * u,
        "σ is a sigmoid here; SiLU multiplies it by its argument.": g.sigmoid() * u,
        "σ is ReLU here; this family takes SiLU.": g.relu() * u,
        "σ is GELU here; this family takes SiLU.": gelu(g) * u,
        "σ belongs to the gate alone, not to both.": silu(g) * silu(u),
        "σ belongs to the gate, before the product.": silu(g * u),
        "the two are added; the gate multiplies.": silu(g) + u,
        "the gate is missing: this is an ungated MLP of W_up.": silu(u),
        "W_up is missing: this is an ungated MLP of W_gate.": silu(g),
        "the product is summed to a number; a key has one entry per neuron.": (
            (silu(g) * u).sum()
        ),
    }


def check_last_token(function: Callable) -> Feedback:
    """Check a function of (offsets, begin, end) that finds a subject's last token.

    Args:
        function: takes the tokens' character ranges [first, last), in which special
            tokens are empty, and the subject's range of characters [begin, end);
            returns the place of the subject's last token.

    Book: sec-exercises
    """
    results = []
    for case, (offsets, begin, end) in _SUBJECTS.items():
        got = call(function, (list(offsets), begin, end))
        if isinstance(got, Feedback):
            return Feedback(False, f"{case}: {got.message}")
        if isinstance(got, bool) or not isinstance(got, int):
            kind = type(got).__name__
            return Feedback(False, f"it returns a {kind}; return an int.")
        results.append(got)
    right = [_last(*case) for case in _SUBJECTS.values()]
    if results == right:
        return Feedback(True, "BOS, bytes, repetitions and long tokens: all are met.")
    for message, mistake in _PLACES.items():
        if results == [mistake(*case) for case in _SUBJECTS.values()]:
            return Feedback(False, message)
    i, case = next(
        (i, case) for i, case in enumerate(_SUBJECTS) if results[i] != right[i]
    )
    return Feedback(False, f"{case}: token {results[i]} is not the subject's last.")


# What is tried -> offsets, begin, end.
_SUBJECTS: dict[str, tuple[Offsets, int, int]] = {
    "'The Eiffel Tower is' with a BOS": (
        ((0, 0), (0, 3), (3, 10), (10, 16), (16, 19)),
        *(0, 16),
    ),
    "the second 'Rome' in 'Rome said that Rome is'": (
        ((0, 4), (4, 9), (9, 14), (14, 19), (19, 22)),
        *(15, 19),
    ),
    "'Anna' in \"Anna's\", where one token is \"na's\"": (((0, 2), (2, 6)), 0, 4),
    "'Zoë' in 'Zoë is', where ë is two byte tokens": (
        ((0, 1), (1, 2), (2, 3), (2, 3), (3, 6)),
        *(0, 3),
    ),
    "'Rome' in 'In Rome' between BOS and EOS": (
        ((0, 0), (0, 2), (2, 7), (0, 0)),
        *(3, 7),
    ),
}


def _inside(offsets: Offsets, begin: int, end: int) -> list[int]:
    pairs = enumerate(offsets)
    return [i for i, (first, last) in pairs if first < end and last > begin]


def _last(offsets: Offsets, begin: int, end: int) -> int:
    return _inside(offsets, begin, end)[-1]


_PLACES: dict[str, Callable[[Offsets, int, int], int]] = {
    "this is one past the subject's last token.": lambda o, b, e: _last(o, b, e) + 1,
    "this is the subject's first token; it does not yet know the whole name.": (
        lambda o, b, e: _inside(o, b, e)[0]
    ),
    "this counts without the special tokens; the model sees them.": (
        lambda o, b, e: _last(o, b, e) - sum(x == y for x, y in o[: _last(o, b, e)])
    ),
    "this is the last token of the text.": lambda o, b, e: len(o) - 1,
    "empty ranges are special tokens: they begin before the subject's end, but do not "
    "overlap it.": lambda o, b, e: max(i for i, (x, _) in enumerate(o) if x < e),
    "one character may be several tokens; take the last of them.": (
        lambda o, b, e: next(i for i in _inside(o, b, e) if o[i][1] >= e)
    ),
    "a token may reach beyond the subject's end and hold its last letters all the "
    "same.": lambda o, b, e: max((i for i, (x, y) in enumerate(o) if x < y <= e)),
}


def _normal(generator: torch.Generator, *size: int) -> Float[Tensor, "..."]:
    return torch.randn(*size, generator=generator, dtype=torch.float64)
