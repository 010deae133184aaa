"""Whether the ranking of methods depends on how an answer is counted.

``python -m experiments.conventions``: the same 32 facts, written by MEMIT, EMMET and
AlphaEdit at one layer, FT-L and MEND in one batch, and by ROME with one key, with that
of the bare prompt and with two keys, each fact alone in the model. Every edited model
is measured under every convention; nothing else differs. Efficacy and paraphrase ask
for the new target, neighborhood for the old truth.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import edutools as edu
from edutools.method import Method
from edutools.studies import points, summary
from experiments.compared import (
    closed_forms,
    interval,
    kendall,
    layers_of,
    ranks,
    write,
)
from experiments.counted import Rates, measured, summed_up
from experiments.study import Bank, Setup, Unit, arguments, command, study

BATCH = 32  # facts
UNEDITED = "unedited"


def methods(setup: Setup) -> dict[str, Method]:
    """The methods that are compared, with every choice written down."""
    rome = edu.ROME.preset(setup.name).resolved(setup.model, setup.tokenizer)
    found: dict[str, Method] = {**closed_forms(setup)}
    if setup.has("FT-L"):
        found["FT-L"] = edu.FineTune.preset(setup.name, kind="FT-L")
    if setup.has("MEND"):
        found["MEND"] = edu.MEND.from_pretrained(setup.mend)
    found |= {"ROME": rome, "p-ROME": replace(rome, key="prompt")}
    return found | {"ROME, two keys": replace(rome, key="mixed")}


def ranked(rows: Sequence[Unit], value: str = "score") -> list[Unit]:
    """The mean over draws with its interval, by convention and method, and its rank.

    Rank 1 is the best mean of a convention.
    """
    compared = [row for row in points(rows) if row["method"] != UNEDITED]
    found = summary(compared, by=["convention", "method"], value=value)
    told = []
    for convention in dict.fromkeys(row["convention"] for row in found):
        mine = [row for row in found if row["convention"] == convention]
        order = ranks([-row["mean"] for row in mine]).tolist()
        told += [row | {"rank": at} for row, at in zip(mine, order, strict=True)]
    return told


def agreement(rows: Sequence[Unit], value: str = "score") -> list[Unit]:
    """Kendall's tau between the rankings by two conventions: mean over draws, interval.

    Draws in which one of the two holds all methods equal are left out.
    """
    columns: dict[tuple[int, str], list[float]] = {}
    for row in points(rows):
        if row["method"] != UNEDITED:
            key = row["seed"], row["convention"]
            columns.setdefault(key, []).append(row[value])
    seeds, names = (dict.fromkeys(part) for part in zip(*columns, strict=True))
    return [
        {"conventions": [a, b]}
        | interval([kendall(columns[s, a], columns[s, b]) for s in seeds])
        for a, b in combinations(names, 2)
    ]


def alone(
    setup: Setup, cases: Sequence[edu.Case], rome: edu.ROME, bank: Bank, moments
) -> list[Rates]:
    """Each fact written by itself and measured."""
    facts = [case.fact for case in cases]
    edits = rome.compute_each(setup.model, setup.tokenizer, facts, moments, find=bank)
    parts = []
    for case, change in zip(cases, edits, strict=True):
        with change.applied(setup.model):
            parts.append(measured(setup, [case]))
    return parts


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    compared, bank = methods(setup), Bank()
    moments = setup.moments(layers_of(compared))
    n = min(given.limit or BATCH, BATCH, setup.most)
    units = [
        {"method": name, "n": n, "seed": seed}
        for seed in range(given.seeds)
        for name in [*compared, UNEDITED]
    ]

    def measure(unit: Unit) -> Unit:
        cases = setup.draw(n, unit["seed"])
        if unit["method"] == UNEDITED:
            return {"points": summed_up([measured(setup, cases)])}
        method = compared[unit["method"]]
        if isinstance(method, edu.ROME):
            return {"points": summed_up(alone(setup, cases, method, bank, moments))}
        with write(setup, cases, method, moments, bank).applied(setup.model):
            return {"points": summed_up([measured(setup, cases)])}

    study("conventions", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
