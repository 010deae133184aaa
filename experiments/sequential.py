"""Edits one after the other, until the model breaks.

``python -m experiments.sequential``: ROME with the two keys that released code mixes
and with one key, EMMET, MEMIT, ENCORE and AlphaEdit, one fact at a time and in batches
of 16 and 100. At some points the last edits, the first ones, other facts and ordinary
texts are measured.
"""

from collections.abc import Sequence
from dataclasses import replace

import edutools as edu
from edutools.method import Method
from experiments.compared import closed_forms, in_turn, layers_of, norm, one_layer
from experiments.study import Setup, Unit, arguments, command, report, scores, study

POINTS = (1, 4, 16, 32, 64, 100, 200, 300, 500, 700, 1000)
SHOWN = 32  # of the last and of the first edits
FIRST = ("efficacy", "efficacy_top1")  # what is told of the first ones
BATCHES = (1, 16, 100)


def methods(setup: Setup) -> dict[str, Method]:
    """The methods that are compared, with every choice written down."""
    rome = edu.ROME.preset(setup.name)
    found: dict[str, Method] = {
        "ROME, two keys": replace(rome, key="mixed"),
        "ROME": rome,
    }
    if setup.has("ENCORE"):
        found["ENCORE"] = one_layer(edu.ENCORE.preset(setup.name))
    return {
        **{n: m.resolved(setup.model, setup.tokenizer) for n, m in found.items()},
        **closed_forms(setup),
    }


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    compared = methods(setup)
    moments = setup.moments(layers_of(compared))
    most = min(given.limit or POINTS[-1], setup.most)
    units = [
        {"method": name, "batch": batch, "n": most, "seed": seed}
        for seed in range(given.seeds)
        for name, method in compared.items()
        for batch in BATCHES
        if batch == 1 or (method.several and batch <= most)
    ]

    def measure(unit: Unit) -> Unit:
        cases = setup.draw(most, unit["seed"])
        method, batch = compared[unit["method"]], unit["batch"]
        points, seen = [], 0
        try:
            for done, total in in_turn(setup, cases, method, moments, batch=batch):
                if any(seen < point <= done for point in POINTS):
                    points.append({"edits": done} | at(cases[:done], total, unit))
                seen = done
        except (ValueError, RuntimeError) as error:
            return {"points": points, "stopped": f"after {seen}: {error}"}
        return {"points": points}

    def at(cases: Sequence[edu.Case], total: edu.Edit, unit: Unit) -> Unit:
        with total.applied(setup.model):
            last = scores(setup, cases[-SHOWN:], seed=unit["seed"])
            first = report(setup, cases[:SHOWN])
        early = {f"first_{k}": first[k] for k in FIRST if k in first}
        return last | early | {"norm": norm(total)}

    study("sequential", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
