"""How near the value search and the second moments come to what the machine can do.

``python -m benchmarks.limit --device cuda`` counts the operations of the matrix
products (`torch.utils.flop_counter`'s formulas, by `edutools.meter`), divides by the
time, and compares with the rate of large square matrix products measured in the same
run; and it says where the time goes, by `torch.profiler`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import edutools as edu
from benchmarks.harness import arguments, keep, read, synchronize, timed
from benchmarks.models import NAMES, SIZES, build, cases, texts, tokenizer_of
from edutools.contexts import Contexts
from edutools.meter import Meter
from edutools.search import target_states

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SQUARE = {"cpu": 2048, "cuda": 8192}  # large enough that a larger one is not faster
# Which part of the work an operation belongs to, by a piece of its name; first fit.
PARTS = {
    "attention": ("bmm", "softmax", "attention"),
    "products": ("mm", "linear", "matmul", "dot"),
    "optimizer": ("adam", "foreach", "addcmul_", "addcdiv_"),
    "moving data": ("copy", "index", "gather", "scatter", "cat", "memcpy", "fill"),
}


def rates(given) -> dict[str, dict[str, Any]]:
    """Operations per second of square products, by dtype, on random matrices."""
    size = given.square or SQUARE[given.device]
    many = 10 if given.device == "cuda" else 1
    found = {}
    for name, dtype in DTYPES.items():
        generator = torch.Generator().manual_seed(given.seed)
        a, b = (
            torch.randn(size, size, generator=generator).to(given.device, dtype)
            for _ in range(2)
        )
        sides = {"product": lambda a=a, b=b: [a @ b for _ in range(many)]}
        told = timed(sides, repeats=given.repeats, device=given.device)["product"]
        found[name] = {"size": size, "flops": many * 2 * size**3 / told["median"]}
        found[name]["seconds"] = told
    return found


def jobs(given) -> dict[str, Callable[[], Any]]:
    """The two things that take the time, on a model with random weights."""
    model = build(
        given.model,
        given.size,
        device=given.device,
        dtype=DTYPES[given.dtype],
        seed=given.seed,
    )
    tokenizer = tokenizer_of(given.model)
    facts = [case.fact for case in cases(given.facts)]
    method = edu.MEMIT.preset(NAMES[given.model])
    written = Contexts(given=("{}", *["It is known that this is so. {}"] * 5))
    search = replace(
        method.search, steps=given.steps, contexts=written, stop_loss=-1.0
    )  # no fact finishes early, so that every repeat does the same
    lines = texts(tokenizer, given.tokens)
    return {
        "value search": lambda: target_states(
            model, tokenizer, facts, max(method.layers), search=search
        ),
        "second moments": lambda: edu.second_moment(
            model, tokenizer, lines, layers=method.layers, progress=False
        ),
    }


def breakdown(call: Callable[[], Any], device: str) -> dict[str, float]:
    """Share of the time by part of the work; 'gaps' is when the device did nothing.

    On a CPU operations are part of the program that starts them, so its 'gaps' are what
    Python takes between them. The profiler makes everything slower, gaps above all.
    """
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if device == "cuda" else []
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    with profile(activities=kinds, acc_events=True) as seen, _wall(device) as wall:
        call()
    spent = dict.fromkeys([*PARTS, "elementwise and the rest"], 0.0)
    for event in seen.key_averages():
        on_device = not str(event.device_type).endswith("CPU")
        if event.key.startswith(("aten::", "autograd::")) and not on_device:
            spent[_part(event.key)] += getattr(event, attribute) / 1e6
    whole = wall["seconds"]
    share = {name: seconds / whole for name, seconds in spent.items()}
    return share | {"gaps": max(0.0, 1 - sum(share.values())), "profiled": whole}


def _part(name: str) -> str:
    low = name.lower()
    for part, pieces in PARTS.items():
        if any(piece in low for piece in pieces):
            return part
    return "elementwise and the rest"


@contextmanager
def _wall(device: str) -> Iterator[dict[str, float]]:
    told: dict[str, float] = {}
    synchronize(device)
    start = time.perf_counter()
    yield told
    synchronize(device)
    told["seconds"] = time.perf_counter() - start


def _said(row: dict[str, Any]) -> str:
    """The row in a line."""
    shares = {k: x for k, x in row["breakdown"].items() if k != "profiled"}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    of = f"{row['share_of_rate'][row['dtype']]:.0%} of the rate of products"
    return f"{row['rate'] / 1e12:.3g} TFLOP/s, {of} ({parts})"


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure the machine, then the work, then look where the time went."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NAMES, default="gptj-6b")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--tenth", dest="size", action="store_const", const="tenth")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--facts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of the search")
    parser.add_argument("--tokens", type=int, default=65_536, help="of the texts")
    parser.add_argument("--square", type=int, help="size of the matrices")
    given = read(parser, argv)
    top = rates(given)
    rows: list[dict[str, Any]] = [{"work": "square products", "rates": top}]
    path = keep("limit", rows, given)
    for name, call in jobs(given).items():
        with Meter() as meter:
            call()
        told = timed({name: call}, repeats=given.repeats, device=given.device)[name]
        rate = meter.flops / told["median"]
        share = {dtype: rate / row["flops"] for dtype, row in top.items()}
        rows.append(
            {
                "work": name,
                "model": NAMES[given.model],
                "size": given.size,
                "dtype": given.dtype,
                "flops": meter.flops,
                "seconds": told,
                "rate": rate,
                "share_of_rate": share,
                "breakdown": breakdown(call, given.device),
            }
        )
        path = keep("limit", rows, given)
        print(f"{name}: {_said(rows[-1])}", flush=True)
    return path


if __name__ == "__main__":
    main()
