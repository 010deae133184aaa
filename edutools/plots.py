"""Figures: each takes a result and an Axes, draws, and returns the Axes.

Colours are told apart by readers with colour-blindness and in print; lines also differ
in their markers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from edutools.effects import ROLES, MeanEffect, Trace
from edutools.evaluate import RATES, Report
from edutools.search import TargetStates

__all__ = [
    "PALETTE",
    "kind_lines",
    "mean_effect_heatmap",
    "mean_effect_lines",
    "probability_bars",
    "report_bars",
    "search_lines",
    "trace_heatmap",
]

# Okabe and Ito's colours, the darker ones first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
MAPS = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}
NAMES = {"hidden": "state", "mlp": "MLP output", "attention": "attention output"}


def trace_heatmap(trace: Trace, *, ax: Axes | None = None) -> Axes:
    """The probability that restoring each state brings back: tokens by layers.

    The scale begins at the corrupted run, so that what stays white has no effect.
    Subject tokens, which are corrupted, carry a star.

    Book: sec-tracing-runs
    """
    ax = _axes(ax, height=0.6 + 0.3 * len(trace.tokens))
    first, end = trace.subject
    image = ax.imshow(
        trace.p_restored.numpy(),
        cmap=MAPS[trace.kind],
        aspect="auto",
        vmin=trace.p_corrupt,
        vmax=max(trace.p_clean, float(trace.p_restored.max()), trace.p_corrupt + 1e-6),
    )
    shown = [token.replace("\n", "\\n") or "∅" for token in trace.tokens]
    marked = [f"{t}*" if first <= i < end else t for i, t in enumerate(shown)]
    ax.set_yticks(range(len(marked)), marked)
    _layer_ticks(ax, trace.p_restored.shape[1])
    ax.figure.colorbar(image, ax=ax, label=f"P({trace.answer.strip()})")
    ax.set_title(_restored(trace.kind, trace.window))
    return ax


def mean_effect_heatmap(effect: MeanEffect, *, ax: Axes | None = None) -> Axes:
    """The mean effect of restoring each state: roles of tokens by layers.

    Book: sec-tracing-average
    """
    ax = _axes(ax, height=2.6)
    image = ax.imshow(
        effect.mean.numpy(),
        cmap=MAPS[effect.kind],
        aspect="auto",
        vmin=0,
        vmax=max(1e-6, float(effect.mean.nan_to_num(0).max())),
    )
    ax.set_yticks(range(len(ROLES)), ROLES)
    _layer_ticks(ax, effect.mean.shape[1])
    ax.figure.colorbar(image, ax=ax, label="mean effect")
    ax.set_title(f"{_restored(effect.kind, effect.window)}, {max(effect.facts)} facts")
    return ax


def mean_effect_lines(
    effect: MeanEffect, *, roles: Sequence[str] = ROLES, ax: Axes | None = None
) -> Axes:
    """The mean effect by layer, one line with its 95 % interval for each role.

    Book: sec-tracing-average
    """
    ax = _axes(ax)
    for i, role in enumerate(roles):
        row = ROLES.index(role)
        if effect.facts[row]:
            _band(ax, effect.mean[row], effect.half[row], i, role)
    return _effect_axes(
        ax, f"{_restored(effect.kind, effect.window)}, {max(effect.facts)} facts"
    )


def kind_lines(
    effects: Sequence[MeanEffect],
    *,
    role: str = "last subject token",
    ax: Axes | None = None,
) -> Axes:
    """States, MLPs and attention compared at one role of token, by layer.

    Book: sec-tracing-average
    """
    ax = _axes(ax)
    row = ROLES.index(role)
    for i, effect in enumerate(effects):
        _band(ax, effect.mean[row], effect.half[row], i, NAMES[effect.kind])
    return _effect_axes(ax, role)


def probability_bars(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    names: tuple[str, str] = ("before", "after"),
    ax: Axes | None = None,
) -> Axes:
    """Probabilities of the same answers before and after an edit, as pairs of bars.

    Raises:
        ValueError: if the two do not name the same answers.

    Book: sec-rewriting-one-fact
    """
    if list(before) != list(after):
        raise ValueError(
            f"before names {list(before)}, after names {list(after)}; give the same "
            "answers in the same order."
        )
    ax = _axes(ax, height=0.8 + 0.5 * len(before))
    place = np.arange(len(before))
    for i, values in enumerate((before, after)):
        bars = ax.barh(
            place + (i - 0.5) * 0.38,
            list(values.values()),
            height=0.36,
            color=PALETTE[i],
            label=names[i],
        )
        ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.set_yticks(place, [name.strip() for name in before])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12)
    ax.set_xlabel("probability")
    ax.legend(frameon=False)
    return ax


def report_bars(reports: Mapping[str, Report], *, ax: Axes | None = None) -> Axes:
    """Efficacy, paraphrase, neighborhood and score of some reports, with intervals.

    Book: sec-evaluation-report
    """
    ax = _axes(ax)
    metrics = (*RATES, "score")
    place = np.arange(len(metrics))
    width = 0.8 / max(1, len(reports))
    for i, (name, report) in enumerate(reports.items()):
        rows = [report[metric] for metric in metrics]
        means = np.array([row.mean for row in rows])
        reach = np.array(
            [[row.mean - row.low, row.high - row.mean] for row in rows]
        ).T.clip(min=0)
        ax.bar(
            place + (i - (len(reports) - 1) / 2) * width,
            means,
            width=0.92 * width,
            yerr=reach,
            capsize=3,
            color=PALETTE[i % len(PALETTE)],
            label=f"{name} (n={len(report)})",
        )
    ax.set_xticks(place, metrics)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("fraction")
    ax.legend(frameon=False)
    return ax


def search_lines(found: TargetStates, *, ax: Axes | None = None) -> Axes:
    """How the target's probability rises during the value search, one line per fact.

    Book: sec-rome-value
    """
    ax = _axes(ax)
    history = found.history["probability"]
    for i, row in enumerate(history):
        ax.plot(row.numpy(), color=PALETTE[i % len(PALETTE)], alpha=0.8)
        last = int(found.iterations[i]) - 1
        ax.plot(last, float(row[last]), "o", color=PALETTE[i % len(PALETTE)])
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("evaluation of the loss")
    ax.set_ylabel("mean probability of the target")
    return ax


def _axes(ax: Axes | None, *, height: float = 3.2) -> Axes:
    if ax is not None:
        return ax
    return plt.subplots(figsize=(6.4, height), layout="constrained")[1]


def _band(ax: Axes, mean: Any, half: Any, i: int, label: str) -> None:
    color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
    layers = np.arange(len(mean))
    mean, half = mean.numpy(), half.numpy()
    ax.plot(layers, mean, color=color, marker=marker, markersize=4, label=label)
    ax.fill_between(layers, mean - half, mean + half, color=color, alpha=0.15, lw=0)


def _effect_axes(ax: Axes, title: str) -> Axes:
    ax.axhline(0, color="#777777", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel("mean effect on P(answer)")
    ax.set_title(title)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _layer_ticks(ax: Axes, layers: int) -> None:
    step = max(1, -(-layers // 12))
    ax.set_xticks(range(0, layers, step))
    ax.set_xlabel("layer")


def _restored(kind: str, window: int) -> str:
    many = f"windows of {window} layers" if window > 1 else "one layer"
    return f"Restoring the {NAMES[kind]}, {many}"
