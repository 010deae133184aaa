"""The command `evaluate`: a model, and an edited one, on cases."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import edutools as edu
from edutools import options, tables
from edutools.flags import Force, Json, Limit, Model, flag
from edutools.pocket import chosen
from edutools.ranks import gpus, here
from edutools.records import Loaded, load_cases, load_zsre
from edutools.report import Report
from edutools.together import shared_report

__all__ = ["evaluate_command"]


def evaluate_command(
    *,
    cases: Annotated[
        str,
        flag("--cases", text="JSON file of CounterFact records, or hub:owner/name."),
    ],
    model: Model = None,
    applied: Annotated[
        Path | None, flag("--edit", text="Folder of an edit, to measure it as well.")
    ] = None,
    zsre: Annotated[
        bool, flag("--zsre", text="The file holds zsRE's questions.")
    ] = False,
    split: Annotated[
        str | None, flag("--split", text="Of a data set of the Hub.")
    ] = None,
    revision: Annotated[
        str | None, flag("--revision", text="Of a data set of the Hub: a commit.")
    ] = None,
    limit: Limit = None,
    batch_size: Annotated[
        int, flag("--batch-size", min=1, text="Prompts per forward pass.")
    ] = 64,
    out: Annotated[
        Path | None, flag("--out", text="File for the report, in JSON.")
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
    ranks = here()
    loaded, tokenizer = edu.load(model, **gpus())
    score = partial(measure, loaded, tokenizer, batch_size=batch_size)
    part, after = chosen_cases[:limit], None
    if change is not None:
        with change.applied(loaded):  # first, for it may not fit the model
            after = shared_report(ranks, score, part)
    before = shared_report(ranks, score, part)
    values = {
        "model": chosen(model),
        "cases": len(part),
        "source": chosen_cases.source,
        "refused": [str(refused) for refused in chosen_cases.refused],
        "before": tables.report_values(before),
        "after": None if after is None else tables.report_values(after),
    }
    if out is not None and ranks.leads:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(tables.dumped(values) + "\n", encoding="utf-8")
    text = tables.describe_reports(before, after)
    typer.echo(tables.dumped(values) if as_json else text)
