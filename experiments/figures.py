"""The figures of the studies, drawn from results: ``python -m experiments.figures``.

A method has the same colour and marker in every figure. Lines are means over seeds,
bands their 95 % intervals. A picture carries a hash of the results that it shows, so
that a test can tell whether it is the picture of those that are there.
"""

import argparse
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edutools.plots import MARKERS, PALETTE
from edutools.pocket import POCKET_MODELS
from edutools.studies import points, summary
from experiments.study import RESULTS

PICTURES = Path(__file__).resolve().parent.parent / "book" / "_static" / "studies"
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


def dress(ax: Axes, value: str) -> None:
    """Axes as all figures have them."""
    ax.set_xscale("log")
    if value in RATES:
        ax.set_ylim(-0.03, 1.05)
    elif ax.dataLim.y0 > 0 and ax.dataLim.y1 > WIDE * ax.dataLim.y0:
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
    options = {"ncols": min(7, len(found)), "fontsize": 8} | how
    figure.legend(
        found.values(), found, loc="outside upper center", frameon=False, **options
    )


def grid(
    results: Results,
    values: Sequence[str],
    *,
    x: str,
    across: str,
    draw: Callable[[Axes, Rows, str], None] | None = None,
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
                draw(ax, rows, value)
            ax.set_xlabel(across, fontsize=8)
        for ax in own.flat[len(values) :]:
            ax.set_axis_off()
        for row in own:
            row[0].set_ylabel(model, fontsize=8)
    legend(figure, list(axes.flat))
    return figure


BATCH = ("efficacy", "paraphrase", "neighborhood", "score")
BATCH += ("free_generation", "untouched_top1", "perplexity")


def batch_size(results: Results) -> Iterator[tuple[str, Figure]]:
    """Everything that was measured over the size of a batch."""
    yield "batch_size", grid(results, BATCH, x="n", across="facts in the batch")


MEMIT_LAMS = (15_000, 20_000)
EMMET_LAMS = (0.1, 100, 1_000, 10_000)  # ridge 0.1 by weight 1, 1e3, 1e4, 1e5


def lam(results: Results) -> Iterator[tuple[str, Figure]]:
    """MEMIT and EMMET over λ; released settings are marked."""

    def draw(ax: Axes, rows: Rows, value: str) -> None:
        for lams, method in ((MEMIT_LAMS, "MEMIT"), (EMMET_LAMS, "EMMET")):
            for i, at in enumerate(lams):
                label = None if i else f"released {method}"
                color = style(method)["color"]
                ax.axvline(at, color=color, ls=":", lw=1.1, label=label)
        for method in ("MEMIT", "EMMET"):
            part = [row for row in rows if row["method"] == method]
            how = style(method)
            if method == "EMMET":
                how |= {"linestyle": "", "markerfacecolor": "none", "markersize": 6}
            label = {"MEMIT": "MEMIT, λ", "EMMET": "EMMET, ridge × weight"}[method]
            line(ax, part, x="lam", value=value, label=label, **how)
        dress(ax, value)

    values = ("efficacy", "paraphrase", "neighborhood", "score", "perplexity", "norm")
    yield "lam", grid(results, values, x="lam", across="λ", draw=draw)


KINDS = {"one": "one layer", "even": "three, evenly", "sqrt": "three, square root"}
KINDS |= {"ends": "first and last of three"}


def distribution(results: Results) -> Iterator[tuple[str, Figure]]:
    """Scores and perplexities of each method, a line for each distribution."""
    values = ("score", "paraphrase", "neighborhood", "perplexity")
    for model, rows in results.items():
        methods = list(dict.fromkeys(row["method"] for row in rows))
        figure, axes = sheet(len(methods), len(values))
        for line_of, method in zip(axes, methods, strict=True):
            part = [
                {**row, "kind": KINDS[row["distribution"]]}
                for row in rows
                if row["method"] == method
            ]
            for ax, value in zip(line_of, values, strict=True):
                names = list(KINDS.values())
                panel(ax, part, x="n", value=value, by="kind", names=names)
            line_of[0].set_ylabel(method, fontsize=8)
        for ax in axes[-1]:
            ax.set_xlabel("facts in the batch", fontsize=8)
        legend(figure, list(axes.flat), title=model, title_fontsize=9)
        yield f"distribution-{model}", figure


TURNS = ("efficacy_top1", "first_efficacy_top1", "untouched_top1")
TURNS += ("perplexity", "norm")


def sequential(results: Results) -> Iterator[tuple[str, Figure]]:
    """What was measured over the number of edits: one by one, and in batches."""
    flat = {model: points(rows) for model, rows in results.items()}
    for name, batches in (("sequential", (1,)), ("sequential_batches", (16, 100))):
        chosen = {
            model if batch == 1 else f"{model},\nbatches of {batch}": part
            for model, rows in flat.items()
            for batch in batches
            if (part := [row for row in rows if row["batch"] == batch])
        }
        if chosen:
            yield name, grid(chosen, TURNS, x="edits", across="edits so far")


DRAWN: dict[str, Callable[[Results], Iterator[tuple[str, Figure]]]] = {
    "batch_size": batch_size,
    "lam": lam,
    "distribution": distribution,
    "sequential": sequential,
}


def files(study: str, folder: Path = RESULTS) -> dict[str, Path]:
    """The results of a study by model, in the order of the models."""
    paths = {model: folder / f"{study}-{model}.json" for model in POCKET_MODELS}
    return {model: path for model, path in paths.items() if path.is_file()}


def digest(study: str, folder: Path = RESULTS) -> str:
    """A hash of all rows that a study's pictures show."""
    told = hashlib.sha256()
    for model, path in files(study, folder).items():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        told.update(f"{model}{json.dumps(rows)}".encode())
    return told.hexdigest()[:16]


def few_colors(picture: Image.Image) -> Image.Image:
    """The same with 256 colours, those of the palette among them: a small file."""
    colors = picture.quantize(256 - len(PALETTE)).getpalette() or []
    exact = [round(255 * part) for color in PALETTE for part in to_rgb(color)]
    table = Image.new("P", (1, 1))
    table.putpalette(colors[: 3 * (256 - len(PALETTE))] + exact)
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


def draw(study: str, folder: Path = RESULTS, out: Path = PICTURES) -> list[Path]:
    """Draw a study's pictures; none if there are no results."""
    found = {
        model: json.loads(path.read_text(encoding="utf-8"))["rows"]
        for model, path in files(study, folder).items()
    }
    paths = []
    for name, figure in DRAWN[study](found) if found else ():
        paths.append(out / f"{name}.png")
        save(figure, paths[-1], digest(study, folder))
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(DRAWN)}")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of results")
    parser.add_argument("--out", type=Path, default=PICTURES, help="for pictures")
    given = parser.parse_args(argv)
    unknown = sorted(set(given.studies) - set(DRAWN))
    if unknown:
        parser.error(f"no figures of {unknown}; there are those of {', '.join(DRAWN)}")
    for study in given.studies or DRAWN:
        for path in draw(study, given.folder, given.out):
            print(path)


if __name__ == "__main__":
    main()
