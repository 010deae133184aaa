"""What an evaluation gives: a number per case and metric, with interval and unit."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edutools.metrics import bootstrap, harmonic_mean, wilson

if TYPE_CHECKING:
    import pandas

__all__ = ["RATES", "Report", "Row", "per_case"]

RATES = ("efficacy", "paraphrase", "neighborhood")
FORMAT = "edutools report 1"


@dataclass(frozen=True)
class Row:
    """One line of a report: a mean over cases with its 95 % interval.

    The interval is nan if there is only one case to tell it from.

    Book: sec-evaluation-report
    """

    metric: str
    mean: float
    low: float
    high: float
    n: int
    unit: str = "fraction"
    note: str = ""

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return f"{self.metric:<23} undefined ({self.note})"
        interval = f"[{_digits(self.low)}, {_digits(self.high)}]"
        number = f"{self.metric:<23} {_digits(self.mean)}  {interval}  {self.n:>5}"
        return f"{number}  {self.unit}"


@dataclass(frozen=True)
class Report:
    """What an evaluation measured, one value per case and metric.

    Attributes:
        values: for each metric one number per case, averaged over the case's prompts;
            nan where the case lacks what the metric needs.
        convention: how the numbers came about: how answers were compared, how texts
            were written.
        units: of the metrics that are not fractions.
        needs: what a case must have for a metric to be defined.
        parts: the rates whose harmonic mean is the score; none, no score.
        texts: what the model wrote, by metric: for each case its texts.

    Raises:
        ValueError: if metrics have different numbers of cases, or there is no metric.

    Book: sec-evaluation-report
    """

    values: Mapping[str, Float[Tensor, " _"]]
    convention: str
    units: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = RATES
    texts: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def __post_init__(self):
        lengths = {metric: len(column) for metric, column in self.values.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                "A report needs at least one metric, and all of them on the same "
                f"cases; got {lengths or 'none'}."
            )

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __repr__(self) -> str:
        row = self.summary()[0]
        return f"Report(cases={len(self)}, {row.metric}={row.mean:.3f})"

    def __getitem__(self, metric: str) -> Row:
        if metric == "score" and self.parts:
            return self._score()
        if metric not in self.values:
            known = ", ".join([*(["score"] if self.parts else []), *self.values])
            raise KeyError(f"No metric {metric!r} in this report. Known: {known}.")
        return self._row(metric)

    @classmethod
    def join(cls, reports: Sequence["Report"]) -> "Report":
        """The cases of several reports in one, e.g. of facts edited one by one.

        Raises:
            ValueError: if there is none, or they compare answers in different ways.
        """
        if len({(report.convention, *report.values) for report in reports}) != 1:
            kinds = sorted({report.convention for report in reports}) or "no report"
            raise ValueError(
                f"Report.join needs reports of one kind; got {kinds}. Evaluate all "
                "cases with the same options."
            )
        first = reports[0]
        values = {k: torch.cat([r.values[k] for r in reports]) for k in first.values}
        texts = {k: sum((r.texts[k] for r in reports), ()) for k in first.texts}
        rest = first.units, first.needs, first.parts
        return cls(values, first.convention, *rest, texts)

    def beside(self, other: "Report") -> "Report":
        """These metrics and those of another report on the same cases.

        Raises:
            ValueError: if the reports differ in their cases, or share a metric.
        """
        shared = sorted(set(self.values) & set(other.values))
        if len(self) != len(other) or shared:
            raise ValueError(
                f"Reports side by side must be about the same cases and have no metric "
                f"in common; got {len(self)} and {len(other)} cases, shared: {shared}."
            )
        return Report(
            values={**self.values, **other.values},
            convention=f"{self.convention}; {other.convention}",
            units={**self.units, **other.units},
            needs={**self.needs, **other.needs},
            parts=self.parts or other.parts,
            texts={**self.texts, **other.texts},
        )

    def summary(self) -> list[Row]:
        """The score, if any, and every metric: mean, 95 % interval, number of cases."""
        score = [self._score()] if self.parts else []
        return [*score, *(self._row(metric) for metric in self.values)]

    def __str__(self) -> str:
        columns = f"{'mean':>7}  {'95 % interval':<18}  {'cases':>5}  unit"
        lines = [f"{'metric':<23} {columns}", *map(str, self.summary())]
        return "\n".join([*lines, self.convention])

    def to_frame(self) -> "pandas.DataFrame":
        """One row per case, one column per metric."""
        import pandas

        return pandas.DataFrame({k: v.tolist() for k, v in self.values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Values, units, conventions and texts as plain values, for JSON."""
        columns = {
            metric: [None if math.isnan(value) else value for value in column.tolist()]
            for metric, column in self.values.items()
        }
        return {
            "format": FORMAT,
            "convention": self.convention,
            "parts": list(self.parts),
            "units": dict(self.units),
            "needs": dict(self.needs),
            "values": columns,
            "texts": dict(self.texts),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """The report that `to_dict` described.

        Raises:
            ValueError: if it describes none.
        """
        return cls(**_fields(data))

    def save(self, path: str | Path) -> None:
        """Write the report into a JSON file: values, units, conventions and texts."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read a report that `save` has written.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is truncated, damaged or no report.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No report {str(path)!r}. Give a file written by Report.save."
            )
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path.name} is damaged or no report ({type(error).__name__}: "
                f"{error}). Save it anew by Report.save."
            ) from None

    def _row(self, metric: str) -> Row:
        present = self.values[metric][~self.values[metric].isnan()].double()
        n = len(present)
        unit = self.units.get(metric, "fraction")
        if n == 0:
            note = f"no case has {self.needs.get(metric, 'it')}"
            return Row(metric, math.nan, math.nan, math.nan, 0, unit, note)
        mean = float(present.mean())
        if unit == "fraction" and bool(((present == 0) | (present == 1)).all()):
            low, high = wilson(int(present.sum()), n)
        else:
            low, high = _interval(present[:, None], lambda means: means[:, 0])
        return Row(metric, mean, low, high, n, unit)

    def _score(self) -> Row:
        parts = torch.stack([self.values[name] for name in self.parts], 1).double()
        mean = harmonic_mean(*parts.nanmean(0).tolist())
        if math.isnan(mean):
            gone = [name for name in self.parts if self[name].n == 0]
            note = f"no case has what {' and '.join(gone)} needs"
            return Row("score", mean, math.nan, math.nan, 0, note=note)

        def of_means(means: Tensor) -> Tensor:
            return means.shape[1] / (1 / means).sum(1)

        return Row("score", mean, *_interval(parts, of_means), len(parts))


def per_case(
    values: Float[Tensor, " prompts"], owners: Int[Tensor, " prompts"], n: int
) -> Float[Tensor, " n"]:
    """Average the prompts of each of n cases; nan for a case without any.

    Book: sec-evaluation-report

    >>> per_case(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 2]), 3)
    tensor([0.5000,    nan, 1.0000])
    """
    total = torch.zeros(n).index_add(0, owners, values)
    return total / torch.zeros(n).index_add(0, owners, torch.ones(len(values)))


def _interval(
    values: Float[Tensor, "n parts"], statistic: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    return bootstrap(values, statistic) if len(values) > 1 else (math.nan, math.nan)


def _digits(value: float) -> str:
    """Three decimals, fewer where the number would not fit its column of seven."""
    if not abs(value) >= 100:
        return f"{value:7.3f}"
    return f"{value:7.6g}" if abs(value) < 1e5 else f"{value:7.1e}"


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Report` out of what is in the file."""
    if data.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    columns = {
        metric: torch.tensor([math.nan if v is None else float(v) for v in column])
        for metric, column in data["values"].items()
    }
    texts = {
        metric: tuple(tuple(texts) for texts in cases)
        for metric, cases in data["texts"].items()
    }
    names = {name: data[name] for name in ("convention", "units", "needs")}
    return {**names, "parts": tuple(data["parts"]), "values": columns, "texts": texts}
