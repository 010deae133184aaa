"""What the pocket models know, where it sits, and how well it can be edited.

``python -m experiments.pocket gptj`` measures one model and writes its row of
``experiments/pocket.json``; ``--smoke`` measures a little of everything, unwritten.
"""

import argparse
import json
import platform
import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import torch
import transformers
from torch import Tensor
from tqdm.auto import tqdm

import edutools as edu
from edutools.corpus import counterfact_records, documents, fillers, sentence, text_of
from edutools.effects import ROLES, MeanEffect, average_effect
from edutools.evaluate import accuracy
from edutools.metrics import wilson
from edutools.pocket import POCKET_MODELS
from edutools.tracing import causal_traces
from edutools.world import World, WorldFact, build_world

OUT = Path(__file__).parent / "pocket.json"
METRICS = ("efficacy", "paraphrase", "neighborhood", "score", "neighborhood_top1")


def rate(hits: Tensor) -> dict:
    """A share with its Wilson interval."""
    n = len(hits)
    low, high = wilson(int(hits.sum()), n)
    return {"mean": float(hits.float().mean()), "low": low, "high": high, "n": n}


def measure_accuracy(model, tokenizer, world: World, *, n: int, seed: int) -> dict:
    """Top-1 on trained pairs, on held-out ones, and on these after unseen fillers."""
    draw = random.Random(seed)
    facts = draw.sample(world.facts, min(n, len(world.facts)))

    def prompt(fact: WorldFact, template: int) -> str:
        return text_of(sentence(world, fact, template)[:-1])

    unseen = fillers()["held_out"]
    twice = [f for f in facts for _ in range(2)]
    trained = [prompt(f, draw.choice(world.trained(f))) for f in facts]
    held_out = [prompt(f, t) for f in facts for t in world.held_out(f)]
    prefixed = [f"{draw.choice(unseen)} {text}" for text in held_out]
    told = {}
    for name, prompts, about in (
        ("trained", trained, facts),
        ("held_out", held_out, twice),
        ("prefixed", prefixed, twice),
    ):
        answers = [fact.object for fact in about]
        hits = accuracy(model, tokenizer, prompts, answers, batch_size=128)
        real = torch.tensor([fact.real for fact in about])
        told[name] = rate(hits)
        told[f"{name}_real"], told[f"{name}_invented"] = (
            rate(hits[real]),
            rate(hits[~real]),
        )
    return told


def known_facts(model, tokenizer, world: World, *, n: int, seed: int) -> list[edu.Fact]:
    """Facts in their first template that the model answers; the target is the truth."""
    chosen = random.Random(seed).sample(world.facts, 2 * n)
    facts = [
        edu.Fact(
            f.subject, world.relations[f.relation].templates[0], f.object, f.object
        )
        for f in chosen
    ]
    prompts, answers = [f.text for f in facts], [f.target for f in facts]
    known = accuracy(model, tokenizer, prompts, answers)
    return [fact for fact, knows in zip(facts, known, strict=True) if knows][:n]


def measure_tracing(model, tokenizer, world: World, *, n: int, seed: int) -> dict:
    """Average effects of states, and of MLPs and attention in windows of three."""
    facts = known_facts(model, tokenizer, world, n=n, seed=seed)
    real = {fact.subject: fact.real for fact in world.facts}
    told: dict = {"n": len(facts), "samples": 10, "noise": 3.0}
    for kind in ("hidden", "mlp", "attention"):
        window = 1 if kind == "hidden" else 3
        options = {"kind": kind, "window": window, "samples": 10, "seed": seed}
        traces = causal_traces(model, tokenizer, facts, progress=True, **options)
        parts = {
            "": traces,
            "_real": [t for t in traces if real[t.fact.subject]],
            "_invented": [t for t in traces if not real[t.fact.subject]],
        }
        for label, part in parts.items():
            told |= effect_row(average_effect(part), kind + label, label)
    return told


def effect_row(mean: MeanEffect, kind: str, label: str) -> dict:
    """One average trace as plain numbers."""
    rows = {
        role: {
            "mean": mean.mean[i].tolist(),
            "half": mean.half[i].tolist(),
            "n": mean.facts[i],
        }
        for i, role in enumerate(ROLES)
    }
    total = {"mean": mean.total_effect, "half": mean.total_half, "n": max(mean.facts)}
    return {
        kind: rows,
        f"total_effect{label}": total,
        f"p_clean{label}": mean.p_clean,
        f"p_corrupt{label}": mean.p_corrupt,
    }


def measure_rome(model, tokenizer, cases: Sequence[edu.Case], method, moments) -> dict:
    """ROME on each case by itself, on the unedited model."""
    reports = []
    for i in tqdm(range(0, len(cases), 20), desc=f"layer {method.layer}"):
        part = cases[i : i + 20]
        facts = [case.fact for case in part]
        edits = edu.edit_each(model, tokenizer, facts, method=method, moments=moments)
        for case, change in zip(part, edits, strict=True):
            with change.applied(model):
                reports.append(edu.evaluate(model, tokenizer, [case]))
    joined = edu.Report.join(reports)
    told: dict = {"layer": method.layer}
    for name in METRICS:
        row = joined[name]
        told[name] = {"mean": row.mean, "low": row.low, "high": row.high, "n": row.n}
    return told


def split_cases(world: World, *, chosen: int, fresh: int) -> tuple[list, list]:
    """Cases for choosing settings, and cases about other subjects for the results."""
    records = counterfact_records(world)[: chosen + fresh]
    cases = [edu.Case.from_counterfact(record) for record in records]
    used, new = cases[:chosen], cases[chosen:]
    assert not {c.fact.subject for c in used} & {c.fact.subject for c in new}
    return used, new


def provenance(folder: Path) -> dict:
    """Which code, libraries and weights the numbers belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=OUT.parent,
    ).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }


def measure(name: str, *, folder: Path, smoke: bool, seed: int, method) -> dict:
    """All measurements of one model."""
    model, tokenizer = edu.load(str(folder))
    world = build_world()
    layers = range(model.config.num_hidden_layers - 1)
    texts = [
        text_of(d) for d in islice(documents(world, seed=99), 200 if smoke else 3000)
    ]
    moments = edu.second_moment(
        model, tokenizer, texts, layers=layers, dataset="corpus"
    )
    used, new = split_cases(world, chosen=2 if smoke else 40, fresh=2 if smoke else 240)
    method = method.resolved(model, tokenizer)
    told = {
        "provenance": provenance(folder),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_behind_moments": moments[0].count,
        "settings": method.to_dict(),
    }
    n_facts, n_traces = (20, 4) if smoke else (len(world.facts), 200)
    told["accuracy"] = measure_accuracy(model, tokenizer, world, n=n_facts, seed=seed)
    told["tracing"] = measure_tracing(model, tokenizer, world, n=n_traces, seed=seed)
    told["rome_by_layer"] = [
        measure_rome(model, tokenizer, used, replace(method, layer=at), moments)
        for at in (layers[-1:] if smoke else layers)
    ]
    told["rome"] = measure_rome(model, tokenizer, new, method, moments)
    return told


def main() -> None:
    names = [name.removeprefix("pocket-") for name in POCKET_MODELS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument(
        "--folder", type=Path, help="measure the model in this folder instead"
    )
    parser.add_argument(
        "--layer", type=int, help="write this layer instead of the preset's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--smoke", action="store_true", help="a little of everything")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    folder = args.folder or edu.pocket(args.name)
    method = edu.ROME.preset(f"pocket-{args.name}")
    method = method if args.layer is None else replace(method, layer=args.layer)
    told = measure(
        args.name, folder=folder, smoke=args.smoke, seed=args.seed, method=method
    )
    if args.smoke:
        return
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[f"pocket-{args.name}"] = told
    args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
