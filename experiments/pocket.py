"""What the pocket models know, where it sits, and how well it can be edited.

``python -m experiments.pocket gptj`` measures one model and writes its row of
``experiments/pocket.json``; ``--smoke`` measures a little of everything and writes nothing.
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
from tqdm import tqdm

import edutools as edu
from edutools.corpus import counterfact_records, documents, fillers, sentence, text_of
from edutools.effects import ROLES, average_effect
from edutools.evaluate import accuracy, wilson
from edutools.tracing import causal_traces
from edutools.world import World, WorldFact, build_world

OUT = Path(__file__).parent / "pocket.json"
METRICS = ("efficacy", "paraphrase", "neighborhood", "score", "neighborhood_top1")


def rate(hits: Tensor) -> dict:
    """A share with its Wilson interval."""
    n = len(hits)
    low, high = wilson(float(hits.sum()), n)
    return {"mean": float(hits.float().mean()), "low": low, "high": high, "n": n}


def measure_accuracy(model, tokenizer, world: World, *, n: int, seed: int) -> dict:
    """Top-1 on trained pairs, on held-out pairs, and on these after unseen filler sentences."""
    draw = random.Random(seed)
    facts = draw.sample(world.facts, min(n, len(world.facts)))

    def prompt(fact: WorldFact, template: int) -> str:
        return text_of(sentence(world, fact, template)[:-1])

    unseen = fillers()["held_out"]
    trained = [prompt(f, draw.choice(world.trained(f))) for f in facts]
    held_out = [prompt(f, t) for f in facts for t in world.held_out(f)]
    prefixed = [f"{draw.choice(unseen)} {text}" for text in held_out]
    twice = [f for f in facts for _ in range(2)]
    rows = {"trained": (trained, facts), "held_out": (held_out, twice), "prefixed": (prefixed, twice)}
    told = {}
    for name, (prompts, about) in rows.items():
        hits = accuracy(model, tokenizer, prompts, [f.object for f in about], batch_size=128)
        told[name] = rate(hits)
        real = torch.tensor([f.real for f in about])
        told[f"{name}_real"] = rate(hits[real])
        told[f"{name}_invented"] = rate(hits[~real])
    return told


def as_facts(world: World, chosen: Sequence[WorldFact]) -> list[edu.Fact]:
    """World facts in their first template; the target plays no part in tracing."""
    templates = {name: relation.templates[0] for name, relation in world.relations.items()}
    return [edu.Fact(f.subject, templates[f.relation], f.object, f.object) for f in chosen]


def measure_tracing(model, tokenizer, world: World, *, n: int, seed: int) -> dict:
    """Average effects of hidden states, and of MLP and attention outputs in windows of three."""
    draw = random.Random(seed)
    chosen = draw.sample(world.facts, 4 * n)
    facts = as_facts(world, chosen)
    known = accuracy(model, tokenizer, [f.text for f in facts], [f.target for f in facts])
    facts = [fact for fact, knows in zip(facts, known, strict=True) if knows][:n]
    told: dict = {"n": len(facts)}
    for kind in ("hidden", "mlp", "attention"):
        window = 1 if kind == "hidden" else 3
        traces = causal_traces(
            model, tokenizer, facts, kind=kind, window=window, samples=10, seed=seed, progress=True
        )
        for label, part in {"": traces, "_real": _real(world, traces, True), "_invented": _real(world, traces, False)}.items():
            mean = average_effect(part)
            told[kind + label] = {
                role: {"mean": mean.mean[i].tolist(), "half": mean.half[i].tolist(), "n": mean.facts[i]}
                for i, role in enumerate(ROLES)
            }
            told["total_effect" + label] = {"mean": mean.total_effect, "half": mean.total_half}
            told["p_clean" + label], told["p_corrupt" + label] = mean.p_clean, mean.p_corrupt
    return told


def _real(world: World, traces: Sequence, real: bool) -> list:
    kinds = {fact.subject: fact.real for fact in world.facts}
    return [trace for trace in traces if kinds[trace.fact.subject] == real]


def measure_rome(model, tokenizer, cases: Sequence[edu.Case], method, moments) -> dict:
    """ROME on each case by itself, on the unedited model."""
    reports = []
    for case in tqdm(cases, desc=f"layer {method.layer}", mininterval=5):
        change = edu.edit(model, tokenizer, [case.fact], method=method, moments=moments)
        with change.applied(model):
            reports.append(edu.evaluate(model, tokenizer, [case]))
    joined = edu.Report.join(reports)
    rows = {name: joined[name] for name in METRICS}
    told = {k: {"mean": r.mean, "low": r.low, "high": r.high, "n": r.n} for k, r in rows.items()}
    return {"layer": method.layer} | told


def split_cases(world: World, *, chosen: int, fresh: int, seed: int) -> tuple[list, list]:
    """Cases for choosing settings, and cases about other subjects for the final numbers."""
    records = counterfact_records(world, seed=seed)
    cases = [edu.Case.from_counterfact(record) for record in records[: chosen + fresh]]
    used, new = cases[:chosen], cases[chosen:]
    assert not {c.fact.subject for c in used} & {c.fact.subject for c in new}
    return used, new


def provenance(folder: Path) -> dict:
    """Which code, libraries and weights the numbers belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=OUT.parent
    ).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }


def measure(name: str, *, folder: Path, smoke: bool, seed: int, layer: int | None) -> dict:
    """All measurements of one model."""
    model, tokenizer = edu.load(str(folder))
    world = build_world()
    layers = range(model.config.num_hidden_layers - 1)
    texts = [text_of(d) for d in islice(documents(world, seed=99), 200 if smoke else 3000)]
    moments = edu.second_moment(model, tokenizer, texts, layers=layers, dataset="corpus, seed 99")
    few, some, many = (2, 2, 2) if smoke else (60, 40, 240)
    used, new = split_cases(world, chosen=few, fresh=many, seed=seed)
    method = edu.ROME.preset(f"pocket-{name}")
    contexts = method.search.contexts.resolved(model, tokenizer)
    method = replace(method, search=replace(method.search, contexts=contexts))
    method = replace(method, layer=method.layer if layer is None else layer)
    told = {
        "provenance": provenance(folder),
        "seed": seed,
        "tokens_behind_moments": moments[0].count,
        "settings": method.to_dict(),
        "accuracy": measure_accuracy(model, tokenizer, world, n=20 if smoke else 100_000, seed=seed),
        "tracing": measure_tracing(model, tokenizer, world, n=4 if smoke else 200, seed=seed),
    }
    sweep = [layers[-1]] if smoke else layers
    told["rome_by_layer"] = [
        measure_rome(model, tokenizer, used[:some], replace(method, layer=at), moments) for at in sweep
    ]
    told["rome"] = measure_rome(model, tokenizer, new, method, moments)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[m.removeprefix("pocket-") for m in edu.pocket.POCKET_MODELS])
    parser.add_argument("--folder", type=Path, help="measure the model in this folder instead")
    parser.add_argument("--layer", type=int, help="write this layer instead of the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--smoke", action="store_true", help="a little of everything, not written")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    folder = args.folder or edu.pocket(args.name)
    told = measure(args.name, folder=folder, smoke=args.smoke, seed=args.seed, layer=args.layer)
    if args.smoke:
        return
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[f"pocket-{args.name}"] = told
    args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
