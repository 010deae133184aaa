"""Every part of an edit at the size of GPT-J-6B or Llama-2-7B, once each.

``python -m benchmarks.full_size --model gptj-6b --device cuda`` takes random weights,
so it tells what memory and time the work takes, and that undo gives back every bit; not
how well facts are written. `--tenth` takes a smaller model and fewer facts, for a CPU.
Each part is kept as soon as it is done.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import edutools as edu
import edutools.batch
from benchmarks.harness import arguments, read
from benchmarks.models import NAMES, SIZES, build, cases, digest, texts, tokenizer_of
from benchmarks.parts import Late, Log, Timed, put
from edutools.mendfit import Training
from edutools.search import target_states
from edutools.spread import spread

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LATE = 3  # the exit code if time ran out


@dataclass
class Setting:
    """What one size is worked with."""

    facts: int
    tokens_per_key: float  # of second moments, by entries of a key
    samples: int
    steps: int | None  # of a search; None: as in the preset
    rank: int
    training: Training


SETTINGS = {
    "full": Setting(256, 10, 10, None, 1920, Training(steps=4, edits=10, every=100)),
    "tenth": Setting(4, 2, 2, 4, 128, Training(steps=2, edits=2, every=100)),
    "tiny": Setting(3, 12, 1, 2, 8, Training(steps=1, edits=2, every=100)),
}


def methods(given) -> dict[str, edu.methods.Method]:
    """ROME, MEMIT and EMMET as published for the model."""
    found: dict[str, Any] = {}
    for kind in (edu.ROME, edu.MEMIT, edu.EMMET):
        method = kind.preset(NAMES[given.model])
        steps = SETTINGS[given.size].steps
        if steps is not None:
            method = replace(method, search=replace(method.search, steps=steps))
        found[kind.__name__] = method
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Do every part; 0 if all were done, 3 if time ran out."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NAMES, required=True)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--tenth", dest="size", action="store_const", const="tenth")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--facts", type=int, help="for MEMIT and EMMET")
    parser.add_argument("--deadline", type=float, default=480.0, help="seconds")
    given = read(parser, argv)
    log = Log(given)
    try:
        _work(log, given, SETTINGS[given.size])
    except Late as late:
        print(f"stopped: {late}", flush=True)
        return LATE
    return 0


def _work(log: Log, given, setting: Setting) -> None:
    dtype = DTYPES[given.dtype]
    options = {"device": given.device, "dtype": dtype, "seed": given.seed}
    model = log.part(
        "building",
        lambda: build(given.model, given.size, **options),
        tell=lambda model: {"weights": sum(p.numel() for p in model.parameters())},
    )
    tokenizer, known = tokenizer_of(given.model), methods(given)
    some = cases((given.facts or setting.facts) + 2 * (setting.training.edits + 2))
    n = given.facts or setting.facts
    facts = [case.fact for case in some[:n]]
    moments = _moments(log, model, tokenizer, known, setting)
    log.part(
        "causal trace",
        lambda: edu.causal_trace(model, tokenizer, facts[0], samples=setting.samples),
        unit="fact",
        tell=lambda trace: {"cells": trace.effect.numel()},
    )
    pair = (model, tokenizer)
    changes = [_edit(log, pair, facts, known[name], moments) for name in known]
    _mend(log, pair, some[n:], facts[:1], setting)
    _applied(log, model, changes[1])
    _kept(log, model, changes[1])


def _moments(log: Log, model, tokenizer, known, setting: Setting) -> dict:
    """C of all layers that are written, where the model is, with its factor."""
    layers = sorted({layer for method in known.values() for layer in method.edited()})
    size = edu.arch.oriented(
        model.get_submodule(edu.arch.architecture_of(model).write(layers[0]))
    ).shape[1]
    lines = texts(tokenizer, int(setting.tokens_per_key * size))
    found = log.part(
        "second moments",
        lambda: edu.second_moment(
            model, tokenizer, lines, layers=layers, dataset="corpus", progress=False
        ),
        units=sum(len(tokenizer(line).input_ids) for line in lines),
        unit="token",
        tell=lambda moments: {
            "layers": layers,
            "d_in": size,
            "tokens": min(moment.count for moment in moments.values()),
        },
    )
    found = {layer: moment.on(model.device) for layer, moment in found.items()}
    log.part(
        "factors of C",
        lambda: [moment.factor for moment in found.values()],
        units=len(found),
        unit="layer",
    )
    return found


def _edit(log: Log, pair, facts, method, moments: dict) -> edu.Edit:
    """Write facts; the search and the solve are timed apart inside the whole."""
    name, facts = type(method).__name__, facts if method.several else facts[:1]
    device, units = log.given.device, {"units": len(facts), "unit": "fact"}
    searched, written = Timed(target_states, device), Timed(spread, device)
    with put(edutools.batch, "spread", written):
        change = log.part(
            "editing",
            lambda: edu.edit(
                *pair, facts, method=method, moments=moments, find=searched
            ),
            method=name,
            tell=_told,
            **units,
        )
    parts = {"value search": searched.seconds, "keys and solve": written.seconds}
    for part, seconds in parts.items():
        if seconds:  # ROME spreads nothing
            log.add(part, method=name, seconds=seconds, n=1, **units)
    return change


def _told(change: edu.Edit) -> dict[str, Any]:
    """What the edit says of itself: steps of the search, and how well it was solved."""
    steps = max(change.info.get("search", {}).get("iterations", [0]))
    told = {"rank": change.rank, "steps": steps}
    for name in ("condition", "residual"):
        found = [_numbers(x[name]) for x in change.info.get("solved", {}).values()]
        told |= {name: max(map(max, found))} if found else {}
    return told


def _numbers(named: dict[str, float]) -> list[float]:
    """The values, 0 if there are none."""
    return [*named.values(), 0.0]


def _mend(log: Log, pair, others, facts, setting: Setting) -> None:
    half, training = len(others) // 2, setting.training
    layers = (25, 26, 27) if log.given.size == "full" else (7, 8)
    begun = edu.MEND(layers=layers, rank=setting.rank)
    mend = log.part(
        "training",
        lambda: begun.fit(
            *pair,
            others[:half],
            held_out=others[half:],
            training=training,
            progress=False,
        ),
        units=training.steps,
        unit="step",
        method="MEND",
        tell=lambda _: {"rank": setting.rank},
    )
    log.part(
        "editing",
        lambda: edu.edit(*pair, facts, method=mend),
        units=len(facts),
        unit="fact",
        method="MEND",
    )


def _applied(log: Log, model, change: edu.Edit) -> None:
    before = log.part("hashing", lambda: digest(model), tell=lambda it: {"hash": it})
    weights = {"units": len(change.deltas), "unit": "weight", "method": "MEMIT"}
    undo = log.part("applying", lambda: change.apply_(model), **weights)
    between = digest(model)
    log.part("undoing", undo, **weights)
    same = digest(model) == before
    log.add("undone", whole=same, changed=between != before, note=f"same bits: {same}")
    if not same or between == before:
        raise RuntimeError(f"Undo did not restore the weights: {before}, {between}")


def _kept(log: Log, model, change: edu.Edit) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "edit"
        log.part("saving", lambda: change.save_pretrained(place), method="MEMIT")
        size = sum(file.stat().st_size for file in place.iterdir())
        again = log.part(
            "loading",
            lambda: edu.Edit.from_pretrained(place),
            method="MEMIT",
            tell=lambda _: {"bytes": size},
        )
    same = all(
        again.deltas[name].equal(delta.to("cpu"))
        for name, delta in change.deltas.items()
    )
    log.add("loaded", whole=same, note=f"same change: {same}")
    if not same:
        raise RuntimeError("The loaded edit differs from the one that was saved.")


if __name__ == "__main__":
    raise SystemExit(main())
