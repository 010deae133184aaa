"""A model with its cases, as all studies take them; values that are searched once."""

import argparse
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import edutools as edu
from edutools.corpus import counterfact_records, documents, text_of
from edutools.facts import ZsreCase
from edutools.moments import load_moments
from edutools.pocket import POCKET_MODELS, chosen
from edutools.search import TargetStates, target_states
from edutools.secondmoment import SecondMoment
from edutools.settings import presets
from edutools.world import build_world
from experiments.given import read_data, read_ordinary, settings_name

TEXTS, BEHIND = 60, 3000  # texts for perplexity, and behind second moments
UNTOUCHED = 200  # facts that are not written


@dataclass(frozen=True, eq=False)
class Setup:
    """A model, what can be written into it, and what must stay.

    Args:
        name: of the model whose presets are taken.
        model: unedited.
        tokenizer: the model's.
        cases: what can be written; all subjects differ.
        texts: ordinary texts that a model shall go on predicting well.
        behind: texts behind second moments.
        source: what was loaded: a pocket model, a folder or an id on the Hub.
        questions: of zsRE, the question behind each fact; empty for CounterFact.
        folder: of second moments, if one was named.
        mend: a folder with a trained MEND, or a pocket model that has one.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    cases: Sequence[edu.Case]
    texts: Sequence[str]
    behind: Sequence[str]
    source: str = ""
    questions: Mapping[edu.Fact, ZsreCase] = field(default_factory=dict)
    folder: Path | None = None
    mend: str | Path | None = None

    @classmethod
    def given(cls, told: argparse.Namespace) -> "Setup":
        """The setup of what a study was told."""
        names = ("preset", "moments", "mend", "texts")
        options = {name: getattr(told, name) for name in names}
        return cls.of(told.model, told.data, **options)

    @classmethod
    def of(
        cls,
        model: str,
        data: str | Path | None = None,
        *,
        preset: str | None = None,
        moments: Path | None = None,
        mend: Path | None = None,
        texts: str | None = None,
    ) -> "Setup":
        """The setup of a model, on a file of records or on the world's.

        Raises:
            ValueError: if something must be given for this model; says what.
        """
        source = chosen(model)
        name = settings_name(source, preset)
        ours, world = name in POCKET_MODELS, build_world()
        if data is None and not ours:
            raise ValueError(
                f"{source!r} has not learned the pocket models' world. Give --data "
                "PATH, a file in the schema of CounterFact or zsRE."
            )
        if data is None:
            found = [edu.Case.from_counterfact(r) for r in counterfact_records(world)]
            questions: Mapping[edu.Fact, ZsreCase] = {}
        else:
            found, questions = read_data(data)
        cases = {case.fact.subject: case for case in reversed(found)}
        if texts is None:
            ordinary = [text_of(d) for d in islice(documents(world, seed=7), TEXTS)]
            reading = documents(world, seed=99)
            behind = [text_of(d) for d in islice(reading, BEHIND)] if ours else []
        else:
            read = read_ordinary(texts, TEXTS + BEHIND)
            ordinary, behind = read[:TEXTS], read[TEXTS:] or read
        weights, tokenizer = edu.load(source)
        return cls(
            name,
            weights,
            tokenizer,
            [*cases.values()][::-1],
            ordinary,
            behind,
            source=source,
            questions=questions,
            folder=moments,
            mend=mend or (source if source in POCKET_MODELS else None),
        )

    @property
    def most(self) -> int:
        """How many cases can be written, so that the others stay untouched."""
        return len(self.cases) - self.left

    @property
    def left(self) -> int:
        """How many cases are never written: 200, or a fifth where there are few."""
        return min(UNTOUCHED, len(self.cases) // 5)

    def draw(self, n: int, seed: int) -> list[edu.Case]:
        """The first n cases in the order that the seed gives: smaller draws are in it.

        Raises:
            ValueError: if there are fewer cases.
        """
        if n > self.most:
            raise ValueError(
                f"{n} cases are wanted and {self.most} are there, beside {self.left} "
                "that are not written. Give more with --data, or a smaller --limit."
            )
        return random.Random(seed).sample(self.cases, len(self.cases))[:n]

    def others(self, seed: int) -> list[edu.Case]:
        """Cases at the other end of the same order, which are not written."""
        order = random.Random(seed).sample(self.cases, len(self.cases))
        return order[-self.left :] if self.left else order

    def moments(self, layers: Iterable[int]) -> dict[int, SecondMoment]:
        """Second moments of these layers: those of the named folder and those beside
        the model; others are measured on the texts behind.

        Raises:
            ValueError: if some are missing and there are no texts.
        """
        known = self._beside() | (load_moments(self.folder) if self.folder else {})
        missing = sorted(set(layers) - set(known))
        if missing and not self.behind:
            raise ValueError(
                f"Second moments of layers {missing} of {self.source!r} are missing. "
                "Measure them with edutools moments and give --moments FOLDER, or "
                "--texts FILE to measure them here."
            )
        if missing:
            found = edu.second_moment(
                self.model, self.tokenizer, self.behind, layers=missing
            )
            known = known | found
        return {layer: known[layer] for layer in layers}

    def has(self, method: str) -> bool:
        """Whether a method can be taken: it has settings here, or networks if MEND.

        If not, it is left out, and a line says so.
        """
        there = self.name in presets().get(method, {})
        if method == "MEND":
            there = self.mend is not None
        if not there:
            todo = {"MEND": "train it and give --mend FOLDER"}
            why = todo.get(
                method, f"it has no settings for {self.name!r}; see --preset"
            )
            print(f"{method} is left out: {why}", file=sys.stderr)
        return there

    def _beside(self) -> dict[int, SecondMoment]:
        ours = self.source in POCKET_MODELS
        place = edu.pocket(self.source) if ours else Path(self.source)
        try:
            return load_moments(place)
        except FileNotFoundError:
            return {}


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
