"""Results of causal tracing: one trace, and the average of many by role of token.

Axes: tokens of a prompt · layers · roles that tokens play · facts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import several
from edutools.facts import Fact

if TYPE_CHECKING:
    import pandas

__all__ = ["ROLES", "MeanEffect", "Trace", "average_effect"]

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


@dataclass(frozen=True, eq=False)
class Trace:
    """What restoring each state of one prompt brings back of the answer.

    Attributes:
        fact: the fact that was traced.
        tokens: the prompt's tokens as text.
        subject: range [first, end) of the subject's tokens.
        answer: the token whose probability is followed.
        kind: what was restored: 'hidden' (block outputs), 'mlp' or 'attention'.
        window: how many layers around the named one were restored together.
        p_clean: probability of the answer in the clean run.
        p_corrupt: the same with the subject corrupted, mean over noise samples.
        p_restored: the same with one window restored, for each token and layer.
        samples: how many noise samples were averaged.
        noise: standard deviation of the noise, in units of the embedding.
        severed: what was cut off, or None.

    Book: sec-tracing-effects
    """

    fact: Fact
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    kind: str
    window: int
    p_clean: float
    p_corrupt: float
    p_restored: Float[Tensor, "tokens layers"]
    samples: int
    noise: float
    severed: str | None = None

    @property
    def total_effect(self) -> float:
        """How much probability the corruption costs (TE)."""
        return self.p_clean - self.p_corrupt

    @property
    def effect(self) -> Float[Tensor, "tokens layers"]:
        """How much probability restoring each state brings back (IE)."""
        return self.p_restored - self.p_corrupt

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each token, one of `ROLES`, or 'before subject'.

        The last token of the prompt is always 'last token'; a subject of one token
        has only a 'last subject token'.
        """
        return tuple(self._role(at) for at in range(len(self.tokens)))

    def _role(self, at: int) -> str:
        first, end = self.subject
        if at == len(self.tokens) - 1:
            return "last token"
        if at < first:
            return "before subject"
        if at >= end:
            return "first subsequent token" if at == end else "further tokens"
        if at == end - 1:
            return "last subject token"
        return "first subject token" if at == first else "middle subject tokens"

    def to_frame(self) -> "pandas.DataFrame":
        """One row per token and layer."""
        import pandas

        count, layers = self.p_restored.shape
        cells = [(t, layer) for t in range(count) for layer in range(layers)]
        return pandas.DataFrame(
            {
                "position": [t for t, _ in cells],
                "token": [self.tokens[t] for t, _ in cells],
                "role": [self.roles[t] for t, _ in cells],
                "layer": [layer for _, layer in cells],
                "p_restored": self.p_restored.flatten().tolist(),
                "effect": self.effect.flatten().tolist(),
            }
        )

    def __repr__(self) -> str:
        t, layer = divmod(int(self.effect.argmax()), self.effect.shape[1])
        return (
            f"Trace({self.fact.text!r}, kind={self.kind!r}, "
            f"total_effect={self.total_effect:.3f}, largest effect "
            f"{float(self.effect.max()):.3f} at {self.tokens[t]!r}, layer {layer})"
        )


@dataclass(frozen=True, eq=False)
class MeanEffect:
    """Effects averaged over facts, with 95 % intervals, by role of token and layer.

    Attributes:
        kind: what was restored.
        window: how many layers were restored together.
        facts: how many facts have a token of each role; the n of each row.
        mean: mean effect (AIE); nan where no fact has the role.
        half: half the width of the 95 % interval, by the normal approximation; nan
            where fewer than two facts have the role.
        total_effect: mean total effect (ATE).
        total_half: half the width of its 95 % interval.
        p_clean: mean probability of the answer in the clean runs.
        p_corrupt: mean probability of the answer in the corrupted runs.

    Book: sec-tracing-average
    """

    kind: str
    window: int
    facts: tuple[int, ...]
    mean: Float[Tensor, "roles layers"]
    half: Float[Tensor, "roles layers"]
    total_effect: float
    total_half: float
    p_clean: float
    p_corrupt: float

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the rows."""
        return ROLES

    def at(self, role: str) -> Float[Tensor, " layers"]:
        """The mean effect of one role, by layer.

        Raises:
            ValueError: if there is no such role.
        """
        if role not in ROLES:
            raise ValueError(f"No role {role!r}. Known: {', '.join(ROLES)}.")
        return self.mean[ROLES.index(role)]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per role and layer."""
        import pandas

        layers = self.mean.shape[1]
        return pandas.DataFrame(
            {
                "role": [role for role in ROLES for _ in range(layers)],
                "layer": list(range(layers)) * len(ROLES),
                "mean": self.mean.flatten().tolist(),
                "low": (self.mean - self.half).flatten().tolist(),
                "high": (self.mean + self.half).flatten().tolist(),
                "facts": [n for n in self.facts for _ in range(layers)],
            }
        )

    def __repr__(self) -> str:
        best = int(self.mean.nan_to_num(-1).argmax())
        role, layer = divmod(best, self.mean.shape[1])
        return (
            f"MeanEffect(kind={self.kind!r}, facts={max(self.facts)}, ATE="
            f"{self.total_effect:.3f}, largest AIE {float(self.mean[role, layer]):.3f} "
            f"at {ROLES[role]!r}, layer {layer})"
        )


def average_effect(traces: Sequence[Trace]) -> MeanEffect:
    """Average traces of the same kind over facts, aligned by the role of each token.

    Within a fact, tokens of the same role are averaged first, so that every fact counts
    once. Tokens before the subject have no effect and no row.

    Args:
        traces: of the same kind, window and number of layers.

    Returns:
        Means over facts (AIE, ATE) with 95 % intervals.

    Raises:
        ValueError: if there is no trace, or they are of different kinds.

    Source: Meng et al. 2022 (ROME), figure 2 and appendix B.
    Book: sec-tracing-average
    """
    traces = several("traces", traces, Trace)
    kinds = {(t.kind, t.window, t.severed, t.effect.shape[1]) for t in traces}
    if len(kinds) != 1:
        raise ValueError(
            "average_effect needs traces of one kind, window and model; got "
            f"{sorted(map(str, kinds)) or 'none'}."
        )
    rows = torch.stack([_by_role(trace) for trace in traces]).double()
    totals = torch.tensor([t.total_effect for t in traces]).double()[:, None]
    mean, half, counts = _interval(rows)
    total, total_half, _ = _interval(totals)
    return MeanEffect(
        kind=traces[0].kind,
        window=traces[0].window,
        facts=tuple(counts[:, 0].tolist()),
        mean=mean,
        half=half,
        total_effect=float(total),
        total_half=float(total_half),
        p_clean=sum(t.p_clean for t in traces) / len(traces),
        p_corrupt=sum(t.p_corrupt for t in traces) / len(traces),
    )


def _by_role(trace: Trace) -> Float[Tensor, "roles layers"]:
    rows = []
    for role in ROLES:
        at = [i for i, its in enumerate(trace.roles) if its == role]
        # The mean of no tokens is nan: this fact has nothing to say about the role.
        rows.append(trace.effect[at].mean(0))
    return torch.stack(rows)


def _interval(values: Float[Tensor, "..."]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over facts, half of its 95 % interval, and the number of facts."""
    n = (~values.isnan()).sum(0)
    mean = values.nanmean(0)
    variance = (values - mean).square().nansum(0) / (n - 1)
    half = 1.959964 * (variance / n).sqrt()
    return mean, half.where(n > 1, torch.tensor(math.nan, dtype=half.dtype)), n
