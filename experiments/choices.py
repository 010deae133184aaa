"""What the choices inside ROME do: ``python -m experiments.choices``.

Single facts, each written alone with the model's preset and one choice changed: the key
(with the preset's values), the texts behind keys and values, steps, stop, bound (in the
unit of the preset, norms of the block's output) and KL term of the search. Beside what
the edit does: how probable the new target is then, and how probable true answers are
that the unedited model knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean

import edutools as edu
from edutools.contexts import BARE, Contexts
from edutools.evaluate import Report
from edutools.keyvalue import ValueSearch
from edutools.report import RATES
from edutools.scoring import score
from experiments.counted import probability
from experiments.study import Bank, Setup, Unit, arguments, command, study

FACTS, FAR = 6, 1e6  # per draw; a bound that never binds
CHOICES = {
    "preset": ("",),
    "key": ("prompt", 1, 5, 10, 20, "mixed"),
    "contexts": (0, 1, 10, 20),
    "steps": (2, 5, 10, 20, 40),
    "stop": ("never", 0.005, 0.5, 5.0, "argmax"),
    "clamp": (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, "none"),
    "kl": (0.0, 1.0),
}


def contexts(prefixes: int) -> Contexts:
    """The bare prompt and texts of 8 tokens in front of it."""
    return Contexts(prefixes=((prefixes, 8),)) if prefixes else BARE


def varied(search: ValueSearch, choice: str, value: float | str) -> ValueSearch:
    """The search with one choice changed."""
    if choice == "contexts":
        return replace(search, contexts=contexts(int(value)))
    if choice == "stop" and value == "argmax":
        return replace(search, stop="argmax")
    if choice == "stop":
        return replace(search, stop_loss=0.0 if value == "never" else value)
    return replace(search, **{choice: FAR if value == "none" else value})


def method(rome: edu.ROME, choice: str, value: float | str) -> edu.ROME:
    """ROME with one choice changed."""
    if choice == "preset":
        return rome
    if choice != "key":
        return replace(rome, search=varied(rome.search, choice, value))
    if isinstance(value, str):
        return replace(rome, key=value)
    return replace(rome, search=varied(rome.search, "contexts", value))


def known(setup: Setup, seed: int) -> Mapping[str, float]:
    """How probable true answers are that are the model's first choice."""
    facts = [case.fact for case in setup.others(seed) if case.fact.truth]
    asked = [fact.text for fact in facts], [fact.truth or "" for fact in facts]
    found = score(setup.model, setup.tokenizer, *asked)
    p = found.joint.exp()[found.correct]
    return {"known_probability": float(p.mean()), "known": len(p)}


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__ or "").parse_args(argv)
    setup = Setup.given(given)
    model, tokenizer = setup.model, setup.tokenizer
    rome = edu.ROME.preset(setup.name).resolved(model, tokenizer)
    moments, bank = setup.moments(rome.layers), Bank()
    n = min(given.limit or FACTS, FACTS, setup.most)
    units = [
        {"choice": choice, "value": value, "n": n, "seed": seed}
        for seed in range(given.seeds)
        for choice, values in CHOICES.items()
        for value in values
    ]
    before = cache(lambda seed: known(setup, seed))

    def find(*args, search: ValueSearch, **options):
        """The preset's values, whatever the texts behind the key."""
        return bank(*args, search=rome.search, **options)

    def measure(unit: Unit) -> Unit:
        cases = setup.draw(n, unit["seed"])
        facts = [case.fact for case in cases]
        chosen = method(rome, unit["choice"], unit["value"]).resolved(model, tokenizer)
        by = find if unit["choice"] == "key" else bank
        edits = chosen.compute_each(model, tokenizer, facts, moments, find=by)
        reports, said = [], []
        for case, change in zip(cases, edits, strict=True):
            with change.applied(model):
                reports.append(edu.evaluate(model, tokenizer, [case]))
                said += probability(setup, [case])
        joined = Report.join(reports)
        told = {name: joined[name].mean for name in (*RATES, "score")}
        steps = [change.info["search"]["iterations"][0] for change in edits]
        told |= {
            "probability": fmean(said),
            "probabilities": [round(p, 6) for p in said],
        }
        return told | {"steps": fmean(steps)} | before(unit["seed"])

    study("choices", given, setup, units, measure)


if __name__ == "__main__":
    command(main)
