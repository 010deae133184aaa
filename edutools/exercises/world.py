"""Checks of a world of facts: what a guess is worth, how many bits it holds."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edutools.checks import number
from edutools.exercises.feedback import Feedback, compare

__all__ = ["check_bits", "check_guess"]


def check_guess(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (relations, objects) that returns the rate of the best guess.

    Args:
        function: takes the relation and the object of each fact as numbers, two tensors
            of one entry per fact; returns the rate at which a reader is right who hears
            the relation only and always answers its commonest object.
        seed: of the random facts.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for facts, kinds in ((60, 3), (90, 4), (40, 2)):
        counts = _counts(generator, facts, kinds)
        right = counts.max(1).values.sum() / facts
        wrong = compare(function, _facts(counts), right, _guess_mistakes(counts))
        if wrong is not None:
            return wrong
    return Feedback(True, "whoever knows facts must be better than this.")


def check_bits(function: Callable, *, seed: int = 0) -> Feedback:
    """Check a function of (relations, objects) that returns the bits of all facts.

    Args:
        function: as in `check_guess`; returns how many bits it takes to tell the
            objects of all facts to somebody who knows how common each is in its
            relation.
        seed: of the random facts.

    Book: sec-exercises
    """
    number("seed", seed, int)
    generator = torch.Generator().manual_seed(seed)
    for facts, kinds in ((60, 3), (90, 4), (40, 2)):
        counts = _counts(generator, facts, kinds)
        right = -(counts * _log2(counts / counts.sum(1, keepdim=True))).sum()
        wrong = compare(function, _facts(counts), right, _bits_mistakes(counts))
        if wrong is not None:
            return wrong
    return Feedback(True, "common objects cost few bits, rare ones many.")


def _guess_mistakes(
    counts: Float[Tensor, "relations objects"],
) -> dict[str, Float[Tensor, ""]]:
    n, each = counts.sum(), counts.sum(1)  # each: (relations,)
    best = counts.max(1).values  # (relations,)
    return {
        "this is the number of facts that are guessed; divide by all of them.": (
            best.sum()
        ),
        "this guesses one object for all relations; the relation is heard.": (
            counts.sum(0).max() / n
        ),
        "this is the mean over relations; a relation counts by its facts.": (
            (best / each).mean()
        ),
        "this draws each object as often as it occurs; always answering the commonest "
        "one is better.": (counts.square().sum(1) / each).sum() / n,
        "this draws one of the objects, each as often as any other.": (
            (each / (counts > 0).sum(1)).sum() / n
        ),
        "this is the rate of being wrong.": 1 - best.sum() / n,
        "this is the easiest relation alone.": (best / each).max(),
    }


def _bits_mistakes(
    counts: Float[Tensor, "relations objects"],
) -> dict[str, Float[Tensor, ""]]:
    n, each = counts.sum(), counts.sum(1, keepdim=True)  # each: (relations, 1)
    bits = -(counts * _log2(counts / each)).sum()
    entropies = -(counts / each * _log2(counts / each)).sum(1)  # (relations,)
    alone = counts.sum(0)  # (objects,)
    known = (counts > 0).sum(1)  # (relations,)
    return {
        "the sign is wrong: logarithms of frequencies are negative.": -bits,
        "these are nats; take the logarithm to the base 2.": (
            bits * torch.tensor(2.0, dtype=torch.float64).log()
        ),
        "these are bits per fact; asked are those of all facts.": bits / n,
        "this adds one entropy for each relation; each fact of it costs as much.": (
            entropies.sum()
        ),
        "this is the mean entropy of the relations, each counted once.": (
            entropies.mean()
        ),
        "this forgets the relation, which is heard.": (
            -(alone * _log2(alone / n)).sum()
        ),
        "this tells the relation, too, which is heard.": (
            -(counts * _log2(counts / n)).sum()
        ),
        "this takes all objects of a relation for equally common.": (
            (each[:, 0] * known.double().log2()).sum()
        ),
    }


def _log2(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The logarithm, and 0 for 0, which occurs in no sum."""
    return torch.where(x > 0, x, 1).log2()


def _counts(
    generator: torch.Generator, facts: int, kinds: int
) -> Float[Tensor, "relations objects"]:
    """How many facts of each relation have each object; uneven, every mistake shows."""
    while True:
        weights = torch.rand(kinds, 7, generator=generator, dtype=torch.float64) ** 3
        weights *= (torch.arange(kinds, dtype=torch.float64) + 1)[:, None]
        drawn = torch.multinomial(
            weights.flatten(), facts, replacement=True, generator=generator
        )
        counts = torch.bincount(drawn, minlength=7 * kinds).reshape(kinds, 7).double()
        if bool((counts.sum(1) > 0).all()):
            found = {round(float(x), 9) for x in _guess_mistakes(counts).values()}
            found |= {round(float(x), 9) for x in _bits_mistakes(counts).values()}
            if len(found) == 15:
                return counts


def _facts(
    counts: Float[Tensor, "relations objects"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """One relation and one object per fact, in an order that tells nothing."""
    where = counts.nonzero()  # (cells, 2)
    rows = where.repeat_interleave(counts[where[:, 0], where[:, 1]].long(), 0)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    return rows[:, 0], rows[:, 1]
