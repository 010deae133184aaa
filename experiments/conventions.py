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


def table(rows: Sequence[Unit], name: str = "score") -> dict[str, dict[str, Unit]]:
    """By convention and method: the mean over draws with interval, and the mean's rank.

    Rank 1 is the best.
    """
    found: dict[str, dict[str, Unit]] = {}
    names = dict.fromkeys(row["method"] for row in rows)
    for convention in rows[0]["rates"]:
        column = {
            m: interval(
                [r["rates"][convention][name] for r in rows if r["method"] == m]
            )
            for m in names
            if m != UNEDITED
        }
        order = ranks([-told["mean"] for told in column.values()]).tolist()
        found[convention] = {
            m: told | {"rank": at}
            for (m, told), at in zip(column.items(), order, strict=True)
        }
    return found


def agreement(rows: Sequence[Unit], name: str = "score") -> dict[tuple[str, str], Unit]:
    """Kendall's tau between the rankings by two conventions: mean over draws, interval.

    Draws in which one of the two holds all methods equal are left out.
    """
    draws = [
        [r["rates"] for r in rows if r["seed"] == seed and r["method"] != UNEDITED]
        for seed in sorted({row["seed"] for row in rows})
    ]
    return {
        (a, b): interval(
            [kendall([r[a][name] for r in d], [r[b][name] for r in d]) for d in draws]
        )
        for a, b in combinations(rows[0]["rates"], 2)
    }


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
            return {"rates": summed_up([measured(setup, cases)])}
        method = compared[unit["method"]]
        if isinstance(method, edu.ROME):
            return {"rates": summed_up(alone(setup, cases, method, bank, moments))}
        with write(setup, cases, method, moments, bank).applied(setup.model):
            return {"rates": summed_up([measured(setup, cases)])}

    study("conventions", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
