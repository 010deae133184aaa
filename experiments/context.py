"""What context and memory do to the pocket models, and which neurons carry their facts.

``python -m experiments.context gptj-organism`` prints one line per measurement; the
section "Context" of ``experiments/methods.md`` keeps them. Settings were chosen on
records 0 to 39 of the evaluation set; everything here is measured on later ones.
"""

import argparse
import random

import torch

import edutools as edu
from edutools.attribution import attribute
from edutools.corpus import counterfact_records
from edutools.evaluate import Report
from edutools.incontext import InContext, in_context
from edutools.memory import GRACE, memorize
from edutools.metrics import bootstrap
from edutools.neurons import KnowledgeNeurons, amplify, rewrite, suppress
from edutools.pocket import POCKET_MODELS
from edutools.scoring import score
from edutools.world import World, build_world

RATES = ("efficacy", "paraphrase", "neighborhood", "efficacy_top1")
CONTEXTS = {
    "new fact only, the paper's template": InContext(demonstrations=0),
    "4 examples, the paper's template": InContext(demonstrations=4),
    "8 examples, plain sentences": InContext(
        demonstrations=8, template="{fact}. {prompt}", separator=". "
    ),
}
MEMORIES = {  # (layer, radius)
    "pocket-gptj": ((5, 12.0), (8, 1.0), (8, 25.0), (8, 35.0)),
    "pocket-gptj-organism": ((5, 12.0), (8, 1.0), (8, 25.0), (8, 35.0)),
    "pocket-llama": ((5, 15.0), (9, 1.0), (9, 60.0), (9, 80.0)),
}


def shown(report: Report) -> str:
    rows = [report[name] for name in RATES]
    return " · ".join(
        f"{r.metric} {100 * r.mean:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]"
        for r in rows
    )


def mean(values: list[float]) -> str:
    rows = torch.tensor(values, dtype=torch.float64)[:, None]
    low, high = bootstrap(rows, lambda means: means[:, 0])
    return f"{float(rows.mean()):.3f} [{low:.3f}, {high:.3f}]"


def contexts(model, tokenizer, cases, corpus) -> None:
    print(f"unedited (n={len(cases)}): {shown(edu.evaluate(model, tokenizer, cases))}")
    for name, method in CONTEXTS.items():
        told = in_context(model, tokenizer, cases, corpus=corpus, method=method)
        report = edu.evaluate(model, tokenizer, told)
        print(f"{name} (n={len(cases)}): {shown(report)}", flush=True)


def memories(name: str, model, tokenizer, cases) -> None:
    facts = [case.fact for case in cases]
    for layer, radius in MEMORIES[name]:
        method = GRACE(layer=layer, radius=radius)
        book = memorize(model, tokenizer, facts, method=method)
        with book.applied(model):
            report = edu.evaluate(model, tokenizer, cases)
        print(f"{method} {book} (n={len(cases)}): {shown(report)}", flush=True)


def neurons(model, tokenizer, world: World, cases) -> None:
    draw, how = random.Random(0), KnowledgeNeurons()
    told: dict[str, list[float]] = {}
    reports, layers = [], []
    for case in cases:
        wordings = world.relations[case.relation].templates
        prompts = [text.replace("{}", case.fact.subject) for text in wordings]
        answers = [case.fact.truth] * len(prompts)

        def p(prompts=prompts, answers=answers) -> float:
            joint = score(model, tokenizer, prompts, answers).joint
            return float(joint.exp().mean())

        found = attribute(model, tokenizer, prompts, answers, steps=how.steps)
        shared = found.shared(threshold=how.threshold, share=how.share)
        told.setdefault("shared neurons", []).append(len(shared))
        layers += [layer for layer, _ in found.top(20)]
        told.setdefault("p", []).append(p())
        for count in (4, 20):
            top = found.top(count)
            other = [(at, draw.randrange(found.scores.shape[2])) for at, _ in top]
            for label, chosen in ((f"top {count}", top), (f"random {count}", other)):
                with suppress(model, chosen):
                    told.setdefault(f"p, {label} suppressed", []).append(p())
                with amplify(model, chosen):
                    told.setdefault(f"p, {label} doubled", []).append(p())
        with rewrite(model, tokenizer, case.fact, found.top(4)).applied(model):
            reports.append(edu.evaluate(model, tokenizer, [case]))
    n = len(cases)
    for label, values in told.items():
        print(f"{label} (n={n}): {mean(values)}")
    share = {at: round(layers.count(at) / len(layers), 2) for at in sorted({*layers})}
    print(f"layers of the top 20: {share}")
    print(f"top 4 rewritten (n={n}): {shown(Report.join(reports))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", choices=[n.removeprefix("pocket-") for n in POCKET_MODELS]
    )
    name = f"pocket-{parser.parse_args().name}"
    model, tokenizer = edu.load(name)
    world = build_world()
    every = [edu.Case.from_counterfact(r) for r in counterfact_records(world)]
    contexts(model, tokenizer, every[40:100], every[300:1300])
    memories(name, model, tokenizer, every[40:140])
    neurons(model, tokenizer, world, every[40:70])


if __name__ == "__main__":
    main()
