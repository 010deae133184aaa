"""Keys that are alike, and what helps: ``python -m experiments.stabilize``.

The condition of D = KᵀC⁻¹K, the system that EMMET solves, for batches of many sizes:
of different subjects, and of subjects with two facts each, see `experiments.alike`.
Eigenvalues of D below 1e-11 of the largest count as zero, as in EMMET; a D that has one
is singular. Then, for one size and with the same values: D as it is, and with ridges;
where keys come twice, also its pseudo-inverse and facts of one key merged, with the
middle ridge (elsewhere the former is the inverse, and there is nothing to merge).
`log10_solved` is the condition of what is solved then, `residual` the largest
|W'k - v| / |v - Wk| of a fact, where merged facts have the value that they share.
Layer, C and search are those of the model's presets.
"""

import random
from collections.abc import Sequence

import edutools as edu
from experiments.alike import KINDS, Alike
from experiments.compared import closed_forms, norm
from experiments.cures import CURES, Place, condition, system
from experiments.study import (
    Bank,
    Setup,
    Unit,
    arguments,
    command,
    report,
    study,
)

SIZES = (1, 4, 16, 64, 256, 1024)
BATCH, MEASURED = 32, 16  # facts that are written, and those that are measured
TWICE = KINDS[2:]  # kinds of batches in which keys come twice


def sizes(draws: Alike, kind: str, most: int | None) -> list[Unit]:
    """The units of a kind but for the seed; sizes that there are not are left out."""
    several = [n for n in SIZES if n > 1 or kind == KINDS[0]]
    if kind in TWICE:
        several, cures = [n for n in several if n <= 64], [*CURES]
    else:
        cures = [*CURES][:4]
    written = min(most or BATCH, BATCH)
    units = [{"n": n} for n in several] + [{"n": written, "cure": c} for c in cures]
    there = len(draws.batch(kind, most or SIZES[-1], 0))
    return [unit for unit in units if unit["n"] <= there]


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    draws, method = Alike.of(setup, given.data), closed_forms(setup)["EMMET"]
    assert isinstance(method, edu.EMMET)
    place = Place(setup, method, Bank(), {})
    moment = setup.moments(method.layers)[method.layers[0]]
    units = [
        {"kind": kind, "seed": seed} | unit
        for seed in range(given.seeds)
        for kind in KINDS
        for unit in sizes(draws, kind, given.limit)
    ]

    def measure(unit: Unit) -> Unit:
        cases = draws.batch(unit["kind"], unit["n"], unit["seed"])
        facts = [case.fact for case in cases]
        found = None  # more facts than a key has numbers
        if len(facts) <= len(moment.total):
            found = condition(system(place.keys(facts), moment.factor))
        told = {"singular": found is None}
        told |= {} if found is None else {"log10_condition": found}
        if "cure" not in unit:
            return told
        try:
            change, more = place.cured(facts, unit["cure"], moment)
        except ValueError as error:
            return told | {"refused": str(error)}
        part = random.Random(unit["seed"]).sample(cases, min(MEASURED, len(cases)))
        with change.applied(setup.model):
            told |= report(setup, part)
        return told | more | {"norm": norm(change), "measured": len(part)}

    study("stabilize", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
