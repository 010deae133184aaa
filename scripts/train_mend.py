"""Train the MEND of a pocket model: ``python -m scripts.train_mend gptj-organism``.

Writes the networks to ``edutools/data/models/pocket-NAME/mend``. A run that was
interrupted goes on from its last checkpoint when the command is given again.
"""

import argparse
import shutil
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import transformers

import edutools as edu
from edutools.corpus import counterfact_records
from edutools.mend import MEND, Training
from edutools.pocket import POCKET_MODELS
from edutools.settings import preset_row, read
from edutools.world import World, build_world

HERE = Path(__file__).parent
TESTED = 280  # subjects that no training sees; the first 40 serve to choose settings
HELD_OUT = 100  # subjects that tell when to stop
ROUNDS = 4  # how many new objects each fact of the training gets


def read_recipe(name: str) -> tuple[MEND, Training]:
    """The settings of a pocket model's MEND and of its training."""
    rows = tomllib.loads((HERE / "mend.toml").read_text(encoding="utf-8"))
    training = read(Training, rows["common"] | rows.get(name, {}))
    return read(MEND, preset_row("MEND", f"pocket-{name}")), training


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
    cases = [
        edu.Case.from_counterfact(record)
        for seed in range(1, ROUNDS + 1)
        for record in counterfact_records(rest, seed=seed)
    ]
    return cases, held_out, tested


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
    checkpoint = out.with_name(f"{out.name}.training")
    begun = time.perf_counter()
    mend = mend.fit(
        model,
        tokenizer,
        cases,
        held_out=held_out,
        training=training,
        checkpoint=checkpoint,
    )
    mend.save_pretrained(out)
    shutil.rmtree(checkpoint)
    print(f"{out}: {(time.perf_counter() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
