"""Times that the benchmarks have measured, where there are any."""

import json
from dataclasses import dataclass
from pathlib import Path

from edutools.outline import published_name

__all__ = ["Measured", "measured", "results"]


@dataclass(frozen=True)
class Measured:
    """How long one unit of some work took.

    Args:
        seconds: per unit.
        unit: what was counted.
        hardware: on what.
        dtype: of the model.
        file: which result says so.

    Book: sec-planning
    """

    seconds: float
    unit: str
    hardware: str
    dtype: str
    file: str

    def __str__(self) -> str:
        return f"{self.seconds:.3g} s per {self.unit} ({self.hardware}, {self.dtype})"


def results() -> Path | None:
    """The folder of measured results: beside the package, or inside it; None if none.

    Book: sec-planning
    """
    package = Path(__file__).resolve().parent
    places = (package.parent / "benchmarks" / "results", package / "data" / "results")
    return next((place for place in places if place.is_dir()), None)


def measured(
    model: str, method: str, phase: str, *, folder: Path | None = None
) -> Measured | None:
    """How long a part of the work took on this model; None if nobody has measured it.

    Args:
        model: its name; only times of the full size count.
        method: such as 'MEMIT'.
        phase: such as 'value search'.
        folder: of results, `results` by default.

    Book: sec-planning
    """
    folder = folder or results()
    name = published_name(model) or model
    for file in sorted(folder.glob("full_size*.json"), reverse=True) if folder else ():
        told = json.loads(file.read_text(encoding="utf-8"))
        for row in told["rows"]:
            here = (row.get("model"), row.get("phase")) == (name, phase)
            fits = row.get("method") in (None, method) and row.get("size") == "full"
            if here and fits and row.get("units"):
                around = told["surroundings"]
                hardware = around["device"]
                return Measured(
                    seconds=row["seconds"] / row["units"],
                    unit=row["unit"],
                    hardware=around["cpu"] if hardware == "cpu" else hardware,
                    dtype=row["dtype"],
                    file=file.name,
                )
    return None
