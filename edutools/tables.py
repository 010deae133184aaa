"""Results as plain text for a terminal, and as plain values for JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from edutools.change import Edit
from edutools.effects import Trace
from edutools.evaluate import Report, Row
from edutools.moments import SecondMoment

__all__ = [
    "describe_edit",
    "describe_moments",
    "describe_reports",
    "describe_trace",
    "dumped",
    "edit_values",
    "moment_values",
    "plain",
    "report_values",
    "table",
    "trace_values",
]

SHOWN = 5  # facts


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, numbers to the right.

    Book: sec-command-line

    >>> print(table(["layer", "tokens"], [["3", "1,024"], ["4", "960"]]))
    layer  tokens
        3   1,024
        4     960
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [
        bool(rows) and all(_is_number(c) for c in column[1:]) for column in columns
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (head, *rows)
    ]
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell.strip("-+%").replace(",", "").replace(".", "").strip().isdecimal()


def plain(value: Any) -> Any:
    """The same in what JSON knows: NaN and infinity become null.

    Book: sec-command-line

    >>> plain({"mean": float("nan"), "layers": (3, 4)})
    {'mean': None, 'layers': [3, 4]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumped(value: Any) -> str:
    """The text of `plain` values in JSON.

    Book: sec-command-line
    """
    return json.dumps(plain(value), indent=2, allow_nan=False)


def trace_values(trace: Trace) -> dict[str, Any]:
    """What `causal_trace` found, with one row of effects per token.

    Book: sec-command-line
    """
    return {
        "prompt": trace.fact.text,
        "tokens": list(trace.tokens),
        "roles": list(trace.roles),
        "answer": trace.answer,
        "kind": trace.kind,
        "window": trace.window,
        "severed": trace.severed,
        "samples": trace.samples,
        "noise": trace.noise,
        "p_clean": trace.p_clean,
        "p_corrupt": trace.p_corrupt,
        "total_effect": trace.total_effect,
        "effect": trace.effect.tolist(),
    }


def describe_trace(trace: Trace) -> str:
    """Each token with the layer whose state brings back most.

    Book: sec-command-line
    """
    best, layers = trace.effect.max(1)
    rows = [
        [repr(token), role, f"{effect:.3f}", str(layer)]
        for token, role, effect, layer in zip(
            trace.tokens, trace.roles, best.tolist(), layers.tolist(), strict=True
        )
    ]
    reach = f"{trace.window} layer{'s' if trace.window > 1 else ''}"
    cut = f", {trace.severed} severed" if trace.severed else ""
    return "\n".join(
        [
            f"{trace.fact.text!r} is answered by {trace.answer!r}",
            f"clean {trace.p_clean:.3f}, corrupted {trace.p_corrupt:.3f}, "
            f"total effect {trace.total_effect:.3f}",
            f"restored: {trace.kind}, {reach} at a time{cut}; {trace.samples} noises",
            "",
            table(["token", "role", "largest effect", "layer"], rows),
        ]
    )


def moment_values(moments: Mapping[int, SecondMoment]) -> dict[str, Any]:
    """Size, tokens and origin of each layer's second moment.

    Book: sec-command-line
    """
    return {
        str(layer): {"size": len(m.total), "tokens": m.count, "info": dict(m.info)}
        for layer, m in moments.items()
    }


def describe_moments(moments: Mapping[int, SecondMoment]) -> str:
    """One line per layer: key size, tokens, data and model.

    Book: sec-command-line
    """
    rows = [
        [
            str(layer),
            f"{len(moment.total):,}",
            f"{moment.count:,}",
            str(moment.info.get("dataset") or "not recorded"),
            str(moment.info.get("model") or "not recorded"),
        ]
        for layer, moment in moments.items()
    ]
    return table(["layer", "key size", "tokens", "texts", "model"], rows)


def edit_values(change: Edit) -> dict[str, Any]:
    """Origin of an edit, and rank and size of what it adds to each weight.

    Book: sec-command-line
    """
    relative, norms = change.info.get("relative_norms", {}), change.norms()
    weights = {
        name: {
            "rank": delta.rank,
            "norm": norms[name],
            "relative_norm": relative.get(name),
        }
        for name, delta in change.deltas.items()
    }
    return {**change.info, "weights": weights}


def describe_edit(change: Edit) -> str:
    """Method, facts, weights and moments of an edit.

    Book: sec-command-line
    """
    info = change.info
    facts = list(info.get("facts", []))
    parts = [part.get("method", {}) for part in info.get("parts", [info])]
    names = dict.fromkeys(str(part.get("method", "unnamed")) for part in parts)
    told = [f"- {_sentence(fact)}" for fact in facts[:SHOWN]]
    if len(facts) > SHOWN:
        told.append(f"- and {len(facts) - SHOWN:,} more")
    sources = _sources(info.get("parts", [info]))
    settings = "" if len(parts) > 1 else _settings(parts[0])
    return "\n".join(
        [
            f"an edit of {info.get('model') or 'a model without a name'} by "
            f"{', '.join(names)}; facts: {len(facts):,}, rank: {change.rank:,}",
            *told,
            "",
            _weights(change),
            *(["", *sources] if sources else []),
            *(
                [fill(f"settings: {settings}", 76, subsequent_indent="  ")]
                if settings
                else []
            ),
        ]
    )


def _weights(change: Edit) -> str:
    rows = [
        [name, str(w["rank"]), f"{w['norm']:.4g}", _percent(w["relative_norm"])]
        for name, w in edit_values(change)["weights"].items()
    ]
    return table(["weight", "rank", "norm", "of the weight"], rows)


def _percent(share: float | None) -> str:
    return "not recorded" if share is None else f"{100 * share:.1f} %"


def _sources(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    told = {
        f"moments of layer {layer}: {moment.get('tokens', 0):,} tokens of "
        f"{moment.get('dataset') or 'texts that are not recorded'}": None
        for part in parts
        for layer, moment in part.get("moments", {}).items()
    }
    return list(told)


def _settings(method: Mapping[str, Any], prefix: str = "") -> str:
    told = []
    for name, value in method.items():
        if isinstance(value, Mapping):
            told.append(_settings(value, f"{prefix}{name}."))
        elif name != "method" and not (name == "given" and value):
            told.append(f"{prefix}{name}={value}".replace(" ", ""))
    return " ".join(filter(None, told))


def _sentence(fact: Mapping[str, Any]) -> str:
    before, _, after = str(fact["prompt"]).partition("{}")
    text = f"{before}{fact['subject']}{after} -> {fact['target']}"
    return f"{text} (before: {fact['truth']})" if fact.get("truth") else text


def report_values(report: Report) -> dict[str, Any]:
    """Every metric with mean, 95 % interval and number of cases.

    Book: sec-command-line
    """
    metrics = {
        row.metric: {
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "n": row.n,
            "unit": row.unit,
            "note": row.note,
        }
        for row in report.summary()
    }
    return {"convention": report.convention, "metrics": metrics}


def describe_reports(before: Report, after: Report | None) -> str:
    """One report as it prints itself, or two side by side.

    Book: sec-command-line
    """
    if after is None:
        return str(before)
    changed = {row.metric: row for row in after.summary()}
    rows = [
        [row.metric, _cell(row), _cell(changed[row.metric]), f"{row.n:,}"]
        for row in before.summary()
        if row.metric in changed
    ]
    text = table(["metric", "before", "after", "cases"], rows)
    return f"{text}\nmeans with 95 % intervals; {before.convention}"


def _cell(row: Row) -> str:
    if math.isnan(row.mean):
        return "undefined"
    if math.isnan(row.low):
        return f"{row.mean:.3f}"
    return f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
