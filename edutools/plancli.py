"""The command `plan`: what an edit will need, before anything is loaded."""

import json
from typing import Annotated, Any

import typer

from edutools.options import method_of
from edutools.outline import outline, published_name
from edutools.planning import Plan, Scale, available, plan, readable_size
from edutools.pocket import chosen
from edutools.tables import plain, table

__all__ = ["describe_plan", "plan_command", "plan_values"]


def _option(name: str, *, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, **more)


def plan_command(
    *,
    method: Annotated[str, _option("--method", text="Such as rome, memit or ft.")],
    model: Annotated[
        str | None,
        _option(
            "--model",
            text="A pocket model, a folder, an id on the Hub, or, without a network, "
            "gpt2-xl, gpt-j-6b or llama-2-7b.  [default: what EDUTOOLS_MODEL says, "
            "else pocket-gptj-organism]",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        _option("--preset", text="Settings of this model.  [default: of the model]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        _option(
            "--set",
            metavar="NAME=VALUE",
            text="A setting such as layers=5,6; may be repeated.",
        ),
    ] = None,
    facts: Annotated[int, _option("--facts", min=1, text="How many.")] = 1,
    tokens: Annotated[int, _option("--tokens", min=1, text="Of a prompt.")] = 16,
    moment_tokens: Annotated[
        int,
        _option(
            "--moment-tokens",
            min=0,
            text="Behind second moments; 0 if they are measured already.",
        ),
    ] = 100_000,
    batch_tokens: Annotated[
        int, _option("--batch-tokens", min=1, text="Per pass, of second moments.")
    ] = 4096,
    batch_size: Annotated[
        int, _option("--batch-size", min=1, text="Texts per pass, of an evaluation.")
    ] = 64,
    dtype: Annotated[
        str | None,
        _option("--dtype", text="Of the weights.  [default: as they are stored]"),
    ] = None,
    device_memory: Annotated[
        str | None,
        _option(
            "--device-memory",
            text="Refuse what does not fit: 24GB, 22.5GiB, or auto for this machine.",
        ),
    ] = None,
    as_json: Annotated[
        bool, _option("--json", text="Print JSON instead of a table.")
    ] = False,
) -> None:
    """Tell what an edit will need in memory and operations; nothing is loaded."""
    name = chosen(model)
    memory, shared = available(device_memory) if device_memory else (None, False)
    known = published_name(name) or name
    how = method_of(
        method,
        model=known,
        preset=preset,
        settings=settings or (),
    )
    found = plan(
        outline(name, dtype=dtype),
        method=how,
        scale=Scale(
            facts=facts,
            tokens=tokens,
            moment_tokens=moment_tokens,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
        ),
        memory=memory,
    )
    if memory is not None:
        found.check(memory, shared=shared)
    told = json.dumps(plain(plan_values(found)), indent=2, allow_nan=False)
    typer.echo(told if as_json else describe_plan(found))


def plan_values(found: Plan) -> dict[str, Any]:
    """A plan as plain values; sizes in bytes.

    Book: sec-command-line
    """
    times = found.times()
    return {
        "model": found.model,
        "dtype": str(found.dtype).removeprefix("torch."),
        "method": found.method,
        "facts": found.scale.facts,
        "weights": found.weights,
        "peak": found.peak,
        "main_memory": found.host_peak,
        "phases": [
            {
                "name": phase.name,
                "device": dict(phase.device),
                "main_memory": dict(phase.host),
                "least": phase.floor,
                "units": phase.units,
                "unit": phase.unit,
                "flops": phase.flops,
                "measured": vars(times[phase.name]) if times[phase.name] else None,
            }
            for phase in found.phases
        ],
    }


def describe_plan(found: Plan) -> str:
    """A plan as text: a line per part of the work, then what each part holds.

    Book: sec-command-line
    """
    times = found.times()
    head = ["part", "memory", "main memory", "work", "TFLOP", "measured"]
    rows = [
        [
            phase.name,
            readable_size(phase.peak),
            readable_size(phase.host_peak) if phase.host else "-",
            f"{phase.units:,} {phase.unit}{'s' if phase.units > 1 else ''}",
            f"{phase.flops / 1e12:,.3g}",
            str(times[phase.name] or "not measured"),
        ]
        for phase in found.phases
    ]
    held = [
        [phase.name, purpose, readable_size(size)]
        for phase in found.phases
        for purpose, size in phase.device.items()
        if size >= phase.peak / 20
    ]
    name, facts = found.method["method"], found.scale.facts
    return "\n".join(
        [
            f"{name} of {facts} fact{'s' if facts > 1 else ''} on {found.model!r}, "
            f"{str(found.dtype).removeprefix('torch.')}",
            f"weights {readable_size(found.weights)}; at the worst moment, "
            f"{found.worst.name}: {readable_size(found.peak)}",
            "",
            table(head, rows),
            "",
            table(["part", "what takes memory beside the weights", "size"], held),
        ]
    )
