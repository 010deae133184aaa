"""Second moments of several layers: one pass that stops, against a pass per layer.

``python -m benchmarks.moments`` measures the same layers of the same model over the
same batches, in one process, in three ways: as `second_moment` does, all layers in one
pass that stops at the highest; layer by layer, each pass stopped at its layer, as the
released code of ROME and MEMIT does; and layer by layer through the whole model, head
included, as a plain call of the model does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import edutools as edu
from benchmarks.harness import arguments, keep, ratio, read, timed
from benchmarks.models import NAMES, SIZES, build, texts, tokenizer_of
from edutools.arch import architecture_of
from edutools.hooks import capture
from edutools.pocket import POCKET_MODELS
from edutools.stream import Portion, batches, chunks

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def loaded(given) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    if given.model in POCKET_MODELS:
        model, tokenizer = edu.load(given.model)
        return model.to(given.device, DTYPES[given.dtype]), tokenizer
    model = build(
        given.model,
        given.size,
        device=given.device,
        dtype=DTYPES[given.dtype],
        seed=given.seed,
    )
    return model, tokenizer_of(given.model)


@torch.no_grad()
def layer_by_layer(
    model, tokenizer, lines: list[str], given, *, stop: bool
) -> dict[int, torch.Tensor]:
    """Sums of k kᵀ, with all batches anew for each layer."""
    arch, context = architecture_of(model), model.config.max_position_embeddings
    portion = Portion(tokens=given.tokens, max_length=context)
    totals, size = {}, given.batch_tokens
    for layer in given.layers:
        name, total = arch.write(layer), None
        for chunk in chunks(tokenizer, lines, portion):
            for batch in batches(tokenizer, chunk.rows, batch_tokens=size):
                on = batch.to(model.device)
                with capture(model, name, inputs=True, stop=stop) as seen:
                    seen.run(**on.inputs, use_cache=False)
                k = seen[name][on.mask.bool()].float()  # (tokens, d_in)
                square = k.T @ k
                total = square.double() if total is None else total.add_(square)
        totals[layer] = total.cpu()
    return totals


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure the three ways and keep what they took."""
    parser = arguments(__doc__.splitlines()[0])
    known = (*POCKET_MODELS, *NAMES)
    parser.add_argument("--model", choices=known, default="pocket-gptj-organism")
    parser.add_argument(
        "--size", choices=SIZES, default="full", help="of random weights"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    given = read(parser, argv)
    model, tokenizer = loaded(given)
    length = min(512, model.config.max_position_embeddings)
    lines = texts(tokenizer, 2 * given.tokens, length=length)
    options = {"tokens": given.tokens, "batch_tokens": given.batch_tokens}
    sides = {
        "one pass": lambda: edu.second_moment(
            model, tokenizer, lines, layers=given.layers, progress=False, **options
        ),
        "layer by layer, stopped": lambda: layer_by_layer(
            model, tokenizer, lines, given, stop=True
        ),
        "layer by layer, whole": lambda: layer_by_layer(
            model, tokenizer, lines, given, stop=False
        ),
    }
    seconds = timed(sides, repeats=given.repeats, device=given.device)
    ours, theirs = sides["one pass"](), sides["layer by layer, whole"]()
    row = {
        "model": model.name_or_path.rpartition("/")[2],
        "layers": given.layers,
        "of": model.config.num_hidden_layers,
        "d_in": len(ours[given.layers[0]].total),
        "tokens": ours[given.layers[0]].count,
        "seconds": seconds,
        "rate": given.tokens / seconds["one pass"]["median"],
        "speedup": {
            name: ratio(seconds[name], seconds["one pass"]) for name in list(sides)[1:]
        },
        "difference": max(
            float((ours[layer].total - theirs[layer]).norm() / theirs[layer].norm())
            for layer in given.layers
        ),
    }
    path = keep("moments", [row], given)
    told = {name: f"{x['of_medians']:.1f}" for name, x in row["speedup"].items()}
    print(f"{row['rate']:.0f} tokens per second; times as fast as {told}")
    return path


if __name__ == "__main__":
    main()
