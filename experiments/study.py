"""What the studies share: a model with its cases, and work in units that are kept.

A study is a list of units (plain values: method, batch size, seed, ...) and a function
that measures one of them. Each unit's row is kept as soon as it is there, so that an
interrupted study goes on where it stopped when its command is given again. A unit's
numbers depend on the unit, the model and the cases alone, not on what else is measured.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

import edutools as edu
from benchmarks.harness import surroundings
from edutools.evaluate import accuracy
from edutools.perplexity import perplexity
from edutools.pocket import POCKET_MODELS, chosen
from edutools.provenance import fingerprint
from edutools.provenance import provenance as origin
from edutools.questions import evaluate_zsre
from experiments.given import SEEDS, arguments, command, is_whole, only
from experiments.pocket import provenance
from experiments.setup import Bank, Setup

__all__ = ["SEEDS", "Bank", "Setup", "Unit", "arguments", "command", "known"]
__all__ += ["report", "scores", "study", "writing"]

RESULTS = Path(__file__).parent / "results"
TRIALS = Path(__file__).parent / "trials"  # of a part of a study, or of other data

Unit = dict[str, Any]

SCORES = (
    "efficacy", "paraphrase", "neighborhood", "score",
    "efficacy_magnitude", "paraphrase_magnitude", "neighborhood_magnitude",
    "efficacy_top1", "paraphrase_top1", "neighborhood_top1",
)  # fmt: skip


ASKED = ("efficacy", "paraphrase", "specificity", "score")  # of zsRE


def report(setup: Setup, cases: Sequence[edu.Case]) -> dict[str, float]:
    """How the model, as it is now, does on these cases.

    Cases of zsRE are asked their questions: shares of right tokens, and specificity, of
    the unrelated ones, in the place of neighborhood.
    """
    model, tokenizer = setup.model, setup.tokenizer
    if setup.questions:
        asked = [setup.questions[case.fact] for case in cases]
        found = evaluate_zsre(model, tokenizer, asked, batch_size=128)
        return {name: found[name].mean for name in ASKED}
    found = edu.evaluate(model, tokenizer, cases, batch_size=128)
    return {name: found[name].mean for name in SCORES}


def known(setup: Setup, cases: Sequence[edu.Case]) -> list[tuple[str, str]]:
    """Prompts whose answers must not change when other cases are written."""
    if setup.questions:
        asked = [setup.questions[case.fact] for case in cases]
        return [(case.unrelated_question, case.unrelated_answer) for case in asked]
    return [(case.fact.text, case.fact.truth or case.fact.target) for case in cases]


def scores(
    setup: Setup, cases: Sequence[edu.Case], *, seed: int, most: int = 128
) -> dict[str, float]:
    """How the model, as it is now, does on these cases, on other facts and on texts."""
    model, tokenizer = setup.model, setup.tokenizer
    part = random.Random(seed).sample(cases, min(most, len(cases)))
    told = report(setup, part)
    prompts, answers = zip(*known(setup, setup.others(seed)), strict=True)
    hits = accuracy(model, tokenizer, prompts, answers, batch_size=128)
    told["untouched_top1"] = float(hits.float().mean())
    told["perplexity"] = perplexity(model, tokenizer, setup.texts).value
    return told | {"measured": len(part)}


def writing(setup: Setup, cases: Sequence[edu.Case], *, seed: int) -> dict[str, float]:
    """What the model says when it writes freely about up to 16 of the cases."""
    part = random.Random(seed).sample(cases, min(16, len(cases)))
    generation = edu.Generation(tokens=24, seed=seed)
    report = edu.evaluate(
        setup.model, setup.tokenizer, part, generation=generation, batch_size=64
    )
    names = ("free_generation", "free_paraphrase", "generation_entropy")
    return {name: report[name].mean for name in names}


def study(
    name: str,
    given: argparse.Namespace,
    setup: Setup,
    units: Sequence[Unit],
    measure: Callable[[Unit], Unit],
) -> list[Unit]:
    """Measure all units that are not measured yet, and keep the rows.

    All of a study goes to `RESULTS`, a part of it to `TRIALS`, unless told otherwise.
    `seconds` in a row is what its unit took; what several units share counts for the
    first of them.

    Raises:
        ValueError: if what was kept belongs to other weights or other cases, or there
            is nothing to measure.
    """
    units = only(units, given.unit)
    place = RESULTS if is_whole(given) else TRIALS
    out = given.out or place / f"{name}-{Path(chosen(given.model)).name}.json"
    partial = out.with_suffix(".partial.jsonl")
    identity = _identity(setup, given)
    done = _read(partial, identity)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(partial, identity, done)  # without a line that was cut off
    for unit in tqdm(units, desc=name):
        key = json.dumps(unit, sort_keys=True)
        if key in done:
            continue
        start = time.perf_counter()
        row = unit | measure(unit)
        done[key] = row | {"seconds": round(time.perf_counter() - start, 3)}
        with partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": done[key]}) + "\n")
            file.flush()
            os.fsync(file.fileno())
    rows = [done[json.dumps(unit, sort_keys=True)] for unit in units]
    around = surroundings(setup.model.device)
    told = {
        "study": name,
        "model": given.model,
        "cases": Path(given.data).name if given.data else "the pocket models' world",
        "settings": {k: _plain(v) for k, v in vars(given).items() if k != "out"},
        "machine": {k: around[k] for k in ("device", "cpu", "threads", "time")},
        "provenance": _provenance(setup),
        "rows": rows,
    }
    new = out.with_suffix(".new")
    new.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    new.replace(out)
    partial.unlink()
    return rows


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value


def _provenance(setup: Setup) -> dict[str, Any]:
    if setup.source in POCKET_MODELS:
        return provenance(edu.pocket(setup.source))
    return dict(origin(setup.model))


def _identity(setup: Setup, given: argparse.Namespace) -> str:
    """A hash of the weights, the cases and the versions that decide the numbers."""
    told: list[Any] = [origin(setup.model), [repr(case) for case in setup.cases]]
    told += [torch.__version__, transformers.__version__, setup.name]
    told += [repr(setup.questions), setup.texts, len(setup.behind)]
    told += [str(given.moments), str(given.mend)]
    weights = (w for w in setup.model.parameters() if not w.is_meta)
    told += [fingerprint(weight) for weight in weights]
    return sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def _read(partial: Path, identity: str) -> dict[str, Unit]:
    """The rows that are there already.

    Raises:
        ValueError: if they belong to something else.
    """
    if not partial.is_file():
        return {}
    first, *lines = partial.read_text(encoding="utf-8").split("\n")
    if not _object(first) or _object(first).get("identity") != identity:
        raise ValueError(
            f"{str(partial)!r} was begun with other weights, cases or versions. Remove "
            "it to start anew."
        )
    kept = [_object(line) for line in lines]
    return {found["key"]: found["row"] for found in kept if found}


def _object(line: str) -> dict[str, Any]:
    """What a line holds; nothing if it was cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return {}


def _write(partial: Path, identity: str, done: Mapping[str, Unit]) -> None:
    lines = [{"identity": identity}]
    lines += [{"key": key, "row": row} for key, row in done.items()]
    new = partial.with_suffix(".new")
    new.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    new.replace(partial)
