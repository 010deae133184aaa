"""All results in one picture, and the page beside it: ``python -m benchmarks.figure``.

The picture carries a hash of the results that it shows, so that a test can tell whether
it is the picture of the results that are there.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import table
from benchmarks.harness import RESULTS
from edutools.plots import MARKERS, PALETTE

COLUMNS = 3
MARK = "Results"  # name of the hash in the picture
Row = Mapping[str, Any]


def whiskers(sides: Sequence[Row]) -> list[list[float]]:
    """From the median down to the least and up to the largest value."""
    below = [side["median"] - side["min"] for side in sides]
    return [below, [side["max"] - side["median"] for side in sides]]


def lines(ax: Axes, rows: Sequence[Row], across: str) -> None:
    """Seconds of each side over a size, both by powers."""
    for i, name in enumerate(rows[0]["seconds"]):
        sides = [row["seconds"][name] for row in rows]
        ax.errorbar(
            [row[across] for row in rows],
            [side["median"] for side in sides],
            yerr=whiskers(sides),
            color=PALETTE[i],
            marker=MARKERS[i],
            markersize=4,
            capsize=3,
            label=name,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks([row[across] for row in rows], [str(row[across]) for row in rows])
    ax.minorticks_off()
    ax.set_xlabel({"facts": "facts", "d_in": "size of a key"}[across])
    ax.set_ylabel("seconds")
    ax.legend(frameon=False, fontsize="small")


def bars(ax: Axes, named: Mapping[str, Row], colors: int) -> None:
    """Seconds of named sides, one bar with whiskers for each; colours come round."""
    sides = list(named.values())
    ax.barh(
        list(named),
        [side["median"] for side in sides],
        xerr=whiskers(sides),
        color=[PALETTE[i % colors] for i in range(len(sides))],
        error_kw={"capsize": 3},
    )
    ax.invert_yaxis()
    ax.set_xlabel("seconds")


def sides(ax: Axes, rows: Sequence[Row]) -> None:
    """A bar per side of each row."""
    kinds = [row.get("kind") for row in rows]
    named = {
        f"{kind}, {name}" if kind else name: side
        for kind, row in zip(kinds, rows, strict=True)
        for name, side in row["seconds"].items()
    }
    bars(ax, named, len(rows[0]["seconds"]))


def parts(ax: Axes, rows: Sequence[Row]) -> None:
    """A bar per part of the work, measured once."""
    done = [row for row in rows if "seconds" in row]
    names = [f"{row.get('method') or ''} {row['phase']}".strip() for row in done]
    ax.barh(names, [row["seconds"] for row in done], color=PALETTE[0])
    ax.set_xscale("log")
    ax.tick_params("y", labelsize=6)
    ax.invert_yaxis()
    ax.set_xlabel("seconds")


def shares(ax: Axes, rows: Sequence[Row]) -> None:
    """How much of the rate of large products each work has."""
    works = [row for row in rows if "rate" in row]
    share = [row["share_of_rate"][row["dtype"]] for row in works]
    ax.barh([row["work"] for row in works], share, color=PALETTE[0])
    ax.set_xlim(0, 1)
    ax.invert_yaxis()
    ax.set_xlabel("share of products' rate")


def whole(ax: Axes, rows: Sequence[Row]) -> None:
    """A bar per goal of a build."""
    bars(ax, {f"make {row['goal']}": row["seconds"] for row in rows}, 1)


# How to draw a benchmark, by the beginning of its name.
DRAWN: dict[str, tuple[str, Callable[[Axes, Sequence[Row]], None]]] = {
    "search": ("value search", lambda ax, rows: lines(ax, rows, "facts")),
    "solve": ("closed form", lambda ax, rows: lines(ax, rows, "d_in")),
    "trace": ("causal tracing", sides),
    "moments": ("second moments", sides),
    "full_size": ("parts of an edit", parts),
    "limit": ("nearness to the limit", shares),
    "build": ("the book", whole),
}


def _kind(name: str) -> str:
    """Under which name of `DRAWN` a benchmark stands.

    Raises:
        LookupError: if nobody has said how to draw it.
    """
    for kind in DRAWN:
        if name.startswith(kind):
            return kind
    raise LookupError(
        f"There is no drawing of {name!r}; add it to benchmarks.figure.DRAWN."
    )


def _place(path: Path) -> tuple[int, str]:
    return list(DRAWN).index(_kind(path.stem)), path.name


def panel(ax: Axes, told: Mapping[str, Any]) -> None:
    """Draw one result."""
    title, draw = DRAWN[_kind(told["benchmark"])]
    draw(ax, told["rows"])
    device = told["surroundings"]["device"]
    machine = "CPU" if device == "cpu" else device
    model, _, _ = told["rows"][-1].get("model", "").partition(" (")
    ax.set_title(f"{title}\n{', '.join(filter(None, (model, machine)))}", fontsize=8)
    ax.tick_params("x", labelsize=7)


def digest(folder: Path = RESULTS) -> str:
    """A hash of all results of a folder."""
    told = hashlib.sha256()
    for path in sorted(folder.glob("*.json")):
        told.update(path.name.encode() + path.read_bytes())
    return told.hexdigest()[:16]


def draw(folder: Path = RESULTS, out: Path = table.PICTURE) -> Path | None:
    """Draw all results of a folder; None, and no file, if there are none."""
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"), key=_place)
    ]
    if not found:
        out.unlink(missing_ok=True)
        return None
    columns = min(COLUMNS, len(found))
    height = -(-len(found) // columns)
    figure, axes = plt.subplots(
        height,
        columns,
        figsize=(3.4 * columns, 2.4 * height),
        layout="constrained",
        squeeze=False,
    )
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax, told in zip(axes.flat, found, strict=False):
        panel(ax, told)
    figure.savefig(out, dpi=120, metadata={"Software": None, MARK: digest(folder)})
    plt.close(figure)
    return out


def main() -> None:
    """Draw the picture and write the page."""
    print(draw() or "There are no results, so there is no picture.")
    print(table.main())


if __name__ == "__main__":
    main()
