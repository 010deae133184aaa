"""The measured numbers as a page of the book: ``python -m benchmarks.table``.

Between two marks of `book/reference/speed.md` stands what `block` makes of the files in
`benchmarks/results`; no number there is written by hand.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT

PAGE = ROOT / "book" / "reference" / "speed.md"
PICTURE = ROOT / "book" / "_static" / "benchmarks.png"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NOTHING = "not measured"
FIGURE = """```{{figure}} ../_static/{name}
:alt: Seconds of each way of doing the work, with whiskers, for every result below.
:name: fig-speed

Everything that was measured. Whiskers reach from the quickest to the slowest repeat.
```
"""
Row = Mapping[str, Any]
Lines = Iterator[str]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: its heading.
        about: what was compared.
        results: names of result files without their ending, and what each is about.
        lines: the table's lines for the rows of one result.
    """

    title: str
    about: str
    results: Mapping[str, str]
    lines: Callable[[Sequence[Row]], Lines]


def short(x: float) -> str:
    """Three digits, or all of a large number."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def many(n: int, what: str) -> str:
    """A number of things."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def seconds(side: Row) -> str:
    """A median in seconds, with the quartiles."""
    if side["n"] == 1:
        return f"{short(side['median'])} s (once)"
    quartiles = f"{short(side['q1'])} to {short(side['q3'])}"
    return f"{short(side['median'])} s ({quartiles})"


def times(ratio: Row) -> str:
    """How many times as fast, by the medians, with the quartiles of the pairs."""
    middle = f"{short(ratio['q1'])} to {short(ratio['q3'])}"
    return f"{short(ratio['of_medians'])} ({middle})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def where(told: Mapping[str, Any]) -> str:
    """On what a result was measured, when, and at which commit."""
    around = told["surroundings"]
    if around["device"] == "cpu":
        machine = f"{around['cpu']}, {many(around['threads'], 'thread')}"
    else:
        machine = around["device"]
    versions = f"torch {around['versions']['torch']}"
    changed = "" if around["clean"] else " with changes"
    commit = f"commit `{around['commit'][:7]}`{changed}"
    return f"{machine}; {versions}; {around['time'][:10]}; {commit}"


def of_search(rows: Sequence[Row]) -> Lines:
    """Seconds by the number of facts."""
    head = ("facts", "together", "one by one", "times as fast", "values differ by")
    yield from table(
        head,
        [
            (
                str(row["facts"]),
                seconds(row["seconds"]["together"]),
                seconds(row["seconds"]["one by one"]),
                times(row["speedup"]),
                f"{row['difference']:.0e}",
            )
            for row in rows
        ],
    )
    row = rows[-1]
    yield ""
    yield (
        f"`{row['model']}`, {row['dtype']}, values at layer {row['layer']} of "
        f"{row['of']}, {row['contexts']} contexts, at most {row['steps']} steps."
    )


def of_trace(rows: Sequence[Row]) -> Lines:
    """Seconds by what is put back."""
    head = ("put back", "cells", "together", "one by one", "times as fast")
    yield from table(
        head,
        [
            (
                f"{row['kind']}, {many(row['window'], 'layer')}",
                str(row["cells"]),
                seconds(row["seconds"]["together"]),
                seconds(row["seconds"]["one by one"]),
                times(row["speedup"]),
            )
            for row in rows
        ],
    )
    row = rows[-1]
    apart = max(row["difference"] for row in rows)
    yield ""
    yield (
        f"`{row['model']}`, {row['dtype']}, {many(row['facts'], 'fact')}, "
        f"{many(row['samples'], 'sample')} of the noise; probabilities differ "
        f"by at most {apart:.0e}."
    )


def of_moments(rows: Sequence[Row]) -> Lines:
    """Seconds by the way."""
    for row in rows:
        speed = {"one pass": "1"} | {k: times(x) for k, x in row["speedup"].items()}
        head = ("way", "time", "one pass is times as fast")
        sides = row["seconds"].items()
        yield from table(head, [(k, seconds(side), speed[k]) for k, side in sides])
        yield ""
        yield (
            f"`{row['model']}`, {len(row['layers'])} layers of {row['of']}, keys of "
            f"size {row['d_in']:,}, {row['tokens']:,} tokens, {short(row['rate'])} "
            "tokens per second in one pass."
        )


def of_solve(rows: Sequence[Row]) -> Lines:
    """Seconds by the size of a key."""
    head = ("size of keys", "facts", "factor of $C$, once", "by the factor")
    head += ("dense", "dense, Cholesky", "times as fast as dense")
    sides = ("cached factor", "dense", "dense cholesky")
    yield from table(
        head,
        [
            (
                f"{row['d_in']:,}",
                str(row["facts"]),
                f"{short(row['factor_seconds'])} s",
                *[seconds(row["seconds"][side]) for side in sides],
                times(row["speedup"]["dense"]),
            )
            for row in rows
        ],
    )


def of_full_size(rows: Sequence[Row]) -> Lines:
    """Seconds and memory by the part of the work."""
    done = [row for row in rows if "seconds" in row]
    yield from table(
        ("part", "method", "time, once", "of", "most memory"),
        [
            (
                row["phase"],
                row.get("method") or "",
                f"{short(row['seconds'])} s",
                f"{row['units']:,} × {row['unit']}" if row.get("units") else "",
                memory(row),
            )
            for row in done
        ],
    )
    notes = [f"{row['phase']}: {row['note']}" for row in rows if row.get("note")]
    if notes:
        yield ""
        yield f"{'; '.join(notes)}."


def memory(row: Row) -> str:
    """What was held at most, in GB of 10⁹ bytes."""
    held = row.get("peak_bytes") or row.get("resident_bytes")
    return f"{held / 1e9:.1f} GB" if held else ""


def of_limit(rows: Sequence[Row]) -> Lines:
    """Rates against that of large products."""
    top = {row["work"]: row for row in rows}["square products"]["rates"]
    works = [row for row in rows if "rate" in row]
    yield from table(
        ("work", "model", "TFLOP/s", "share of products' rate", "where the time goes"),
        [
            (
                row["work"],
                f"{row['model']}, {row['dtype']}",
                short(row["rate"] / 1e12),
                f"{row['share_of_rate'][row['dtype']]:.0%}",
                ", ".join(
                    f"{part} {share:.0%}"
                    for part, share in row["breakdown"].items()
                    if part != "profiled"
                ),
            )
            for row in works
        ],
    )
    rates = [f"{short(x['flops'] / 1e12)} in {dtype}" for dtype, x in top.items()]
    yield ""
    yield f"Large square products, TFLOP/s: {', '.join(rates)}."


def of_build(rows: Sequence[Row]) -> Lines:
    """Minutes of a build."""
    for row in rows:
        side, minutes = row["seconds"], row["seconds"]["median"] / 60
        yield (
            f"`make {row['goal']}`: {minutes:.1f} minutes for {row['pages']} pages "
            f"(n = {side['n']})."
        )


CPU, GPU = "pocket model on a CPU", "pocket model on a GPU"
SECTIONS = (
    Section(
        "Value search",
        "All facts together, begun at the layer that is searched, against a loop over "
        "facts that calls the whole model in every step ({ref}`sec-rome-value`). Both "
        "find the same values and stop at a fact once its loss is low enough.",
        {
            "search": CPU,
            "search-cuda": GPU,
            "search_gpt-j-6b-cuda": "size of GPT-J-6B on a GPU",
        },
        of_search,
    ),
    Section(
        "Causal tracing",
        "The cells of a token together, from that token and from the lowest restored "
        "layer on, against a call of the whole model for each token and layer "
        "({ref}`sec-tracing-runs`).",
        {"trace": CPU, "trace-cuda": GPU},
        of_trace,
    ),
    Section(
        "Second moments",
        "All layers in one pass that stops at the highest, against a pass per layer.",
        {"moments": CPU, "moments-cuda": GPU},
        of_moments,
    ),
    Section(
        "The closed form",
        "A batch by the factor of $C$, which is made once per layer, against a dense "
        "system per batch ({ref}`sec-memit-closed-form`).",
        {"solve": "on a CPU", "solve-cuda": "on a GPU"},
        of_solve,
    ),
    Section(
        "Full size",
        "Every part of an edit once, on random weights of the published size.",
        {
            "full_size_gpt-j-6b-cuda": "GPT-J-6B on a GPU",
            "full_size_llama-2-7b-cuda": "Llama-2-7B on a GPU",
        },
        of_full_size,
    ),
    Section(
        "How near the machine's limit",
        "Operations per second, against those of large matrix products.",
        {"limit-cuda": "size of GPT-J-6B on a GPU"},
        of_limit,
    ),
    Section(
        "The book",
        "Every chapter run afresh, and all pages built, with an environment that is "
        "ready.",
        {"build": "on a CPU"},
        of_build,
    ),
)


def block(folder: Path = RESULTS) -> str:
    """What stands between the marks, from the results in a folder."""
    parts = []
    if any(folder.glob("*.json")):
        parts.append(FIGURE.format(name=PICTURE.name))
    for section in SECTIONS:
        parts.append(f"## {section.title}\n\n{section.about}\n")
        for name, about in section.results.items():
            path = folder / f"{name}.json"
            if not path.is_file():
                parts.append(f"**{about[0].upper()}{about[1:]}**: {NOTHING}.\n")
                continue
            told = json.loads(path.read_text(encoding="utf-8"))
            lines = "\n".join(section.lines(told["rows"]))
            head = f"**{about[0].upper()}{about[1:]}** ({where(told)})"
            parts.append(f"{head}\n\n{lines}\n")
    return "\n".join(parts)


def renewed(page: str, folder: Path = RESULTS) -> str:
    """The page with its block made from the results."""
    return between(page, BEGIN, END, block(folder))


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with this text between two of its lines.

    Raises:
        ValueError: if a line is not there.
    """
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"The page needs the lines {begin!r} and {end!r}.")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def main() -> Path:
    """Write the block into the page."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return PAGE


if __name__ == "__main__":
    print(main())
