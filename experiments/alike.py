"""Batches with two facts per subject, whose keys are alike or the same."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import edutools as edu
from edutools.corpus import counterfact_records
from edutools.keyvalue import beginning
from edutools.world import build_world
from experiments.given import read_data
from experiments.study import Setup

KINDS = ("different subjects", "two wordings", "one key", "two targets")
Pair = tuple[edu.Case, edu.Case]


@dataclass(frozen=True, eq=False)
class Alike:
    """Batches of four kinds, with the subjects in the order that a seed gives.

    'different subjects' has one fact of each. The others have two: in 'two wordings'
    the texts up to the subject's end differ, in 'one key' they are the same, and in
    'two targets' one prompt is to go on in two ways.

    Args:
        setup: the model's.
        cases: all that there are, also several of one subject.
    """

    setup: Setup
    cases: Sequence[edu.Case]

    @classmethod
    def of(cls, setup: Setup, data: str | None = None) -> "Alike":
        """From the file, or the world, whose cases the setup has."""
        if data is not None:
            return cls(setup, read_data(data)[0])
        records = counterfact_records(build_world())
        return cls(setup, [edu.Case.from_counterfact(record) for record in records])

    def batch(self, kind: str, n: int, seed: int) -> list[edu.Case]:
        """The first n cases, or as many as there are; smaller batches are in it."""
        order = self.setup.draw(self.setup.most, seed)
        if kind == KINDS[0]:
            return order[:n]
        pairs = [self._pairs[kind].get(case.fact.subject, ()) for case in order]
        return [case for pair in pairs for case in pair][:n]

    @cached_property
    def _pairs(self) -> dict[str, dict[str, Pair]]:
        """For each kind and subject its first two cases that are so."""
        about: dict[str, list[edu.Case]] = {}
        targets: dict[str, set[str]] = {}
        for case in self.cases:
            about.setdefault(case.fact.subject, []).append(case)
            targets.setdefault(case.fact.prompt, set()).add(case.fact.target)
        found: dict[str, dict[str, Pair]] = {kind: {} for kind in KINDS[1:]}
        for subject, cases in about.items():
            for pair in combinations(cases, 2):
                one, other = (case.fact for case in pair)
                same = beginning(one) == beginning(other)
                if one.text != other.text:
                    kind = "one key" if same else "two wordings"
                    found[kind].setdefault(subject, pair)
            fact = cases[0].fact
            left = sorted(targets[fact.prompt] - {fact.target, fact.truth})
            if left and not self.setup.questions:  # a question has one answer
                new = replace(fact, target=random.Random(fact.text).choice(left))
                found["two targets"][subject] = cases[0], replace(cases[0], fact=new)
        return found
