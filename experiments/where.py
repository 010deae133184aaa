"""Where tracing finds a fact, and where an edit works best.

``python -m experiments.where``: for single facts and every layer, what restoring the
MLP outputs around the layer, or the hidden state of the layer, at the last subject
token brings back of the answer; and how a ROME edit at this layer does, alone in the
model. Everything but the layer is held as the model's preset has it; values are
searched in one batch per draw. Nothing can be written at the last layer.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean

import edutools as edu
from edutools.arch import n_layers
from edutools.metrics import harmonic_mean
from edutools.report import RATES
from edutools.tracing import embedding_std
from experiments.compared import interval, spearman
from experiments.counted import probability
from experiments.study import Setup, Unit, arguments, command, study

FACTS, SAMPLES, TEXTS = 10, 5, 600  # per draw; of the noise; behind second moments
EFFECTS = ("mlp", "hidden")
OUTCOMES = (*RATES, "score", "probability")


def edited(setup: Setup, case: edu.Case, edits: Sequence[edu.Edit]) -> Unit:
    """How each edit does on its case: a list per outcome."""
    told: dict[str, list[float]] = {name: [] for name in OUTCOMES}
    for change in edits:
        with change.applied(setup.model):
            report = edu.evaluate(setup.model, setup.tokenizer, [case])
            p = probability(setup, [case])[0]
        rates = [report[name].mean for name in RATES]
        numbers = [*rates, harmonic_mean(*rates), p]
        for name, value in zip(OUTCOMES, numbers, strict=True):
            told[name].append(round(value, 6))
    return told


def by_layer(rows: Sequence[Unit], name: str) -> list[list[float]]:
    """For each layer that can be written, the numbers of all facts."""
    written = len(rows[0]["score"])
    return [[row[name][layer] for row in rows] for layer in range(written)]


def correlations(
    rows: Sequence[Unit], effect: str, outcome: str, *, lowest: int | None = None
) -> Unit:
    """Spearman's correlation of an effect with an outcome, in three ways.

    Over layers, of the means over facts and of each fact; over facts, in each layer.
    Each is told as the mean over draws with its interval. A fact or layer on which one
    of the two is constant has none. `lowest` takes that many layers only: above some
    layer nothing is found and nothing can be written, which alone correlates.
    """
    means, each, within = [], [], []
    for seed in sorted({row["seed"] for row in rows}):
        part = [row for row in rows if row["seed"] == seed]
        x, y = (by_layer(part, name)[:lowest] for name in (effect, outcome))
        means.append(spearman([fmean(a) for a in x], [fmean(b) for b in y]))
        facts = zip(zip(*x, strict=True), zip(*y, strict=True), strict=True)
        each.append(interval([spearman(a, b) for a, b in facts])["mean"])
        within.append([spearman(a, b) for a, b in zip(x, y, strict=True)])
    return {
        "layers, of means": interval(means),
        "layers, of each fact": interval(each),
        "facts, within a layer": [interval(x) for x in zip(*within, strict=True)],
    }


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    model, tokenizer = setup.model, setup.tokenizer
    rome = edu.ROME.preset(setup.name).resolved(model, tokenizer)
    layers = range(n_layers(model) - 1)
    moments = replace(setup, behind=setup.behind[:TEXTS]).moments(layers)
    sigma = embedding_std(model, tokenizer, [c.fact.subject for c in setup.cases])
    n = min(given.limit or FACTS, FACTS, setup.most)
    units = [{"seed": seed, "fact": i} for seed in range(given.seeds) for i in range(n)]

    @cache
    def edits(seed: int) -> list[list[edu.Edit]]:
        facts = [case.fact for case in setup.draw(n, seed)]
        methods = [replace(rome, layer=layer) for layer in layers]
        return [
            edu.edit_each(model, tokenizer, facts, method=method, moments=moments)
            for method in methods
        ]

    def measure(unit: Unit) -> Unit:
        case = setup.draw(n, unit["seed"])[unit["fact"]]
        told: Unit = {
            "subject": case.fact.subject,
            "before": probability(setup, [case])[0],
        }
        for kind in EFFECTS:
            options = {"sigma": sigma, "samples": SAMPLES, "seed": unit["seed"]}
            trace = edu.causal_trace(model, tokenizer, case.fact, kind=kind, **options)
            effect = trace.effect[trace.subject[1] - 1]  # (layers,)
            told[kind] = [round(x, 6) for x in effect.tolist()]
        told["total_effect"] = trace.total_effect
        mine = [found[unit["fact"]] for found in edits(unit["seed"])]
        return told | edited(setup, case, mine)

    study("where", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
