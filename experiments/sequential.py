"""Edits one after the other, until the model breaks.

``python -m experiments.sequential``: ROME with the two keys that released code mixes
and with one key, EMMET, MEMIT, ENCORE and AlphaEdit, one fact at a time and in batches
of 16 and 100. At some points the last edits, the first ones, other facts and ordinary
texts are measured. A sequence ends when the model has lost half of the other facts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import edutools as edu
from edutools.method import Moments
from experiments.choices import contexts
from experiments.compared import closed_forms, layers_of, norm, one_layer
from experiments.given import only
from experiments.sequences import Line, OneLayer, write_next
from experiments.study import Setup, Unit, arguments, command, report, scores, study

POINTS = (1, 4, 16, 64, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
SHOWN = 32  # of the last and of the first edits
FIRST = ("efficacy", "efficacy_top1")  # what is told of the first ones
BATCHES = (1, 16, 100)
LOST = 0.5  # of the other facts: there a sequence ends


def methods(setup: Setup) -> dict[str, OneLayer]:
    """The methods that are compared, with every choice written down.

    Keys and values are taken on the bare prompt and one text in front of it, which does
    as well as the presets' four (see `experiments.choices`) in half of the time.
    """
    rome = edu.ROME.preset(setup.name)
    found: dict[str, OneLayer] = {
        "ROME, two keys": replace(rome, key="mixed"),
        "ROME": rome,
    }
    if setup.has("ENCORE"):
        found["ENCORE"] = one_layer(edu.ENCORE.preset(setup.name))
    found |= closed_forms(setup)
    return {
        name: replace(
            method, search=replace(method.search, contexts=contexts(1))
        ).resolved(setup.model, setup.tokenizer)
        for name, method in found.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    compared = methods(setup)
    moments = setup.moments(layers_of(compared))
    most = min(given.limit or POINTS[-1], setup.most)
    units = [
        {"method": name, "batch": batch, "n": most, "seed": seed}
        for name, method in compared.items()
        for batch in BATCHES
        if batch == 1 or (method.several and batch <= most)
        for seed in range(given.seeds)
    ]
    seeds = sorted({unit["seed"] for unit in only(units, given.unit)})
    grown: dict[tuple[str, int], dict[int, Unit]] = {}

    def measure(unit: Unit) -> Unit:
        """All seeds of a method at once, when the first of them is wanted."""
        name, batch = unit["method"], unit["batch"]
        if (name, batch) not in grown:
            draws = {seed: setup.draw(most, seed) for seed in seeds}
            grown[name, batch] = grow(setup, draws, compared[name], moments, batch)
        return grown[name, batch][unit["seed"]]

    study("sequential", given, setup, units, measure)


def grow(
    setup: Setup,
    draws: Mapping[int, Sequence[edu.Case]],
    method: OneLayer,
    moments: Moments,
    batch: int,
) -> dict[int, Unit]:
    """By seed, what was measured along a sequence, and where and why it ended."""
    lines = {seed: Line(cases, moments) for seed, cases in draws.items()}
    rows: dict[int, Unit] = {seed: {"points": []} for seed in draws}
    running, seen = list(lines), 0
    while running := [seed for seed in running if lines[seed].next(1)]:
        chosen = [lines[seed] for seed in running]
        wrong = write_next(setup, chosen, method, batch=batch)
        for i, error in wrong.items():
            rows[running[i]]["stopped"] = f"after {seen}: {error}"
        done = max(line.done for line in chosen)
        if any(seen < point <= done for point in POINTS):
            for seed in (s for s in running if "stopped" not in rows[s]):
                at = measured(setup, lines[seed], seed)
                rows[seed]["points"].append(at)
                if at["untouched_top1"] < LOST:
                    rows[seed]["lost_half"] = done
        seen = done
        ended = ("stopped", "lost_half")
        running = [s for s in running if not any(name in rows[s] for name in ended)]
    return rows


def measured(setup: Setup, line: Line, seed: int) -> Unit:
    """How the model does now: the last edits, the first ones and everything else."""
    cases = line.cases[: line.done]
    with line.total.applied(setup.model):
        told = scores(setup, cases[-SHOWN:], seed=seed)
        first = told if line.done <= SHOWN else report(setup, cases[:SHOWN])
    early = {f"first_{name}": first[name] for name in FIRST if name in first}
    return {"edits": line.done} | told | early | {"norm": norm(line.total)}


if __name__ == "__main__":
    command(main)
