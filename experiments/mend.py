"""How well the shipped MENDs edit: ``python -m experiments.mend gptj-organism``.

Facts about subjects that no training has seen, one edit at a time and ten at once.
Writes the model's row of ``experiments/mend.json``.
"""

import argparse
import json
from collections.abc import Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm

import edutools as edu
from edutools.corpus import documents, text_of
from edutools.metrics import bootstrap
from edutools.perplexity import perplexity
from edutools.pocket import POCKET_MODELS
from edutools.world import build_world
from experiments.pocket import METRICS, provenance
from scripts.train_mend import split_cases

OUT = Path(__file__).with_suffix(".json")
CHOSEN = 40  # tested subjects that served to choose settings
TOGETHER = (1, 10)
TEXTS, READ = 100, 40  # texts whose perplexity is measured, after this many edits


def measure(model, tokenizer, cases: Sequence[edu.Case], mend, together: int) -> dict:
    """Scores after editing `together` facts at once, and what was right before."""
    after, before = [], []
    for first in tqdm(range(0, len(cases), together), desc=f"{together} at once"):
        part = cases[first : first + together]
        facts = [case.fact for case in part]
        change = edu.edit(model, tokenizer, facts, method=mend)
        before.append(edu.evaluate(model, tokenizer, part))
        with change.applied(model):
            after.append(edu.evaluate(model, tokenizer, part))
    old, new = edu.Report.join(before), edu.Report.join(after)
    told = {"together": together, "neighborhood_top1_before": row(old, METRICS[-1])}
    return told | {name: row(new, name) for name in METRICS}


def measure_texts(model, tokenizer, cases: Sequence[edu.Case], mend) -> dict:
    """Perplexity of ordinary texts before, and after single edits on average."""
    texts = [text_of(d) for d in islice(documents(build_world(), seed=99), TEXTS)]
    after = []
    for case in tqdm(cases[:READ], desc="perplexity"):
        change = edu.edit(model, tokenizer, [case.fact], method=mend)
        with change.applied(model):
            after.append(perplexity(model, tokenizer, texts).value)
    values = torch.tensor(after)
    low, high = bootstrap(values[:, None], lambda means: means[:, 0])
    return {
        "texts": len(texts),
        "before": perplexity(model, tokenizer, texts).value,
        "after": {
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "n": len(after),
            "worst": max(after),
        },
    }


def row(report: edu.Report, metric: str) -> dict:
    """A mean with its 95 % interval and n."""
    found = report[metric]
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def main() -> None:
    names = [name.removeprefix("pocket-") for name in POCKET_MODELS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--mend", type=Path, help="measure the MEND in this folder")
    parser.add_argument("--limit", type=int, help="only the first cases; not written")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    name = f"pocket-{args.name}"
    folder = args.mend or edu.pocket(name) / "mend"
    model, tokenizer = edu.load(name)
    mend = edu.MEND.from_pretrained(folder)
    fresh = split_cases(build_world())[2][CHOSEN:][: args.limit]
    weights = (folder / "editors.safetensors").read_bytes()
    told = {
        "provenance": provenance(edu.pocket(name)),
        "mend": sha256(weights).hexdigest(),
        "settings": mend.to_dict(),
        "training": mend.record["training"],
        "edits": [measure(model, tokenizer, fresh, mend, n) for n in TOGETHER],
        "perplexity": measure_texts(model, tokenizer, fresh, mend),
    }
    for found in told["edits"]:
        print(found["together"], {k: round(found[k]["mean"], 3) for k in METRICS})
    print(told["perplexity"])
    if args.limit is None and args.mend is None:
        known = json.loads(OUT.read_text()) if OUT.exists() else {}
        OUT.write_text(json.dumps(known | {name: told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
