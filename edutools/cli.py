"""The command line: each command loads, calls the public function, saves and prints.

Results go to the standard output, everything else to the standard error.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

import edutools as edu
from edutools import options, tables, together
from edutools.evaluatecli import evaluate_command
from edutools.flags import Force, Json, Limit, Model, flag
from edutools.momentcli import moments_command
from edutools.moments import SecondMoment, load_moments
from edutools.plancli import plan_command
from edutools.pocket import chosen
from edutools.ranks import gpus, here
from edutools.shell import Commands

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


SUBJECT = flag("--subject", text="Whom the fact is about.")
PROMPT = flag("--prompt", text="The sentence up to the answer, {} for the subject.")


@app.callback()
def shared(
    *,
    debug: Annotated[
        bool, flag("--debug", text="Show the traceback of an error.")
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
        flag("--truth", text="Follow this answer.  [default: the likeliest one]"),
    ] = None,
    model: Model = None,
    kind: Annotated[
        str, flag("--kind", text="What is restored: hidden, mlp or attention.")
    ] = "hidden",
    window: Annotated[
        int | None,
        flag("--window", text="Layers restored together.  [default: by kind]"),
    ] = None,
    samples: Annotated[int, flag("--samples", text="Noises averaged over.")] = 10,
    noise: Annotated[
        float, flag("--noise", text="Size of the noise, in sizes of the embedding.")
    ] = 3.0,
    sever: Annotated[
        str | None, flag("--sever", text="Hold mlp or attention above at corrupted.")
    ] = None,
    seed: Annotated[int, flag("--seed", text="Of the noise.")] = 0,
    figure: Annotated[
        Path | None, flag("--figure", text="File for a heat map: .png, .svg or .pdf.")
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


app.command("moments")(moments_command)


@app.command()
def edit(
    *,
    method: Annotated[str, flag("--method", text="Such as rome, memit or emmet.")],
    out: Annotated[Path, flag("--out", text="Folder for the edit.")],
    model: Model = None,
    preset: Annotated[
        str | None,
        flag(
            "--preset", text="Settings of this model.  [default: of the model itself]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        flag(
            "--set",
            metavar="NAME=VALUE",
            text="A setting such as layer=5 or search.steps=20; may be repeated.",
        ),
    ] = None,
    trained: Annotated[
        Path | None, flag("--from", text="Folder of a trained method, such as mend.")
    ] = None,
    facts: Annotated[
        Path | None, flag("--facts", text="JSON file of facts or CounterFact records.")
    ] = None,
    limit: Limit = None,
    subject: Annotated[str | None, SUBJECT] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    target: Annotated[
        str | None, flag("--target", text="What the model shall say next.")
    ] = None,
    truth: Annotated[str | None, flag("--truth", text="What it says today.")] = None,
    stored: Annotated[
        Path | None,
        flag("--moments", text="Their folder.  [default: those beside the model]"),
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
    loaded, tokenizer = edu.load(model, **gpus())
    find = together.shared_search(here())
    change = edu.edit(loaded, tokenizer, what, method=how, moments=known, find=find)
    if here().leads:
        change.save_pretrained(out)
    _print(tables.edit_values(change), tables.describe_edit(change), as_json)


app.command("evaluate")(evaluate_command)


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


app.command("plan")(plan_command)


def _print(values: Any, text: str, as_json: bool) -> None:
    typer.echo(tables.dumped(values) if as_json else text)
