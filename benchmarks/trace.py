"""Causal tracing: only what a cell can change, against a whole pass per cell.

``python -m benchmarks.trace`` makes the same tables in two ways, in one process: with
`causal_trace`, which runs the cells of a token together, each from its lowest restored
layer and from that token on, and leaves out tokens before the subject; and with a plain
loop as the released code of ROME works: for each token and layer a call of the whole
model, head included, on one clean row and the noisy ones. Noise and windows are the
same, and so must the tables be.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import edutools as edu
from benchmarks.harness import arguments, keep, ratio, read, timed
from benchmarks.models import NAMES, SIZES, cases
from benchmarks.moments import DTYPES, loaded
from benchmarks.search import changed
from edutools.arch import architecture_of
from edutools.pocket import POCKET_MODELS
from edutools.prompts import encode, fill
from edutools.tracing import embedding_std

# With their windows; None: what the package takes.
KINDS = {"hidden": 1, "mlp": None, "attention": None}
APART = 1e-5  # how far the two ways' probabilities may be apart in float32


@dataclass(frozen=True, eq=False)
class Traced:
    """A prompt, the noise on its subject in the embeddings' unit, and what to put back.

    `noise` has shape (samples, subject, d_model).
    """

    fact: edu.Fact
    noise: torch.Tensor
    kind: str
    window: int


def by_cell(model, tokenizer, traced: Traced) -> torch.Tensor:
    """P(answer) with each (token, layer) put back, by one call of the model each."""
    prompt, arch = fill(traced.fact), architecture_of(model)
    ids = encode(tokenizer, [prompt.text]).ids.to(model.device)
    first, end = prompt.span(tokenizer)
    place = {"hidden": arch.block, "mlp": arch.mlp, "attention": arch.attention}
    layers, tokens = model.config.num_hidden_layers, ids.shape[1]
    rows = ids.expand(1 + len(traced.noise), -1)  # the clean one first

    def disturb(h: torch.Tensor) -> torch.Tensor:  # (rows, tokens, d_model)
        new = h.clone()
        new[1:, first:end] += traced.noise.to(h)
        return new

    def cell(token: int, layer: int) -> torch.Tensor:
        """P(any word) with the layers around one put back at one token."""

        def put_back(h: torch.Tensor) -> torch.Tensor:  # (rows, tokens, d_model)
            new = h.clone()
            new[1:, token] = h[0, token]
            return new

        half, rest = traced.window // 2, -(-traced.window // 2)
        with ExitStack() as hooks:
            embedding = model.get_submodule(arch.embedding)
            hooks.enter_context(changed(embedding, disturb))
            for near in range(max(0, layer - half), min(layers, layer + rest)):
                module = model.get_submodule(place[traced.kind](near))
                hooks.enter_context(changed(module, put_back))
            logits = model(input_ids=rows, use_cache=False).logits
        return logits[1:, -1].float().softmax(-1).mean(0)  # (vocab,)

    with torch.no_grad():
        answer = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        table = [
            [cell(token, layer)[answer] for layer in range(layers)]
            for token in range(tokens)
        ]
    return torch.stack([torch.stack(line) for line in table]).cpu()


def row(model, tokenizer, kind: str, given) -> dict[str, Any]:
    """One kind of restored states: seconds of both ways for all facts.

    Raises:
        RuntimeError: if their tables are further apart than float32 explains.
    """
    facts = [case.fact for case in cases(given.facts)]
    sigma = embedding_std(model, tokenizer, [fact.subject for fact in facts])
    draw = torch.Generator().manual_seed(given.seed)
    units = []
    for fact in facts:
        first, end = fill(fact).span(tokenizer)
        shape = (given.samples, end - first, model.config.hidden_size)
        units.append(torch.randn(shape, generator=draw, dtype=torch.float64))
    pairs = list(zip(facts, units, strict=True))

    def together() -> list[edu.Trace]:
        return [
            edu.causal_trace(
                model,
                tokenizer,
                fact,
                kind=kind,
                window=KINDS[kind],
                sigma=sigma,
                noise=3.0,
                noise_unit=unit,
            )
            for fact, unit in pairs
        ]

    window = together()[0].window

    def apart() -> list[torch.Tensor]:
        noises = [(fact, unit * 3.0 * sigma) for fact, unit in pairs]
        return [by_cell(model, tokenizer, Traced(*x, kind, window)) for x in noises]

    found: dict[str, Any] = {}
    sides = {
        "together": lambda: found.update(together=together()),
        "one by one": lambda: found.update(apart=apart()),
    }
    seconds = timed(sides, repeats=given.repeats, device=given.device)
    ours = [trace.p_restored for trace in found["together"]]
    difference = max(
        float((a - b).abs().max()) for a, b in zip(ours, found["apart"], strict=True)
    )
    if given.dtype == "float32" and not difference <= APART:
        raise RuntimeError(
            f"The two ways give different tables for {kind!r}: probabilities are apart "
            f"by up to {difference:.1e}."
        )
    return {
        "model": model.name_or_path.rpartition("/")[2],
        "dtype": given.dtype,
        "kind": kind,
        "window": window,
        "of": model.config.num_hidden_layers,
        "samples": given.samples,
        "facts": len(facts),
        "cells": sum(table.numel() for table in ours),
        "seconds": seconds,
        "speedup": ratio(seconds["one by one"], seconds["together"]),
        "difference": difference,
    }


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure states, MLP and attention outputs, and keep each row as it comes."""
    parser = arguments(__doc__.splitlines()[0])
    known = (*POCKET_MODELS, *NAMES)
    parser.add_argument("--model", choices=known, default="pocket-gptj-organism")
    parser.add_argument(
        "--size", choices=SIZES, default="full", help="of random weights"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--facts", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10, help="of the noise")
    given = read(parser, argv)
    model, tokenizer = loaded(given)
    name = f"trace_{NAMES[given.model]}" if given.model in NAMES else "trace"
    rows: list[dict[str, Any]] = []
    path = given.folder
    for kind in KINDS:
        rows.append(row(model, tokenizer, kind, given))
        path = keep(name, rows, given)
        fast, slow = rows[-1]["seconds"].values()
        print(
            f"{kind}: {rows[-1]['cells']} cells in {fast['median']:.3g} s together, "
            f"{slow['median']:.3g} s one by one, "
            f"{rows[-1]['speedup']['of_medians']:.1f} times as fast; probabilities "
            f"apart by {rows[-1]['difference']:.1e}",
            flush=True,
        )
    return path


if __name__ == "__main__":
    main()
