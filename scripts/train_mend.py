"""Train the MEND of a pocket model: ``python -m scripts.train_mend gptj-organism``.

Writes the networks to ``edutools/data/models/pocket-NAME/mend``. A run that was
interrupted goes on from its last checkpoint when the command is given again.
"""

import argparse
import random
import shutil
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import transformers

import edutools as edu
from edutools.corpus import counterfact_records, fill, fillers
from edutools.mend import MEND, Training
from edutools.pocket import POCKET_MODELS
from edutools.settings import preset_row, read
from edutools.world import World, WorldFact, build_world

HERE = Path(__file__).parent
TESTED = 280  # subjects that no training sees; the first 40 serve to choose settings
HELD_OUT = 100  # subjects that tell when to stop
ROUNDS = 10  # how often each fact is in the training, on average


def read_recipe(name: str) -> tuple[MEND, Training]:
    """A pocket model's MEND before training, and the settings of the training."""
    rows = tomllib.loads((HERE / "mend.toml").read_text(encoding="utf-8"))
    mend = read(MEND, preset_row("MEND", f"pocket-{name}"))
    return mend, read(Training, rows["common"] | rows.get(name, {}))


def without(world: World, subjects: set[str]) -> World:
    """The world as if it had no facts about these subjects."""
    facts = tuple(fact for fact in world.facts if fact.subject not in subjects)
    return World(facts, world.relations, world.nouns)


def split_cases(world: World) -> tuple[list[edu.Case], list[edu.Case], list[edu.Case]]:
    """Cases to learn from, to stop by and to be tested with, about distinct subjects.

    Neither the edits nor the neighbors of the training are about a tested subject.
    """
    tested = [edu.Case.from_counterfact(r) for r in counterfact_records(world)[:TESTED]]
    rest = without(world, {case.fact.subject for case in tested})
    held_out = [
        edu.Case.from_counterfact(r) for r in counterfact_records(rest)[:HELD_OUT]
    ]
    rest = without(rest, {case.fact.subject for case in held_out})
    draw = random.Random(0)
    return _many_cases(rest, draw), held_out, tested


def _many_cases(world: World, draw: random.Random) -> list[edu.Case]:
    """Every fact several times, in varying words, with a new object each time."""
    alike: dict[str, list[str]] = {}
    for subject in world.subjects:
        for word in set(subject.split()):
            alike.setdefault(word, []).append(subject)
    return [
        _case(world, fact, alike, draw)
        for fact in draw.choices(world.facts, k=ROUNDS * len(world.facts))
        if len(world.objects[fact.relation]) > 1
    ]


def _case(
    world: World, fact: WorldFact, alike: dict[str, list[str]], draw: random.Random
) -> edu.Case:
    """A fact in one wording, with three others, and near and far neighbors.

    Near ones are subjects with the same object, subjects that share a word of their
    names, and any subjects of the relation.
    """
    templates = world.relations[fact.relation].templates
    first, *others = draw.sample(templates, 4)
    told = [fill(text, fact.subject) for text in others]
    told[0] = f"{draw.choice(fillers()['trained'])} {told[0]}"
    same = [f.subject for f in world.by_object[fact.relation, fact.object]]
    crowd = [f.subject for f in world.by_relation[fact.relation]]
    namesakes = [s for word in fact.subject.split() for s in alike[word]]
    near = {
        subject
        for subjects, most in ((same, 6), (namesakes, 2), (crowd, 2))
        for subject in draw.sample(subjects, min(most, len(subjects)))
    }
    objects = [o for o in world.objects[fact.relation] if o != fact.object]
    return edu.Case(
        edu.Fact(fact.subject, first, draw.choice(objects), fact.object),
        paraphrases=tuple(told),
        neighborhood=tuple(fill(first, s) for s in sorted(near - {fact.subject})),
    )


def main() -> None:
    names = [name.removeprefix("pocket-") for name in POCKET_MODELS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--out", type=Path, help="write here instead")
    parser.add_argument("--steps", type=int, help="fewer steps, to try it out")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    mend, training = read_recipe(args.name)
    if args.steps is not None:
        training = replace(training, steps=args.steps)
    out = args.out or edu.pocket(args.name) / "mend"
    model, tokenizer = edu.load(f"pocket-{args.name}")
    cases, held_out, _ = split_cases(build_world())
    kept = out.with_name(f"{out.name}.training")
    begun = time.perf_counter()
    mend = mend.fit(
        model,
        tokenizer,
        cases,
        held_out=held_out,
        training=training,
        checkpoint=kept,
    )
    mend.save_pretrained(out)
    shutil.rmtree(kept)
    print(f"{out}: {(time.perf_counter() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
