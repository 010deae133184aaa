"""MEMIT and EMMET on one axis: ``python -m experiments.lam``.

MEMIT for many λ, and EMMET for as many products of ridge and weight, on the same batch
and with the same values. Equal λ must give equal edits.
"""

from collections.abc import Sequence
from dataclasses import replace

import edutools as edu
from experiments.compared import closed_forms, layers_of, norm, write
from experiments.study import Bank, Setup, Unit, arguments, command, scores, study

LAMS = tuple(10.0**power for power in range(-6, 7))
WEIGHT = 20_000.0  # of EMMET, so that its ridge is λ/20,000
BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    forms, bank = closed_forms(setup), Bank()
    moments = setup.moments(layers_of(forms))
    search, layers = forms["MEMIT"].search, forms["MEMIT"].layers
    n = min(given.limit or BATCH, BATCH, setup.most)
    units = [
        {"method": name, "lam": lam, "n": n, "seed": seed}
        for seed in range(given.seeds)
        for lam in LAMS
        for name in ("MEMIT", "EMMET")
    ]
    methods = {
        "MEMIT": lambda lam: replace(forms["MEMIT"], lam=lam),
        "EMMET": lambda lam: edu.EMMET(
            layers=layers, search=search, ridge=lam / WEIGHT, weight=WEIGHT
        ),
    }

    def measure(unit: Unit) -> Unit:
        cases = setup.draw(n, unit["seed"])
        change = write(
            setup, cases, methods[unit["method"]](unit["lam"]), moments, bank
        )
        with change.applied(setup.model):
            told = scores(setup, cases, seed=unit["seed"])
        return told | {"norm": norm(change)}

    study("lam", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
