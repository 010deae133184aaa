"""How many facts can be written at once: ``python -m experiments.batch_size``.

ROME one after the other; MEMIT, EMMET, AlphaEdit, FT-L and MEND in one batch; all at
one layer but MEND, with the settings of the model's presets. Values are searched once
per fact and serve MEMIT, EMMET and AlphaEdit in every batch.
"""

from collections.abc import Sequence

import edutools as edu
from edutools.method import Method
from experiments.compared import closed_forms, layers_of, norm, write
from experiments.sequences import in_turn
from experiments.study import (
    Bank,
    Setup,
    Unit,
    arguments,
    command,
    scores,
    study,
    writing,
)

SIZES = (1, 4, 16, 64, 256, 1024)


def methods(setup: Setup) -> dict[str, Method]:
    """The methods that are compared, with every choice written down."""
    found: dict[str, Method] = {**closed_forms(setup)}
    if setup.has("FT-L"):
        found["FT-L"] = edu.FineTune.preset(setup.name, kind="FT-L")
    if setup.has("MEND"):
        found["MEND"] = edu.MEND.from_pretrained(setup.mend)
    rome = edu.ROME.preset(setup.name)
    return found | {"ROME": rome.resolved(setup.model, setup.tokenizer)}


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    compared, bank = methods(setup), Bank()
    moments = setup.moments(layers_of(compared))
    most = min(given.limit or SIZES[-1], setup.most)
    units = [
        {"method": name, "n": n, "seed": seed}
        for seed in range(given.seeds)
        for name in compared
        for n in SIZES
        if n <= most
    ]

    def measure(unit: Unit) -> Unit:
        cases, method = setup.draw(unit["n"], unit["seed"]), compared[unit["method"]]
        try:
            if unit["method"] == "ROME":
                *_, (_, change) = in_turn(setup, cases, method, moments)
            else:
                change = write(setup, cases, method, moments, bank)
        except (ValueError, RuntimeError) as error:  # more facts than a key has room
            return {"refused": str(error)}
        with change.applied(setup.model):
            told = scores(setup, cases, seed=unit["seed"])
            told |= writing(setup, cases, seed=unit["seed"])
        return told | {"norm": norm(change)}

    study("batch_size", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
