"""What the studies have measured, row by row, and means over seeds with intervals.

A study writes facts into a model again and again, with other facts for each seed. The
facts of one seed share a model and an edit, so that seeds, not facts, are what an
interval must count.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from edutools.checks import number, several, shown
from edutools.pocket import chosen

__all__ = ["points", "student", "studies", "study", "study_rows", "summary"]

LEVEL = 0.95
Row = dict[str, Any]


def studies() -> Path | None:
    """The folder of results: beside the package, or inside it; None if there is none.

    Book: sec-scaling
    """
    package = Path(__file__).resolve().parent
    places = (package.parent / "experiments" / "results", package / "data" / "studies")
    return next((place for place in places if place.is_dir()), None)


def study(
    name: str, model: str | None = None, *, folder: str | Path | None = None
) -> dict[str, Any]:
    """All that is kept of a study: its rows, the cases, versions and weights.

    Args:
        name: such as 'batch_size'.
        model: as of `pocket.chosen`.
        folder: of results; those of the package by default.

    Raises:
        FileNotFoundError: if nobody has measured it; lists what there is.
        ValueError: if the file holds something else.

    Book: sec-scaling
    """
    place = studies() if folder is None else Path(folder)
    full = Path(chosen(model)).name
    known = sorted(path.stem for path in place.glob("*.json")) if place else []
    if place is None or f"{name}-{full}" not in known:
        near = difflib.get_close_matches(f"{name}-{full}", known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise FileNotFoundError(
            f"No results of the study {name!r} on {full!r}.{hint} There are: "
            f"{', '.join(known) or 'none'}. Measure it in a checkout with python -m "
            f"experiments.{name} --model {full}."
        )
    path = place / f"{name}-{full}.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        several("rows", told["rows"], dict)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name} holds no rows of a study ({error}). Copy it again."
        ) from None
    return told


def study_rows(
    name: str, model: str | None = None, *, folder: str | Path | None = None
) -> list[Row]:
    """The rows of a study, one for each unit of its work.

    Arguments and errors are those of `study`.

    Book: sec-scaling
    """
    return study(name, model, folder=folder)["rows"]


def points(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The points of rows that were measured along the way, each as a row of its own.

    Book: sec-scaling

    >>> points([{"method": "ROME", "points": [{"edits": 1}, {"edits": 4}]}])
    [{'method': 'ROME', 'edits': 1}, {'method': 'ROME', 'edits': 4}]
    """
    return [
        {name: value for name, value in row.items() if name != "points"} | point
        for row in rows
        for point in row.get("points", ())
    ]


def summary(
    rows: Iterable[Mapping[str, Any]], *, by: Sequence[str], value: str
) -> list[Row]:
    r"""The mean of a value over seeds with its 95 % interval, group by group.

    .. math:: \bar x \pm t_{n-1}\, \frac{s}{\sqrt n}

    Args:
        rows: of a study, one for each seed of a group. Those without the value, because
            a method refused or nothing could be measured, do not count.
        by: names that make a group, such as ["method", "n"].
        value: what is averaged.

    Returns:
        A row for each group in the order of the rows: what makes it, `mean`, `low`,
        `high` and `seeds`, their number. An interval has no width where all seeds
        agree, is nan for one seed, and may reach beyond the range of the value.

    Raises:
        LookupError: if rows lack a name of `by`, or all of them the value.
        ValueError: if a group has two rows of one seed, or a seed is missing.

    Source: Student's t; n seeds stand for the draws of facts, not for other models.
    Book: sec-scaling

    >>> rows = [{"n": 4, "seed": i, "score": x} for i, x in enumerate([0.7, 0.8, 0.9])]
    >>> summary(rows, by=["n"], value="score")
    [{'n': 4, 'mean': 0.80, 'low': 0.552, 'high': 1.048, 'seeds': 3}]
    """
    rows = several("rows", rows, dict)
    names = [by] if isinstance(by, str) else several("by", by, str)
    _named(rows, value)
    found: dict[tuple, dict[Any, float]] = {}
    for row in rows:
        missing = [name for name in (*names, "seed") if name not in row]
        if missing:
            raise LookupError(
                f"A row has no {missing[0]!r}; it has {', '.join(row)}. Group by what "
                "every row has."
            )
        seeds = found.setdefault(tuple(_key(row[name]) for name in names), {})
        x = row.get(value)
        if x is None or x != x:
            continue
        if row["seed"] in seeds:
            raise ValueError(
                f"Two rows of seed {row['seed']} stand in the group "
                f"{shown({name: row[name] for name in names})}. Name in `by` what "
                "tells them apart, or leave one out."
            )
        seeds[row["seed"]] = float(x)
    return [
        dict(zip(names, key, strict=True)) | _interval(list(seeds.values()))
        for key, seeds in found.items()
        if seeds
    ]


def _named(rows: Sequence[Mapping[str, Any]], value: str) -> None:
    """Refuse a value that no row has."""
    known = sorted({name for row in rows for name in row})
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LookupError(
            f"No row has a value {value!r}.{hint} There are: {', '.join(known)}."
        )


def _key(value: Any) -> Any:
    return tuple(_key(item) for item in value) if isinstance(value, list) else value


def _interval(values: list[float]) -> dict[str, Any]:
    """Mean, interval and number."""
    n, mean = len(values), math.fsum(values) / len(values)
    half = math.nan
    if n > 1 and min(values) == max(values):
        mean, half = values[0], 0.0
    elif n > 1 and math.isfinite(mean):
        variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
        half = student(n - 1) * math.sqrt(variance / n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": n}


@cache
def student(freedom: int) -> float:
    """The t that Student's variable stays within, either side, in 95 % of the cases.

    Args:
        freedom: degrees of freedom; one less than the number of values.

    Source: the finite sums for whole degrees of freedom; halved until it fits.
    Book: sec-scaling

    >>> [student(freedom) for freedom in (1, 4, 1000)]
    [12.706, 2.776, 1.962]
    """
    number("freedom", freedom, int, least=1)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _inside(angle, freedom) < LEVEL else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _inside(angle: float, freedom: int) -> float:
    """How probable it is that |t| < √freedom · tan(angle)."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= (k + 1) / (k + 2) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
