"""The page "Reproduce", from what was measured: ``python -m experiments.table``.

Between two marks of `book/reference/reproduce.md` stands what `block` makes of the
results in `experiments/`, of what is kept of the trainings, and of plans for large
models; no number there is written by hand.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edutools as edu
from benchmarks.table import between, many, table
from edutools.outline import outline
from edutools.plancli import describe_plan
from edutools.planning import Scale, plan
from edutools.pocket import POCKET_MODELS
from edutools.studies import points, summary
from experiments.drawing import NAMES
from experiments.figures import by_layer
from experiments.study import RESULTS

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "book" / "reference" / "reproduce.md"
BEGIN, END = "<!-- expected: begin -->", "<!-- expected: end -->"
NOTHING = "not measured"
LABELS = NAMES | {
    "log10_condition": "log10 of the condition",
    "mlp": "effect of MLPs",
    "hidden": "effect of the state",
}
LARGE = {  # whose plans are shown: as on the Hub, and methods
    "EleutherAI/gpt-j-6b": (edu.ROME, edu.MEMIT, edu.EMMET),
    "meta-llama/Llama-2-7b-hf": (edu.ROME, edu.MEMIT, edu.EMMET),
}
FACTS = {"ROME": 1, "MEMIT": 1000, "EMMET": 256}  # in a batch
Row = Mapping[str, Any]
Rows = Sequence[Row]
Lines = Iterator[str]


def number(found: Row | None) -> str:
    """A mean over seeds with half of its interval; nothing where there is none."""
    if found is None:
        return ""
    half = found["high"] - found["mean"]
    digits = 3 if abs(found["mean"]) < 10 else 1
    if not math.isfinite(found["mean"]) or abs(found["mean"]) >= 1e5:
        return f"{found['mean']:.0e}"
    mean = f"{found['mean']:.{digits}f}"
    return mean if math.isnan(half) else f"{mean} ± {half:.{digits}f}"


def pivot(rows: Rows, *, down: str, across: str, value: str) -> Lines:
    """Means of a value: lines for one setting, columns for another."""
    found = summary([*rows], by=[down, across], value=value)
    cells = {(row[down], row[across]): row for row in found}
    columns = list(dict.fromkeys(row[across] for row in rows))
    lines = list(dict.fromkeys(row[down] for row in rows))
    head = (f"{LABELS.get(value, value)}; {down} / {across}", *map(plain, columns))
    body = [
        [plain(at), *[number(cells.get((at, column))) for column in columns]]
        for at in lines
    ]
    yield from table(head, body)


def listed(rows: Rows, *, down: str, values: Sequence[str]) -> Lines:
    """Means of several values: a line for each of a setting."""
    found = {
        v: {r[down]: r for r in summary([*rows], by=[down], value=v)} for v in values
    }
    lines = dict.fromkeys(row[down] for row in rows)
    body = [[plain(at), *[number(found[v].get(at)) for v in values]] for at in lines]
    yield from table((down, *[LABELS.get(value, value) for value in values]), body)


def _joined(rows: Rows, name: str) -> list[dict[str, Any]]:
    """Rows of one seed and setting as one row."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        found.setdefault((row[name], row["seed"]), {}).update(row)
    return list(found.values())


def plain(value: Any) -> str:
    """A setting as a table shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def of_batch_size(rows: Rows) -> Lines:
    """Score and what else the model knows, over the size."""
    for value in ("score", "untouched_top1"):
        yield from pivot(rows, down="method", across="n", value=value)
        yield ""


def of_lam(rows: Rows) -> Lines:
    """Both methods over λ."""
    names = {"score": "S", "norm": "norm"}
    flat = [
        {"λ": row["lam"], "seed": row["seed"]}
        | {f"{short}, {row['method']}": row[name] for name, short in names.items()}
        for row in rows
    ]
    both = [
        f"{short}, {name}" for short in names.values() for name in ("MEMIT", "EMMET")
    ]
    yield from listed(_joined(flat, "λ"), down="λ", values=both)


def of_distribution(rows: Rows) -> Lines:
    """Scores of the largest batch."""
    largest = max(row["n"] for row in rows)
    yield f"Of {largest} facts:"
    yield ""
    part = [row for row in rows if row["n"] == largest]
    yield from pivot(part, down="method", across="distribution", value="score")


def of_sequential(rows: Rows) -> Lines:
    """Edits one by one, at two points."""
    alone = [row for row in points(rows) if row["batch"] == 1]
    values = ("efficacy_top1", "first_efficacy_top1", "untouched_top1", "perplexity")
    there = {row["edits"] for row in alone}
    for edits in sorted({100, max(there)} & there):
        yield f"After {edits} edits, one by one:"
        yield ""
        part = [row for row in alone if row["edits"] == edits]
        yield from listed(part, down="method", values=values)
        yield ""


def of_where(rows: Rows) -> Lines:
    """What tracing says of each layer, and what ROME at it does."""
    names = ("mlp", "hidden", "efficacy", "paraphrase", "neighborhood", "score")
    yield from listed(by_layer(rows, names), down="layer", values=names)


def of_stabilize(rows: Rows) -> Lines:
    """Conditions over the size, and what each cure does."""
    sizes = [row for row in rows if "cure" not in row]
    yield from pivot(sizes, down="kind", across="n", value="log10_condition")
    yield ""
    cured = [row for row in rows if "cure" in row]
    for value in ("efficacy", "norm"):
        yield from pivot(cured, down="kind", across="cure", value=value)
        yield ""


def of_statistics(rows: Rows) -> Lines:
    """Scores over the number of tokens by the size of a key; 0 is C = I."""
    yield from pivot(rows, down="method", across="times", value="score")


def of_choices(rows: Rows) -> Lines:
    """What each setting of each choice does."""
    told = [{**row, "choice": f"{row['choice']} {row['value']}"} for row in rows]
    values = ("efficacy", "paraphrase", "neighborhood", "probability")
    yield from listed(told, down="choice", values=values)


def of_conventions(rows: Rows) -> Lines:
    """The score of each method under each convention."""
    yield from pivot(points(rows), down="method", across="convention", value="score")


@dataclass(frozen=True)
class Expected:
    """What a study should give.

    Args:
        title: a heading.
        about: what it asks.
        lines: tables for the rows of one model.
    """

    title: str
    about: str
    lines: Callable[[Rows], Lines]


STUDIES = {
    "batch_size": Expected(
        "Batch size", "How many facts can be written at once.", of_batch_size
    ),
    "lam": Expected("The axis of λ", "MEMIT and EMMET for the same λ.", of_lam),
    "distribution": Expected(
        "Distribution",
        "One layer or several, and who writes how much.",
        of_distribution,
    ),
    "stabilize": Expected(
        "Keys that are alike", "The condition of D, and what helps.", of_stabilize
    ),
    "statistics": Expected("Second moments", "How many tokens C needs.", of_statistics),
    "where": Expected(
        "Where to edit", "What tracing finds, and where edits work.", of_where
    ),
    "choices": Expected("Choices inside ROME", "One changed at a time.", of_choices),
    "conventions": Expected(
        "Conventions", "The same edits, counted in different ways.", of_conventions
    ),
    "sequential": Expected(
        "Edits in turn", "One edit after the other, on the same model.", of_sequential
    ),
}


def spent(told: Row) -> str:
    """How long a study took, as its rows tell it."""
    seconds = [row["seconds"] for row in told["rows"] if "seconds" in row]
    if len(seconds) < len(told["rows"]):
        return "time not recorded"
    around = told.get("machine", {})
    where = f"{around.get('cpu', '')}, {many(around.get('threads', 1), 'thread')}"
    return f"{sum(seconds) / 60:.1f} minutes on {where}"


def of_studies(folder: Path) -> Lines:
    """A section for each study."""
    for name, expected in STUDIES.items():
        yield f"### {expected.title}"
        yield ""
        yield expected.about
        yield ""
        for model in POCKET_MODELS:
            path = folder / f"{name}-{model}.json"
            if not path.is_file():
                continue
            told = json.loads(path.read_text(encoding="utf-8"))
            seeds = len({row["seed"] for row in told["rows"]})
            yield f"`python -m experiments.{name} --model {model}`"
            commit = told["provenance"]["commit"][:7]
            yield f": {many(seeds, 'seed')}, {spent(told)}; commit `{commit}`"
            yield ""
            yield from expected.lines(told["rows"])
            yield ""
        if not any(folder.glob(f"{name}-*.json")):
            yield f"`python -m experiments.{name}`"
            yield f": {NOTHING}"
            yield ""


def rate(found: Row) -> str:
    """A share of cases in percent, with its interval."""
    low, mean, high = (f"{100 * found[k]:.1f}" for k in ("low", "mean", "high"))
    return f"{mean} [{low}, {high}]"


def of_pocket() -> Lines:
    """What the shipped models reach, and how long they were trained."""
    measured = json.loads((HERE / "pocket.json").read_text(encoding="utf-8"))
    body = []
    for name in POCKET_MODELS:
        path = edu.pocket(name) / "training.json"
        training, told = json.loads(path.read_text()), measured[name]
        threads = many(training["threads"], "thread")
        rates = [told["rome"][x] for x in ("efficacy", "paraphrase", "neighborhood")]
        body.append(
            [
                f"`{name}`",
                f"{training['minutes']:.0f} minutes, {threads}",
                rate(told["accuracy"]["held_out"]),
                *[rate(found) for found in rates],
            ]
        )
    head = ("model", "training", "first choice, wordings never seen, %")
    yield from table((*head, "ROME: ES, %", "PS, %", "NS, %"), body)


def of_mend() -> Lines:
    """What the shipped networks reach on subjects that no training has seen."""
    measured = json.loads((HERE / "mend.json").read_text(encoding="utf-8"))
    body = [
        [f"`{name}`", str(told["together"])]
        + [rate(told[x]) for x in ("efficacy", "paraphrase", "neighborhood")]
        for name in POCKET_MODELS
        for told in measured[name]["edits"]
    ]
    yield from table(("model", "facts at once", "ES, %", "PS, %", "NS, %"), body)


def of_plans() -> Lines:
    """Commands for large models with what `edutools plan` prints for them."""
    for model, kinds in LARGE.items():
        name = model.split("/")[-1]
        yield f"### {name}"
        yield ""
        for kind in kinds:
            method, facts = kind.preset(_preset(model)), FACTS[kind.__name__]
            ask = f"--method {kind.__name__.lower()} --facts {facts}"
            yield "```console"
            yield f"$ edutools plan --model {model} --dtype float32 {ask}"
            found = plan(
                outline(model, dtype="float32"), method=method, scale=Scale(facts=facts)
            )
            yield describe_plan(found)
            yield "```"
            yield ""


def _preset(model: str) -> str:
    return model.split("/")[-1].lower().removesuffix("-hf")


def block(folder: Path = RESULTS) -> str:
    """What stands between the marks."""
    parts = {
        "(sec-reproduce-pocket)=\n## The pocket models": of_pocket(),
        "(sec-reproduce-mend)=\n## MEND": of_mend(),
        "(sec-reproduce-studies)=\n## The studies": of_studies(folder),
        "(sec-reproduce-large)=\n## GPT-J and Llama 2": of_plans(),
    }
    text = "\n".join(
        f"{head}\n\n{TOLD[head.split('## ')[1]]}\n\n{chr(10).join(lines)}\n"
        for head, lines in parts.items()
    )
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


TOLD = {
    "The pocket models": """\
```console
$ python -m scripts.train_pocket gptj-organism     # trains from nothing
$ python -m scripts.finish_pocket gptj-organism    # model card and second moment
$ python -m experiments.pocket gptj-organism       # measures it
```

Likewise `gptj` and `llama`. The training goes on after an interruption. On other
hardware weights differ in their last bits, and then, after thousands of steps, in all;
the rates should lie in these intervals (95 %, over facts).""",
    "MEND": """\
```console
$ python -m scripts.train_mend gptj-organism
$ python -m experiments.mend gptj-organism
```

On one shared core, 20 to 40 minutes for a model, by the core's speed
(`experiments/methods.md`). Subjects are those that no training has seen; intervals are
over facts.""",
    "The studies": """\
Each number is a mean over seeds, which draw other facts, with half of its 95 % interval
by Student's t. On the same versions the same numbers should come out to about three
digits; with other versions of torch a few cases may tip over. Times are by the
clock, on a machine that had other work, too.""",
    "GPT-J and Llama 2": """\
The studies take any model that `edutools.load` takes. What they need is measured first,
once per model:

```console
$ edutools moments --model EleutherAI/gpt-j-6b --layers 3-8 --tokens "10*d" \\
    --texts hub:wikimedia/wikipedia --out gpt-j-moments
$ python -m experiments.batch_size --model EleutherAI/gpt-j-6b \\
    --data counterfact.json --moments gpt-j-moments --texts wikipedia.txt
$ python -m experiments.lam --model meta-llama/Llama-2-7b-hf \\
    --data zsre_mend_eval.json --moments llama-moments --texts wikipedia.txt
```

The weights of Llama 2 are given out by Meta on request. A method without settings for a
model, and MEND without `--mend FOLDER`, are left out, and a line says so. What an edit
will need is told beforehand; times stand in the last column once `benchmarks/gpu.sh`
has measured them ({ref}`sec-speed`).""",
}


def renewed(page: str, folder: Path = RESULTS) -> str:
    """The page with its block made anew."""
    return between(page, BEGIN, END, block(folder))


def main() -> None:
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
