"""How many tokens C needs: ``python -m experiments.statistics``.

ROME for single facts, each alone in the model, MEMIT and EMMET for a batch, all at one
layer, with C measured on 0.1 to 100 times as many tokens as a key has numbers. Each
seed reads other texts and writes other facts; a larger C of a seed holds the smaller
ones. Values are searched once per fact, and keys are the same for every C. Then C = I
(`covariance="identity"`), where λ is in another unit: 'MEMIT, scaled' has λ times the
mean eigenvalue of the largest C. 'EMMET, shrunk' has a hundredth of the mean eigenvalue
added to C, and tells a C without an inverse from one that says too little.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean

import edutools as edu
from edutools.method import Method, Moments
from edutools.metrics import harmonic_mean
from experiments.compared import closed_forms, norm, write
from experiments.ladder import TIMES, ladder, mean_eigenvalue, shrunk
from experiments.study import (
    Bank,
    Setup,
    Unit,
    arguments,
    command,
    scores,
    study,
)

METHODS = ("ROME", "MEMIT", "EMMET")
SHRUNK = (0.1, 1)
ALONE, BATCH, MEASURED = 2, 64, 16  # facts written alone, in a batch, measured of it
RATES = ("efficacy", "paraphrase", "neighborhood", "specificity")  # the last of zsRE


def plan(seeds: int, batch: int) -> list[Unit]:
    """What is measured; C = I is 0 tokens."""
    told = [(name, times) for name in METHODS for times in TIMES]
    told += [("EMMET, shrunk", times) for times in SHRUNK]
    told += [(name, 0) for name in (*METHODS, "MEMIT, scaled")]
    alone = {"n": 1, "facts": min(ALONE, batch)}
    return [
        {"method": name, "covariance": "moments" if times else "identity"}
        | {"times": times, "seed": seed}
        | (alone if name == "ROME" else {"n": batch, "facts": batch})
        for seed in range(seeds)
        for name, times in told
    ]


def prepared(
    unit: Unit, method: Method, known: Mapping[float, edu.SecondMoment]
) -> tuple[Method, Moments]:
    """The method with its kind of C, and that C, if it is measured."""
    if unit["method"] == "MEMIT, scaled":
        assert isinstance(method, edu.MEMIT)
        method = replace(method, lam=method.lam * mean_eigenvalue(known[TIMES[-1]]))
    method = replace(method, covariance=unit["covariance"])
    if not unit["times"]:
        return method, {}
    moment, (layer,) = known[unit["times"]], method.edited()
    return method, {layer: shrunk(moment) if "shrunk" in unit["method"] else moment}


def mean(rows: Sequence[Unit]) -> Unit:
    """Of what single facts gave; the score is that of the mean rates."""
    told = {name: fmean(row[name] for row in rows) for name in rows[0]}
    score = harmonic_mean(*(told[name] for name in RATES if name in told))
    return told | {"score": score, "measured": len(rows)}


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup, bank = Setup.given(given), Bank()
    rome = edu.ROME.preset(setup.name).resolved(setup.model, setup.tokenizer)
    compared: dict[str, Method] = {**closed_forms(setup), "ROME": rome}
    moments = cache(lambda layer, seed: ladder(setup, layer, seed))
    batch = min(given.limit or BATCH, BATCH, setup.most)

    def measure(unit: Unit) -> Unit:
        method, seed = compared[unit["method"].split(",")[0]], unit["seed"]
        known = moments(method.edited()[0], seed)
        method, used = prepared(unit, method, known)
        told = {"tokens": known[unit["times"]].count if unit["times"] else 0}
        cases = setup.draw(unit["facts"], seed)
        parts = [cases] if method.several else [[case] for case in cases]
        rows = []
        try:
            for part in parts:
                change = write(setup, part, method, used, bank)
                with change.applied(setup.model):
                    row = scores(setup, part, seed=seed, most=MEASURED)
                rows.append(row | {"norm": norm(change)})
        except ValueError as error:  # C has no inverse
            return told | {"refused": str(error)}
        for moment in used.values():
            told["log10_condition"] = math.log10(moment.factor.condition)
        return told | (rows[0] if method.several else mean(rows))

    study("statistics", given, setup, plan(given.seeds, batch), measure)


if __name__ == "__main__":
    command(main)
