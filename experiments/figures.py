"""The figures of the studies, drawn from results: ``python -m experiments.figures``.

A method has the same colour and marker in every figure. Lines are means over seeds,
bands their 95 % intervals. A picture carries a hash of the results that it shows, so
that a test can tell whether it is the picture of those that are there.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edutools.pocket import POCKET_MODELS
from edutools.settings import presets
from edutools.studies import points
from experiments.drawing import (
    ORDER,
    Results,
    Rows,
    dots,
    dress,
    grid,
    legend,
    line,
    panel,
    save,
    sheet,
    style,
)
from experiments.study import RESULTS

PICTURES = Path(__file__).resolve().parent.parent / "book" / "_static" / "studies"


BATCH = ("efficacy", "paraphrase", "neighborhood", "score")
BATCH += ("free_generation", "untouched_top1", "perplexity")


def batch_size(results: Results) -> Iterator[tuple[str, Figure]]:
    """Everything that was measured over the size of a batch."""
    yield "batch_size", grid(results, BATCH, x="n", across="facts in the batch")


MEMIT_LAMS = (15_000, 20_000)
EMMET_LAMS = (0.1, 100, 1_000, 10_000)  # ridge 0.1 by weight 1, 1e3, 1e4, 1e5


def lam(results: Results) -> Iterator[tuple[str, Figure]]:
    """MEMIT and EMMET over λ; released settings and the model's preset are marked."""

    def draw(ax: Axes, rows: Rows, value: str, model: str) -> None:
        preset = presets()["MEMIT"][model]["lam"]
        ax.axvline(preset, color="#cccccc", lw=4, label="preset", zorder=0)
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
    values = ("efficacy", "score", "untouched_top1", "perplexity")
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


def by_layer(rows: Rows, names: Sequence[str]) -> list[dict[str, Any]]:
    """Lists over layers as rows: for each seed and layer the mean over facts."""
    seeds: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row)
    return [
        {"seed": seed, "layer": layer}
        | {
            name: sum(row[name][layer] for row in part) / len(part)
            for name in names
            if layer < len(part[0][name])
        }
        for seed, part in seeds.items()
        for layer in range(max(len(part[0][name]) for name in names))
    ]


TRACED = {"mlp": "restoring MLPs", "hidden": "restoring the state"}
EDITED = {"score": "score (S)", "paraphrase": "PS", "probability": "P(target)"}


def where(results: Results) -> Iterator[tuple[str, Figure]]:
    """What tracing says of each layer, and what an edit at it does."""
    figure, axes = sheet(len(results), 2, size=(3.4, 1.9))
    labels = [*TRACED.values(), *EDITED.values()]
    for own, (model, rows) in zip(axes, results.items(), strict=True):
        flat = by_layer(rows, [*TRACED, *EDITED])
        for ax, names in zip(own, (TRACED, EDITED), strict=True):
            for name, label in names.items():
                how = style(label, labels)
                part = [row for row in flat if name in row]
                line(ax, part, x="layer", value=name, label=label, **how)
            title = "effect on the answer" if names is TRACED else "ROME at this layer"
            dress(ax, "score", log=False)
            ax.set_title(f"{model}\n{title}", fontsize=8)
            ax.set_xlabel("layer", fontsize=8)
    legend(figure, list(axes.flat))
    yield "where", figure


def stabilize(results: Results) -> Iterator[tuple[str, Figure]]:
    """The condition of D over the size of a batch, and what cures do."""
    figure, axes = sheet(len(results), 4, size=(2.3, 2.3))
    for own, (model, rows) in zip(axes, results.items(), strict=True):
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        cures = list(dict.fromkeys(row["cure"] for row in rows if "cure" in row))
        for kind in kinds:
            part = [row for row in rows if row["kind"] == kind]
            how = style(kind, kinds)
            sizes = [row for row in part if "cure" not in row]
            if any(row.get("log10_condition") is not None for row in sizes):
                line(own[0], sizes, x="n", value="log10_condition", **how)
            cured = [row for row in part if "cure" in row]
            shift = 0.15 * (kinds.index(kind) - len(kinds) / 2)
            look = {"color": how["color"], "marker": how["marker"], "ls": ""}
            for ax, value in zip(own[1:], CURED, strict=True):
                if any(row.get(value) is not None for row in cured):
                    place = {"at": "cure", "places": cures, "shift": shift}
                    dots(ax, cured, value=value, label=kind, **place, **look)
        dress(own[0], "log10 of the condition of D")
        own[0].set_yscale("linear")
        own[0].set_ylabel(model, fontsize=8)
        own[0].set_xlabel("facts in the batch", fontsize=8)
        for ax, value in zip(own[1:], CURED, strict=True):
            dress(ax, value, log=False, sideways=True)
            shown = cures if ax is own[1] else [""] * len(cures)
            ax.set_yticks(range(len(cures)), shown)
            ax.set_ylim(len(cures) - 0.5, -0.5)
    legend(figure, list(axes.flat))
    yield "stabilize", figure


CURED = ("efficacy", "neighborhood", "norm")


def statistics(results: Results) -> Iterator[tuple[str, Figure]]:
    """Scores over the number of tokens behind C; at the left edge, C = I."""
    values = ("efficacy", "paraphrase", "neighborhood", "score")

    def draw(ax: Axes, rows: Rows, value: str, model: str) -> None:
        measured = [row for row in rows if row["covariance"] == "moments"]
        panel(ax, measured, x="times", value=value)
        least = min(row["times"] for row in measured) / 10
        for name in dict.fromkeys(row["method"] for row in rows):
            part = [row for row in rows if row["method"] == name and not row["times"]]
            if any(row.get(value) is not None for row in part):
                how = style(name) | {"linestyle": "", "markerfacecolor": "none"}
                how |= {"marker": "X", "markersize": 5} if "," in name else {}
                there = [{**row, "times": least} for row in part]
                line(ax, there, x="times", value=value, label=f"{name}, C = I", **how)

    yield (
        "statistics",
        grid(results, values, x="times", across="tokens by size of key", draw=draw),
    )


TOLD = {"efficacy": "ES", "paraphrase": "PS", "neighborhood": "NS"}
TOLD |= {"probability": "P(target)", "known_probability": "P(answer known)"}


def choices(results: Results) -> Iterator[tuple[str, Figure]]:
    """What each choice inside ROME does, one setting below the other."""
    told = {
        model: [{**row, "setting": f"{row['choice']} {row['value']}"} for row in rows]
        for model, rows in results.items()
    }
    places = list(
        dict.fromkeys(row["setting"] for part in told.values() for row in part)
    )
    values = ("efficacy", "paraphrase", "neighborhood", "probability")
    size = (2.0, 0.17 * len(places) + 0.5)
    figure, axes = sheet(1, len(values), size=size)
    for ax, value in zip(axes[0], values, strict=True):
        for i, (model, rows) in enumerate(told.items()):
            how = style(model, [*told])
            look = {"color": how["color"], "marker": how["marker"], "ls": ""}
            shift = 0.24 * (i - (len(told) - 1) / 2)
            place = {"at": "setting", "places": places, "shift": shift}
            dots(ax, rows, value=value, label=model, **place, **look)
        dress(ax, value, log=False, sideways=True)
        ax.set_yticks(
            range(len(places)), places if ax is axes[0, 0] else [""] * len(places)
        )
        ax.set_ylim(len(places) - 0.5, -0.5)
    legend(figure, list(axes.flat))
    yield "choices", figure


def conventions(results: Results) -> Iterator[tuple[str, Figure]]:
    """The score of each method under each convention."""
    figure, axes = sheet(1, len(results), size=(4.2, 2.6))
    for ax, (model, rows) in zip(axes[0], results.items(), strict=True):
        flat = [row for row in points(rows) if row["method"] != "unedited"]
        places = list(dict.fromkeys(row["convention"] for row in flat))
        methods = list(dict.fromkeys(row["method"] for row in flat))
        for i, method in enumerate(methods):
            how = style(method, [*ORDER, "p-ROME"])
            look = {"color": how["color"], "marker": how["marker"], "ls": ""}
            look |= {"mfc": "none"} if method not in ORDER else {}
            place = {"at": "convention", "places": places}
            place |= {"shift": 0.09 * (i - (len(methods) - 1) / 2)}
            part = [row for row in flat if row["method"] == method]
            dots(ax, part, value="score", label=method, **place, **look)
        dress(ax, "score", log=False, sideways=True)
        ax.set_title(model, fontsize=9)
        ax.set_xlabel("score (S)", fontsize=8)
        ax.set_yticks(
            range(len(places)), places if ax is axes[0, 0] else [""] * len(places)
        )
        ax.set_ylim(len(places) - 0.5, -0.5)
    legend(figure, list(axes.flat))
    yield "conventions", figure


DRAWN: dict[str, Callable[[Results], Iterator[tuple[str, Figure]]]] = {
    "batch_size": batch_size,
    "lam": lam,
    "distribution": distribution,
    "sequential": sequential,
    "where": where,
    "stabilize": stabilize,
    "statistics": statistics,
    "choices": choices,
    "conventions": conventions,
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
