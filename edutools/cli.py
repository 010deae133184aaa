"""The command line: each command loads, calls the public function, saves and prints.

Results go to the standard output, everything else to the standard error.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import edutools as edu
from edutools import options, tables
from edutools.moments import SecondMoment, load_moments, save_moments
from edutools.pocket import chosen
from edutools.records import Loaded, load_cases, load_zsre
from edutools.report import Report
from edutools.shell import Commands
from edutools.texts import read_texts

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app()


def _flag(name: str, *, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, **more)


SUBJECT = _flag("--subject", text="Whom the fact is about.")
PROMPT = _flag("--prompt", text="The sentence up to the answer, {} for the subject.")
MODEL = _flag(
    "--model",
    text="A pocket model, a folder, or an id on the Hub.  [default: what "
    "EDUTOOLS_MODEL says, else pocket-gptj-organism]",
)
Model = Annotated[str | None, MODEL]
Json = Annotated[bool, _flag("--json", text="Print JSON instead of a table.")]
Limit = Annotated[int | None, _flag("--limit", min=1, text="Only the first of them.")]
Force = Annotated[bool, _flag("--force", text="Overwrite what is there.")]


@app.callback()
def shared(
    *,
    debug: Annotated[
        bool, _flag("--debug", text="Show the traceback of an error.")
    ] = False,
) -> None:
    """Locate and edit facts in language models."""


@app.command()
def trace(
    *,
    subject: Annotated[str, SUBJECT],
    prompt: Annotated[str, PROMPT],
    truth: Annotated[
        str | None,
        _flag("--truth", text="Follow this answer.  [default: the likeliest one]"),
    ] = None,
    model: Model = None,
    kind: Annotated[
        str, _flag("--kind", text="What is restored: hidden, mlp or attention.")
    ] = "hidden",
    window: Annotated[
        int | None,
        _flag("--window", text="Layers restored together.  [default: by kind]"),
    ] = None,
    samples: Annotated[int, _flag("--samples", text="Noises averaged over.")] = 10,
    noise: Annotated[
        float, _flag("--noise", text="Size of the noise, in sizes of the embedding.")
    ] = 3.0,
    sever: Annotated[
        str | None, _flag("--sever", text="Hold mlp or attention above at corrupted.")
    ] = None,
    seed: Annotated[int, _flag("--seed", text="Of the noise.")] = 0,
    figure: Annotated[
        Path | None, _flag("--figure", text="File for a heat map: .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure which states of a model carry a fact."""
    fact = edu.Fact(subject, prompt, truth or "(not asked)", truth)
    draw = None if figure is None else options.heatmap()
    loaded, tokenizer = edu.load(model)
    found = edu.causal_trace(
        loaded,
        tokenizer,
        fact,
        kind=kind,
        window=window,
        samples=samples,
        noise=noise,
        sever=sever,
        seed=seed,
        answer="argmax" if truth is None else "truth",
    )
    if figure is not None and draw is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw(found).figure.savefig(figure, bbox_inches="tight")
    values = {"model": chosen(model), "seed": seed} | tables.trace_values(found)
    _print(values, tables.describe_trace(found), as_json)


@app.command()
def moments(
    *,
    texts: Annotated[
        Path,
        _flag("--texts", text="A text in each line, or .jsonl with 'text' in each."),
    ],
    layers: Annotated[str, _flag("--layers", text="Such as 3,4,5 or 3-5.")],
    out: Annotated[Path, _flag("--out", text="Folder, a file for each layer.")],
    model: Model = None,
    dataset: Annotated[
        str | None,
        _flag(
            "--dataset", text="What the texts are, for the record.  [default: the file]"
        ),
    ] = None,
    batch_tokens: Annotated[
        int, _flag("--batch-tokens", min=1, text="Tokens per forward pass.")
    ] = 4096,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure the second moments of a model's keys over texts."""
    wanted, lines = options.layer_list(layers), read_texts(texts)
    for layer in wanted:
        options.fresh(out / f"moment-{layer}.safetensors", force=force)
    loaded, tokenizer = edu.load(model)
    found = edu.second_moment(
        loaded,
        tokenizer,
        lines,
        layers=wanted,
        dataset=dataset or texts.name,
        batch_tokens=batch_tokens,
    )
    save_moments(found, out)
    _print(tables.moment_values(found), tables.describe_moments(found), as_json)


@app.command()
def edit(
    *,
    method: Annotated[str, _flag("--method", text="Such as rome, memit or emmet.")],
    out: Annotated[Path, _flag("--out", text="Folder for the edit.")],
    model: Model = None,
    preset: Annotated[
        str | None,
        _flag(
            "--preset", text="Settings of this model.  [default: of the model itself]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        _flag(
            "--set",
            metavar="NAME=VALUE",
            text="A setting such as layer=5 or search.steps=20; may be repeated.",
        ),
    ] = None,
    trained: Annotated[
        Path | None, _flag("--from", text="Folder of a trained method, such as mend.")
    ] = None,
    facts: Annotated[
        Path | None, _flag("--facts", text="JSON file of facts or CounterFact records.")
    ] = None,
    limit: Limit = None,
    subject: Annotated[str | None, SUBJECT] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    target: Annotated[
        str | None, _flag("--target", text="What the model shall say next.")
    ] = None,
    truth: Annotated[str | None, _flag("--truth", text="What it says today.")] = None,
    stored: Annotated[
        Path | None,
        _flag("--moments", text="Their folder.  [default: those beside the model]"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find the change of weights that writes facts, and keep it in a folder."""
    name = chosen(model)
    how = options.method_of(
        method, model=name, preset=preset, settings=settings or (), folder=trained
    )
    what = options.facts_of(
        facts, subject=subject, prompt=prompt, target=target, truth=truth
    )[:limit]
    options.fresh(out, force=force)
    known = options.moments_of(name, stored)
    loaded, tokenizer = edu.load(model)
    change = edu.edit(loaded, tokenizer, what, method=how, moments=known)
    change.save_pretrained(out)
    _print(tables.edit_values(change), tables.describe_edit(change), as_json)


@app.command()
def evaluate(
    *,
    cases: Annotated[
        str,
        _flag("--cases", text="JSON file of CounterFact records, or hub:owner/name."),
    ],
    model: Model = None,
    applied: Annotated[
        Path | None, _flag("--edit", text="Folder of an edit, to measure it as well.")
    ] = None,
    zsre: Annotated[
        bool, _flag("--zsre", text="The file holds zsRE's questions.")
    ] = False,
    split: Annotated[
        str | None, _flag("--split", text="Of a data set of the Hub.")
    ] = None,
    revision: Annotated[
        str | None, _flag("--revision", text="Of a data set of the Hub: a commit.")
    ] = None,
    limit: Limit = None,
    batch_size: Annotated[
        int, _flag("--batch-size", min=1, text="Prompts per forward pass.")
    ] = 64,
    out: Annotated[
        Path | None, _flag("--out", text="File for the report, in JSON.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score a model, and with an edit the model before and after it."""
    read: Callable[..., Loaded[Any]] = load_zsre if zsre else load_cases
    measure: Callable[..., Report] = edu.evaluate_zsre if zsre else edu.evaluate
    chosen_cases = read(cases, split=split, revision=revision)
    change = None if applied is None else edu.Edit.from_pretrained(applied)
    if out is not None:
        options.fresh(out, force=force)
    loaded, tokenizer = edu.load(model)
    part, after = chosen_cases[:limit], None
    if change is not None:
        with change.applied(loaded):  # first, for it may not fit the model
            after = measure(loaded, tokenizer, part, batch_size=batch_size)
    before = measure(loaded, tokenizer, part, batch_size=batch_size)
    values = {
        "model": chosen(model),
        "cases": len(part),
        "source": chosen_cases.source,
        "refused": [str(refused) for refused in chosen_cases.refused],
        "before": tables.report_values(before),
        "after": None if after is None else tables.report_values(after),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(_dumped(values) + "\n", encoding="utf-8")
    _print(values, tables.describe_reports(before, after), as_json)


@app.command()
def show(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of an edit, or of moments.")],
    as_json: Json = False,
) -> None:
    """Tell what an edit, or a folder or file of second moments, consists of."""
    if folder.is_file():
        moment = SecondMoment.load(folder)
        found = {int(moment.info.get("layer", 0)): moment}
    elif any(folder.glob("moment-*.safetensors")):
        found = load_moments(folder)
    else:
        change = edu.Edit.from_pretrained(folder)
        _print(tables.edit_values(change), tables.describe_edit(change), as_json)
        return
    _print(tables.moment_values(found), tables.describe_moments(found), as_json)


def _print(values: Any, text: str, as_json: bool) -> None:
    typer.echo(_dumped(values) if as_json else text)


def _dumped(values: Any) -> str:
    return json.dumps(tables.plain(values), indent=2, allow_nan=False)
