"""Batches of 40, batches in turn and single facts by the closed forms.

``python -m experiments.closed_forms gptj-organism`` prints a Markdown table with a row
per method, way of writing and set of records: those on which the settings were chosen
(300 to 339), and as many fresh ones (340 to 379). The section "Closed forms" of
``experiments/methods.md`` keeps it.
"""

import argparse
from collections.abc import Sequence
from itertools import islice

import transformers

import edutools as edu
from edutools.batch import BatchMethod
from edutools.corpus import counterfact_records, documents, text_of
from edutools.method import Moments
from edutools.pocket import POCKET_MODELS
from edutools.world import build_world

METHODS = (edu.MEMIT, edu.EMMET, edu.AlphaEdit, edu.ENCORE, edu.MEMITMerge)
SHOWN = {
    "ES": "efficacy",
    "PS": "paraphrase",
    "NS": "neighborhood",
    "score": "score",
    "top-1": "efficacy_top1",
    "neighbors' top-1": "neighborhood_top1",
}


def cases(start: int, n: int) -> list[edu.Case]:
    """`n` records of the evaluation set from number `start` on; all subjects differ."""
    records = counterfact_records(build_world())[start : start + n]
    return [edu.Case.from_counterfact(record) for record in records]


def measured(model, tokenizer, layers: Sequence[int]) -> Moments:
    """Second moments of these layers on the corpus, as the shipped ones."""
    texts = [text_of(d) for d in islice(documents(build_world(), seed=99), 3000)]
    return edu.second_moment(model, tokenizer, texts, layers=layers, dataset="corpus")


def in_one_batch(
    model, tokenizer, chosen: list[edu.Case], method: BatchMethod, moments: Moments
) -> edu.Report:
    """All facts written together."""
    facts = [case.fact for case in chosen]
    change = edu.edit(model, tokenizer, facts, method=method, moments=moments)
    with change.applied(model):
        return edu.evaluate(model, tokenizer, chosen)


def one_by_one(
    model, tokenizer, chosen: list[edu.Case], method: BatchMethod, moments: Moments
) -> edu.Report:
    """Each fact by itself, into the unedited model."""
    reports = [
        in_one_batch(model, tokenizer, [case], method, moments) for case in chosen
    ]
    return edu.Report.join(reports)


def in_turn(
    model, tokenizer, chosen: list[edu.Case], method: BatchMethod, moments: Moments
) -> edu.Report:
    """Ten facts after ten; earlier keys are handed on if the method spares them."""
    total = edu.Edit()
    for first in range(0, len(chosen), 10):
        facts = [case.fact for case in chosen[first : first + 10]]
        with total.applied(model):
            total = total + edu.edit(
                model, tokenizer, facts, method=method, moments=moments
            )
        if method.remembers:
            with total.applied(model):
                moments = edu.remember(
                    model, tokenizer, facts, method=method, moments=moments
                )
    with total.applied(model):
        return edu.evaluate(model, tokenizer, chosen)


WAYS = {"together": in_one_batch, "ten by ten": in_turn, "each alone": one_by_one}


def header() -> str:
    """The first two lines of the table."""
    names = ["method", "written", "records", "n", *SHOWN]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def row(method: BatchMethod, way: str, start: int, report: edu.Report) -> str:
    """One line of the table, in percent with 95 % intervals."""
    n, found = len(report), [report[name] for name in SHOWN.values()]
    label = [type(method).__name__, way, f"{start} to {start + n - 1}", str(n)]
    numbers = [
        f"{100 * r.mean:.1f} [{100 * r.low:.0f}, {100 * r.high:.0f}]" for r in found
    ]
    return f"| {' | '.join([*label, *numbers])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [name.removeprefix("pocket-") for name in POCKET_MODELS]
    parser.add_argument("name", choices=names)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["together"])
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    model, tokenizer = edu.load(args.name)
    methods = [
        kind.preset(f"pocket-{args.name}").resolved(model, tokenizer)
        for kind in METHODS
    ]
    layers = sorted({layer for method in methods for layer in method.edited()})
    moments = measured(model, tokenizer, layers)
    print(header())
    for way in args.ways:
        for start in (300, 340):
            chosen = cases(start, 40)
            for method in methods:
                done = WAYS[way](model, tokenizer, chosen, method, moments)
                print(row(method, way, start, done), flush=True)


if __name__ == "__main__":
    main()
