"""What the studies share: a model with its cases, and work in units that are kept.

A study is a list of units (plain values: method, batch size, seed, ...) and a function
that measures one of them. Each unit's row is kept as soon as it is there, so that an
interrupted study goes on where it stopped when its command is given again.
"""

import argparse
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import edutools as edu
from edutools.corpus import counterfact_records, documents, text_of
from edutools.evaluate import accuracy
from edutools.moments import load_moments
from edutools.perplexity import perplexity
from edutools.pocket import POCKET_MODELS
from edutools.provenance import provenance as origin
from edutools.search import TargetStates, target_states
from edutools.secondmoment import SecondMoment
from edutools.world import build_world
from experiments.pocket import provenance

RESULTS = Path(__file__).parent / "results"
TEXTS, UNTOUCHED = 60, 200  # for perplexity; facts that are not written
SEEDS = 5

Unit = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Setup:
    """A model, what can be written into it, and what must stay.

    Args:
        name: of the model, for its presets.
        model: unedited.
        tokenizer: the model's.
        cases: what can be written; all subjects differ.
        texts: ordinary texts that a model shall go on predicting well.
        behind: texts behind second moments.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    cases: Sequence[edu.Case]
    texts: Sequence[str]
    behind: Sequence[str]

    @classmethod
    def of(cls, name: str, data: Path | None = None) -> "Setup":
        """The setup of a model, on a file of CounterFact records or on the world's."""
        model, tokenizer = edu.load(name)
        world = build_world()
        if data is None:
            found = [edu.Case.from_counterfact(r) for r in counterfact_records(world)]
        else:
            found = list(edu.load_cases(data))
        cases = {case.fact.subject: case for case in reversed(found)}
        texts = [text_of(d) for d in islice(documents(world, seed=7), TEXTS)]
        behind = [text_of(d) for d in islice(documents(world, seed=99), 3000)]
        return cls(name, model, tokenizer, [*cases.values()][::-1], texts, behind)

    def draw(self, n: int, seed: int) -> list[edu.Case]:
        """The first n cases in the order that the seed gives: smaller draws are in it.

        Raises:
            ValueError: if there are fewer cases.
        """
        if n > len(self.cases):
            raise ValueError(
                f"{n} cases are wanted and {len(self.cases)} are there. Give more "
                "with --data, or a smaller --limit."
            )
        return random.Random(seed).sample(self.cases, len(self.cases))[:n]

    def others(self, seed: int) -> list[edu.Case]:
        """Cases at the other end of the same order, which are not written."""
        return random.Random(seed).sample(self.cases, len(self.cases))[-UNTOUCHED:]

    def moments(self, layers: Iterable[int]) -> dict[int, SecondMoment]:
        """Second moments of these layers: those beside the model, others measured."""
        try:
            known = load_moments(edu.pocket(self.name))
        except (FileNotFoundError, ValueError):
            known = {}
        missing = sorted(set(layers) - set(known))
        if missing:
            found = edu.second_moment(
                self.model, self.tokenizer, self.behind, layers=missing
            )
            known = known | found
        return {layer: known[layer] for layer in layers}


class Bank:
    """A search of values that searches each fact once, for the unedited model.

    To be handed to `edit` as `find`.
    """

    def __init__(self) -> None:
        self._known: dict[tuple, dict[str, Any]] = {}

    def __call__(
        self, model, tokenizer, facts, layer, *, search, groups=None
    ) -> TargetStates:
        """As `edutools.search.target_states`."""
        if groups is not None and len(set(groups)) < len(facts):
            return target_states(
                model, tokenizer, facts, layer, search=search, groups=groups
            )
        keys = [(fact, layer, repr(search)) for fact in facts]
        new = [
            fact
            for fact, key in zip(facts, keys, strict=True)
            if key not in self._known
        ]
        if new:
            found = target_states(
                model, tokenizer, new, layer, search=search, progress=len(new) > 99
            )
            for i, fact in enumerate(new):
                self._known[fact, layer, repr(search)] = {
                    "values": found.values[:, i],
                    "initial": found.initial[:, i],
                    **{part: row[i] for part, row in found.history.items()},
                }
        known = [self._known[key] for key in keys]
        parts = known[0].keys() - {"values", "initial"}
        return TargetStates(
            values=torch.stack([k["values"] for k in known], 1),
            initial=torch.stack([k["initial"] for k in known], 1),
            history={p: torch.stack([k[p] for k in known]) for p in parts},
        )


SCORES = (
    "efficacy", "paraphrase", "neighborhood", "score",
    "efficacy_magnitude", "paraphrase_magnitude", "neighborhood_magnitude",
    "efficacy_top1", "paraphrase_top1", "neighborhood_top1",
)  # fmt: skip


def scores(
    setup: Setup, cases: Sequence[edu.Case], *, seed: int, most: int = 128
) -> dict[str, float]:
    """How the model, as it is now, does on these cases, on other facts and on texts."""
    model, tokenizer = setup.model, setup.tokenizer
    part = random.Random(seed).sample(cases, min(most, len(cases)))
    report = edu.evaluate(model, tokenizer, part, batch_size=128)
    told = {name: report[name].mean for name in SCORES}
    other = setup.others(seed)
    hits = accuracy(
        model,
        tokenizer,
        [case.fact.text for case in other],
        [case.fact.truth or case.fact.target for case in other],
        batch_size=128,
    )
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


def arguments(about: str) -> argparse.ArgumentParser:
    """What every study can be told."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="pocket-gptj-organism")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws of facts")
    parser.add_argument("--limit", type=int, help="no batch larger than this")
    parser.add_argument("--data", type=Path, help="CounterFact records, a JSON file")
    parser.add_argument("--out", type=Path, help="write here instead")
    return parser


def study(
    name: str,
    given: argparse.Namespace,
    setup: Setup,
    units: Sequence[Unit],
    measure: Callable[[Unit], Unit],
) -> list[Unit]:
    """Measure all units that are not measured yet, and keep the rows.

    Raises:
        ValueError: if what was kept belongs to other weights or other cases.
    """
    out = given.out or RESULTS / f"{name}-{Path(given.model).name}.json"
    partial = out.with_suffix(".partial.jsonl")
    identity = _identity(setup, given)
    done = _read(partial, identity)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not done:
        partial.write_text(json.dumps({"identity": identity}) + "\n")
    for unit in tqdm(units, desc=name):
        key = json.dumps(unit, sort_keys=True)
        if key in done:
            continue
        done[key] = unit | measure(unit)
        with partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": done[key]}) + "\n")
            file.flush()
            os.fsync(file.fileno())
    rows = [done[json.dumps(unit, sort_keys=True)] for unit in units]
    told = {
        "study": name,
        "model": given.model,
        "cases": str(given.data.name) if given.data else "the pocket models' world",
        "provenance": _provenance(setup),
        "rows": rows,
    }
    new = out.with_suffix(".new")
    new.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    new.replace(out)
    partial.unlink()
    return rows


def _provenance(setup: Setup) -> dict[str, Any]:
    if setup.name in POCKET_MODELS:
        return provenance(edu.pocket(setup.name))
    return dict(origin(setup.model))


def _identity(setup: Setup, given: argparse.Namespace) -> str:
    """A hash of the weights, the cases and the versions that decide the numbers."""
    told = [origin(setup.model), [repr(case) for case in setup.cases]]
    told += [torch.__version__, transformers.__version__]
    return sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def _read(partial: Path, identity: str) -> dict[str, Unit]:
    if not partial.is_file():
        return {}
    lines = partial.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.endswith("}")]
    if not found or found[0].get("identity") != identity:
        raise ValueError(
            f"{str(partial)!r} was begun with other weights, cases or versions. Remove "
            "it to start anew."
        )
    return {kept["key"]: kept["row"] for kept in found[1:]}
