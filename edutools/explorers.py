"""Figures to be touched, which live on a static page without a kernel.

Where `frames` shows pictures drawn beforehand, an explorer computes: its small script
solves the same closed form as the package, in two dimensions, while a point is moved.
"""

# ruff: noqa: N803, N806 (the papers' symbols)

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import number
from edutools.factored import LowRank
from edutools.solve import memit_update, rome_update

__all__ = ["LAMS", "UpdateExplorer", "explore_update"]

LAMS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
EDGE = 110  # from the middle of a panel to its edge, in units of the picture
STYLE = """
.edu-explorer svg { display: inline-block; width: min(22rem, 49%); height: auto;
  touch-action: pan-y; }
.edu-explorer .frame { fill: none; stroke: currentColor; stroke-opacity: 0.25; }
.edu-explorer .axis { stroke: currentColor; stroke-opacity: 0.25; }
.edu-explorer text { fill: currentColor; font-size: 11px; }
.edu-explorer .ring { fill: none; stroke: #009E73; stroke-width: 1.5; }
.edu-explorer .still { stroke: #009E73; stroke-width: 1.5; stroke-dasharray: 5 4; }
.edu-explorer .old { fill: currentColor; fill-opacity: 0.55; }
.edu-explorer .shift { stroke: #CC79A7; stroke-width: 1.5; }
.edu-explorer .key { stroke: #0072B2; fill: #0072B2; stroke-width: 2; }
.edu-explorer .value { stroke: #D55E00; fill: #D55E00; stroke-width: 2; }
.edu-explorer .handle { cursor: grab; touch-action: none; }
.edu-explorer .handle circle { fill-opacity: 0.25; }
.edu-explorer .handle:focus-visible { outline: 2px solid currentColor; }
.edu-explorer .handle text { stroke: none; font-weight: bold; fill: currentColor; }
.edu-explorer p { margin: 0.25rem 0; }
@media (max-width: 40rem) { .edu-explorer svg { width: 100%; } }
html[data-theme="dark"] .bd-content div.cell_output div.text_html:has(.edu-explorer) {
  background: none; color: inherit; }
"""


@dataclass(frozen=True, eq=False, repr=False)
class UpdateExplorer:
    """A figure in which a key and its new value can be moved. Made by `explore_update`.

    Args:
        W: the weight to be changed.
        K0: old keys, one per column; they are drawn, and C is their second moment.
        k: where the new key stands at first.
        v: where its wanted value stands at first.
        lam: how soft the fit is at first; 0 is exact. One of `LAMS`.
        title: what the figure is about; read aloud as the name of the group.

    Book: sec-pm-geometry
    """

    W: Float[Tensor, "2 2"]
    K0: Float[Tensor, "2 N"]
    k: Float[Tensor, "2"]
    v: Float[Tensor, "2"]
    lam: float
    title: str

    @property
    def C(self) -> Float[Tensor, "2 2"]:  # noqa: N802
        """The second moment of the old keys, per key."""
        return self.K0 @ self.K0.T / self.K0.shape[1]

    def delta(self) -> LowRank:
        """The change that the figure shows at first."""
        if self.lam == 0:
            return rome_update(self.W, self.k, self.v, self.C)
        K, V = self.k[:, None], self.v[:, None]
        return memit_update(self.W, K, V, self.C, self.lam)

    def readout(self) -> dict[str, float]:
        """The numbers below the figure: q = kᵀC⁻¹k, error of the fit, disturbance.

        The error is |(W + Δ)k - v|, the disturbance tr(Δ C Δᵀ).
        """
        delta = self.delta().dense()  # (2, 2)
        q = self.k @ torch.linalg.solve(self.C, self.k)
        error = ((self.W + delta) @ self.k - self.v).norm()
        disturbance = torch.trace(delta @ self.C @ delta.T)
        found = {"q": q, "error": error, "disturbance": disturbance}
        return {name: float(value) for name, value in found.items()}

    def __repr__(self) -> str:
        """Say what the figure shows at first; the same text in every run."""
        told = ", ".join(f"{n} {_short(x)}" for n, x in self.readout().items())
        k, v = (f"({_short(x[0])}, {_short(x[1])})" for x in (self.k, self.v))
        return (
            f"UpdateExplorer({self.title!r}, key {k}, value {v}, λ {self.lam:g}: "
            f"{told})"
        )

    def _repr_html_(self) -> str:
        given = {
            "W": _rounded(self.W),
            "C": _rounded(self.C),
            "K0": _rounded(self.K0.T),
            "k": _rounded(self.k),
            "v": _rounded(self.v),
            "lams": LAMS,
            "reach": [_reach(self.K0, self.k), _reach(self.W @ self.K0, self.v)],
        }
        start = LAMS.index(self.lam)
        return (
            f'<div class="edu-explorer" role="group" '
            f'aria-label="{html.escape(self.title)}" '
            f'data-given="{html.escape(json.dumps(given))}"><style>{STYLE}</style>'
            f"<p><strong>{html.escape(self.title)}</strong></p>"
            f"{_panel('key')}{_panel('value')}"
            '<p><label>λ <input type="range" class="lam" min="0" step="1" '
            f'max="{len(LAMS) - 1}" value="{start}" aria-label="lambda"> '
            f"<output>{LAMS[start]:g}</output></label> "
            '<label><input type="checkbox" class="plain"> forget C (C = I)</label> '
            '<button type="button">back to the start</button></p>'
            '<p class="readout" aria-live="polite"></p>'
            f"<script>{_script()}</script></div>"
        )


def explore_update(
    W: Float[Tensor, "2 2"],
    K0: Float[Tensor, "2 N"],
    k: Float[Tensor, "2"],
    v: Float[Tensor, "2"],
    *,
    lam: float = 0.0,
    title: str = "Move the key and the value",
) -> UpdateExplorer:
    r"""Draw one edit in the plane, with a key and a value that can be moved.

    .. math:: \Delta = \frac{(v - W k)\,(C^{-1}k)^\top}{\lambda + k^\top C^{-1} k}

    On the left is the space of keys, on the right that of values. Take a point with
    the mouse or a finger; or put the focus on it with the tabulator and move it with
    the arrow keys, in larger steps together with the shift key.

    Args:
        W: the weight to be changed.
        K0: old keys, one per column. Of several hundred the picture gets crowded.
        k: where the new key stands at first.
        v: where its wanted value stands at first.
        lam: λ at first, one of `LAMS`; 0 is the exact fit.
        title: what the figure is about.

    Returns:
        The figure; the same input gives the same HTML.

    Raises:
        ValueError: if lam is none of `LAMS`, the old keys lie on one line, or k is
            zero.

    Book: sec-pm-geometry

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> explore_update(0 * I, I, I[0], I[1], lam=1.0)
    UpdateExplorer('Move the key and the value', key (1, 0), value (0, 1), λ 1: q 2,
    error 0.333, disturbance 0.222)
    """
    number("lam", lam, float)
    if lam not in LAMS:
        choices = ", ".join(f"{x:g}" for x in LAMS)
        raise ValueError(f"lam={lam} is no position of the slider; take {choices}.")
    W, K0, k, v = (x.double() for x in (W, K0, k, v))
    figure = UpdateExplorer(W, K0, k, v, float(lam), title)
    figure.delta()  # refuses what cannot be solved
    return figure


def _panel(kind: str) -> str:
    """One half of the picture; the script puts everything into its place."""
    what = {
        "key": "Space of keys: old keys as dots, the new key k to be moved, the "
        "ellipse of C, and a dashed line of keys that the edit leaves alone",
        "value": "Space of values: old values as dots, with a line from where each "
        "was before the edit; the wanted value v to be moved",
    }[kind]
    size = EDGE + 10
    edge = f'x="{-EDGE}" y="{-EDGE}" width="{2 * EDGE}" height="{2 * EDGE}"'
    name = {"key": "k", "value": "v"}[kind]
    return (
        f'<svg class="{kind}s" viewBox="{-size} {-size} {2 * size} {2 * size}" '
        f'role="group" aria-label="{what}"><rect class="frame" {edge}/>'
        f'<line class="axis" x1="{-EDGE}" x2="{EDGE}"/>'
        f'<line class="axis" y1="{-EDGE}" y2="{EDGE}"/>'
        f'<text x="{-EDGE + 5}" y="{-EDGE + 14}">{kind}s</text>'
        '<g class="drawn"></g>'
        f'<g class="handle {kind}" tabindex="0" role="slider" '
        f'aria-label="{kind} {name}" aria-roledescription="point" '
        'aria-valuemin="-100" aria-valuemax="100" aria-valuenow="0">'
        f'<circle r="9"/><circle r="2.5"/><text x="11" y="-7">{name}</text></g></svg>'
    )


def _script() -> str:
    path = Path(__file__).with_name("explorers.js")
    return path.read_text(encoding="utf-8").replace("EDGE", str(EDGE))


def _reach(columns: Float[Tensor, "2 N"], point: Float[Tensor, "2"]) -> float:
    """Half the width of a panel that shows all of this, with room to move."""
    return round(1.3 * float(torch.cat([columns, point[:, None]], 1).abs().max()), 3)


def _rounded(x: Float[Tensor, "..."]) -> Sequence[float] | Sequence[Sequence[float]]:
    return (x.mul(1e6).round().div(1e6) + 0.0).tolist()


def _short(x: float | Float[Tensor, ""]) -> str:
    return f"{round(float(x), 3) + 0.0:.3g}"
