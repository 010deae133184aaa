"""The language of the studies' figures: a colour for each method, bands, and grids."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edutools.plots import MARKERS, PALETTE
from edutools.studies import summary

MARK = "Results"  # name of the hash in a picture
COLUMNS = 4  # as many panels as a page has room for
WIDE = 10  # a value that grows so many times is drawn by powers
NAMES = {
    "efficacy": "efficacy (ES)",
    "paraphrase": "paraphrase (PS)",
    "neighborhood": "neighborhood (NS)",
    "score": "score (S)",
    "efficacy_top1": "top-1, last 32 edits",
    "first_efficacy_top1": "top-1, first 32 edits",
    "untouched_top1": "top-1, other facts",
    "free_generation": "free writing",
    "probability": "P(target)",
    "perplexity": "perplexity",
    "norm": "norm of the change",
}
RATES = frozenset(NAMES) - {"perplexity", "norm"}  # between 0 and 1
ORDER = ("MEMIT", "EMMET", "AlphaEdit", "FT-L", "MEND", "ROME", "ENCORE")
Row = Mapping[str, Any]
Rows = Sequence[Row]
Results = Mapping[str, Rows]  # by model


def style(name: str, names: Sequence[str] = ORDER) -> dict[str, Any]:
    """How a line is drawn: the colour and marker of its method, dashed if varied."""
    root, _, varied = (name, "", "") if name in names else name.partition(",")
    at = names.index(root) if root in names else len(names)
    return {
        "color": PALETTE[at % len(PALETTE)],
        "marker": MARKERS[at % len(MARKERS)],
        "linestyle": "--" if varied else "-",
        "markersize": 3.5,
        "linewidth": 1.3,
    }


def line(ax: Axes, rows: Rows, *, x: str, value: str, **how: Any) -> None:
    """One mean over a size, with its band."""
    found = sorted(summary([*rows], by=[x], value=value), key=lambda row: row[x])
    places = [row[x] for row in found]
    ax.plot(places, [row["mean"] for row in found], **how)
    low, high = ([row[end] for row in found] for end in ("low", "high"))
    ax.fill_between(places, low, high, color=how["color"], alpha=0.18, lw=0)


def panel(
    ax: Axes,
    rows: Rows,
    *,
    x: str,
    value: str,
    by: str = "method",
    names: Sequence[str] = ORDER,
) -> None:
    """A line for each method, over a size on a logarithmic axis."""
    for name in dict.fromkeys(row[by] for row in rows):
        part = [row for row in rows if row[by] == name]
        if any(row.get(value) is not None for row in part):
            how = style(name, names)
            line(ax, part, x=x, value=value, label=name, **how)
    dress(ax, value)


def dress(ax: Axes, value: str, *, log: bool = True, sideways: bool = False) -> None:
    """Axes as all figures have them."""
    if log:
        ax.set_xscale("log")
    if sideways and value in RATES:
        ax.set_xlim(-0.03, 1.05)
    elif sideways:
        ax.set_xscale("log")
    elif value in RATES:
        ax.set_ylim(-0.03, 1.05)
    else:
        lines = [drawn for drawn in ax.get_lines() if len({*drawn.get_xdata()}) > 1]
        heights = [y for drawn in lines for y in drawn.get_ydata()]
        if heights and max(heights) > WIDE * min(heights) > 0:
            ax.set_yscale("log")
    ax.minorticks_off()
    ax.grid(color="#e5e5e5", lw=0.6)
    ax.set_axisbelow(True)
    ax.set_title(NAMES.get(value, value), fontsize=9)
    ax.tick_params(labelsize=7)


def sheet(height: int, width: int, *, size: tuple[float, float] = (2.1, 1.75)):
    """A figure with a grid of axes of one size each."""
    figsize = (size[0] * width, size[1] * height + 0.35)
    return plt.subplots(
        height, width, figsize=figsize, layout="constrained", squeeze=False
    )


def legend(figure: Figure, axes: Sequence[Axes], **how: Any) -> None:
    """One legend above all panels."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= {
            la: h for h, la in zip(handles, labels, strict=True) if la not in found
        }
    room = max(1, int(figure.get_figwidth() / 1.45))
    options = {"ncols": min(room, len(found)), "fontsize": 8} | how
    figure.legend(
        found.values(), found, loc="outside upper center", frameon=False, **options
    )


def grid(
    results: Results,
    values: Sequence[str],
    *,
    x: str,
    across: str,
    draw: Callable[[Axes, Rows, str, str], None] | None = None,
) -> Figure:
    """For each model some rows of panels, one panel for each value."""
    width = next((w for w in (4, 3) if len(values) % w == 0), COLUMNS)
    high = -(-len(values) // width)  # rows for each model
    figure, axes = sheet(high * len(results), width)
    for i, (model, rows) in enumerate(results.items()):
        own = axes[i * high : (i + 1) * high]
        for ax, value in zip(own.flat, values, strict=False):
            if draw is None:
                panel(ax, rows, x=x, value=value)
            else:
                draw(ax, rows, value, model)
            ax.set_xlabel(across, fontsize=8)
        for ax in own.flat[len(values) :]:
            ax.set_axis_off()
        for row in own:
            row[0].set_ylabel(model, fontsize=8)
    legend(figure, list(axes.flat))
    return figure


def dots(
    ax: Axes, rows: Rows, *, at: str, value: str, places: Sequence[Any], **how: Any
) -> None:
    """A mean with its interval for each of some settings, one above the other."""
    found = {row[at]: row for row in summary([*rows], by=[at], value=value)}
    kept = [(i, found[place]) for i, place in enumerate(places) if place in found]
    means = [row["mean"] for _, row in kept]
    reach = [[r["mean"] - r["low"] for _, r in kept]]
    reach += [[r["high"] - r["mean"] for _, r in kept]]
    options = {"fmt": how.pop("marker", "o"), "capsize": 2, "markersize": 4} | how
    shift = options.pop("shift", 0.0)
    ax.errorbar(means, [i + shift for i, _ in kept], xerr=reach, **options)


def few_colors(picture: Image.Image) -> Image.Image:
    """The same with 256 colours, those of the palette among them: a small file."""
    exact = [tuple(round(255 * x) for x in to_rgb(c)) for c in ("white", *PALETTE)]
    found = picture.quantize(256 - len(exact)).getpalette() or []
    others = [tuple(found[i : i + 3]) for i in range(0, len(found), 3)]
    kept = [
        color
        for color in others[: 256 - len(exact)]
        if min(max(abs(a - b) for a, b in zip(color, e, strict=True)) for e in exact)
        > 8
    ]
    table = Image.new("P", (1, 1))
    table.putpalette([part for color in (*exact, *kept) for part in color])
    return picture.quantize(palette=table, dither=Image.Dither.NONE)


def save(figure: Figure, out: Path, mark: str) -> None:
    """Write a picture with few colours on white, and close the figure."""
    drawn, about = io.BytesIO(), PngInfo()
    about.add_text(MARK, mark)
    figure.savefig(drawn, dpi=110, facecolor="white")
    plt.close(figure)
    picture = few_colors(Image.open(drawn).convert("RGB"))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out, optimize=True, pnginfo=about)
