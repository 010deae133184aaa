"""One layer or several, and who writes how much.

``python -m experiments.distribution``: MEMIT, EMMET and AlphaEdit at one layer, over
three layers in equal shares, by the square root of the layers left, and at the first
and the last of the three.
"""

from collections.abc import Sequence
from dataclasses import replace

from experiments.compared import closed_forms, norm, write
from experiments.study import Bank, Setup, Unit, arguments, command, scores, study

SIZES = (1, 16, 64, 256)
KINDS = ("one", "even", "sqrt", "ends")


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    forms, bank = closed_forms(setup), Bank()
    last = {name: form.layers[-1] for name, form in forms.items()}
    several = {name: tuple(range(max(0, at - 2), at + 1)) for name, at in last.items()}
    moments = setup.moments({at for layers in several.values() for at in layers})
    most = min(given.limit or SIZES[-1], setup.most)
    units = [
        {"method": name, "distribution": kind, "n": n, "seed": seed}
        for seed in range(given.seeds)
        for name in forms
        for kind in KINDS
        for n in SIZES
        if n <= most
    ]

    def measure(unit: Unit) -> Unit:
        cases, name = setup.draw(unit["n"], unit["seed"]), unit["method"]
        method = forms[name]
        if unit["distribution"] != "one":
            kind = unit["distribution"]
            method = replace(method, layers=several[name], distribution=kind)
        try:
            change = write(setup, cases, method, moments, bank)
        except ValueError as error:
            return {"refused": str(error)}
        with change.applied(setup.model):
            told = scores(setup, cases, seed=unit["seed"])
        return told | {"norm": norm(change), "layers": list(method.edited())}

    study("distribution", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
