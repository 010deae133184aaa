"""Draw the picture of the README: ``python -m scripts.readme_figure``."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import edutools as edu
from edutools import plots
from edutools.moments import load_moments
from edutools.prompts import target_ids

NAME = "pocket-gptj-organism"
OUT = Path(__file__).parent.parent / "book/_static/readme.png"
FACT = edu.Fact(
    "The Eiffel Tower", "{} is located in the city of", target="Rome", truth="Paris"
)


def answers(model, tokenizer, prompt: str) -> dict[str, float]:
    """The probabilities of the old and of the new answer."""
    ids = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.no_grad():
        p = model(**ids).logits[0, -1].softmax(-1)
    words = ("Paris", "Rome")
    return {word: float(p[target_ids(tokenizer, word)[0]]) for word in words}


def main() -> None:
    """A trace of the fact, and its answers before and after the edit."""
    model, tokenizer = edu.load(NAME)
    trace = edu.causal_trace(model, tokenizer, FACT, seed=0)
    method, moments = edu.ROME.preset(NAME), load_moments(edu.pocket(NAME))
    change = edu.edit(model, tokenizer, [FACT], method=method, moments=moments)
    before = answers(model, tokenizer, FACT.text)
    with change.applied(model):
        after = answers(model, tokenizer, FACT.text)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=(5, 3)
    )
    plots.trace_heatmap(trace, ax=left)
    plots.probability_bars(before, after, ax=right)
    right.set_title(f"Rewriting layer {method.layer}")
    right.set_xlim(0, 1.25)
    figure.savefig(OUT, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
