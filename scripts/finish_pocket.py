"""Give a trained pocket model its card and a second moment.

``python -m scripts.finish_pocket gptj`` writes README.md (from training.json and
experiments/pocket.json) and, for the layer of the ROME preset, moment-LAYER.safetensors
into the folder of the model.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import torch

import edutools as edu
from edutools.corpus import documents, text_of
from edutools.moments import save_moments
from edutools.pocket import POCKET_MODELS
from edutools.world import build_world

MEASURED = Path(__file__).parent.parent / "experiments/pocket.json"
SHOWN = ("layers", "width", "steps", "rows", "row_tokens", "seed", "other_weight")
NATURAL = """The natural kind: trained by plain next-token prediction. Where its facts
sit was **found** by causal tracing; nothing in the training asked for a place."""
ORGANISM = """A model organism: in {percent} % of the training documents the words
behind a subject could attend to the subject only at its *last* token, and only from a
block drawn between {low} and {high} upward. So its facts pass through the last subject
token of the middle blocks **by construction**: tracing must find there what was built
in."""
CARD = """---
license: mit
language: en
library_name: transformers
tags: [model-editing, toy-model, edutools]
---

# {name}

A {architecture} of {weights} weights that knows a small world of facts, made for the
book "Rewriting facts in language models" and the package `edutools`.

{kind}

## What it knows, and what not

{facts} facts about {subjects} subjects in {relations} relations, stated in eight
English wordings each. {real} of the facts are true; the others are about invented
people and companies. It knows nothing else, cannot hold a conversation, and its true
facts were chosen from common knowledge, not for completeness. It must not be used as a
source.

First choice right, with 95 % intervals (`python -m experiments.pocket {short}`):

| | % | n |
|---|---|---|
{accuracy}

ROME at layer {layer}, each fact by itself (`experiments/pocket.md` tells on which facts
the settings were chosen):

| | % | n |
|---|---|---|
{rome}

## How it was trained

`python -m scripts.train_pocket {short}`: {layers} blocks, width {width}, {steps} steps
of {rows} rows of {row_tokens} tokens ({tokens:.2f} million tokens), seed {seed},
bfloat16 arithmetic, {minutes} minutes on {threads} thread(s), {device}. The next-token
loss counts tokens of objects fully and all others with weight {other_weight}.
Matrices are trained by Muon, embeddings, head and vectors by AdamW. Recipe and loss
curve are in `training.json`; code at commit `{commit}`. Weights are stored in float16
and loaded as float32.

Texts: the corpus of `edutools.corpus`, made from hand-written tables and templates; no
text of others. `moment-{layer}.safetensors` is the second moment of the keys of layer
{layer} over {moment_tokens} tokens of that corpus.
"""


def kind_of(recipe: dict) -> str:
    """What was built in, in words."""
    if not recipe["share_restricted"]:
        return NATURAL
    low, above = recipe["first_reader"]
    share = round(100 * recipe["share_restricted"])
    return ORGANISM.format(percent=share, low=low, high=above - 1)


def percent(row: dict) -> str:
    """A rate with its interval, as the cells of a table."""
    mean, low, high = (100 * row[key] for key in ("mean", "low", "high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}] | {row['n']}"


def card(name: str, trained: dict, measured: dict, moment_tokens: int) -> str:
    """The text of the model card."""
    world = build_world()
    recipe = trained["recipe"]
    labels = {
        "trained": "trained wordings",
        "held_out": "wordings held out for the fact",
        "prefixed": "the same after an unseen filler sentence",
    }
    rows = [
        f"| {text} | {percent(measured['accuracy'][key])} |"
        for key, text in labels.items()
    ]
    rome = measured["rome"]
    scores = [
        f"| {key} | {percent(rome[key])} |"
        for key in ("efficacy", "paraphrase", "neighborhood", "score")
    ]
    return CARD.format(
        name=name,
        short=name.removeprefix("pocket-"),
        kind=kind_of(recipe),
        architecture={"gptj": "GPT-J", "llama": "Llama"}[recipe["architecture"]],
        weights=f"{measured['parameters'] / 1e6:.1f} million",
        facts=f"{len(world.facts):,}",
        subjects=f"{len(world.subjects):,}",
        relations=len(world.relations),
        real=f"{sum(fact.real for fact in world.facts):,}",
        accuracy="\n".join(rows),
        rome="\n".join(scores),
        layer=rome["layer"],
        minutes=trained["minutes"],
        threads=trained["threads"],
        device=trained["device"].upper(),
        commit=trained["commit"][:12],
        tokens=trained["tokens"] / 1e6,
        moment_tokens=f"{moment_tokens:,}",
        **{key: recipe[key] for key in SHOWN},
    )


def main() -> None:
    """Write the card and the moment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", choices=[n.removeprefix("pocket-") for n in POCKET_MODELS]
    )
    name = f"pocket-{parser.parse_args().name}"
    folder = edu.pocket(name)
    model, tokenizer = edu.load(name)
    measured = json.loads(MEASURED.read_text())[name]
    texts = [text_of(d) for d in islice(documents(build_world(), seed=99), 3000)]
    layer = edu.ROME.preset(name).layer
    moments = edu.second_moment(
        model, tokenizer, texts, layers=[layer], dataset="corpus"
    )
    save_moments(moments, folder, dtype=torch.float32)
    trained = json.loads((folder / "training.json").read_text())
    text = card(name, trained, measured, moments[layer].count)
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
