"""The methods that the studies compare, and how the numbers of several draws are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import torch
from torch import Tensor

import edutools as edu
from edutools.batch import BatchMethod
from edutools.method import Method, Moments
from edutools.studies import student
from experiments.study import Bank, Setup

BATCHED = (edu.MEMIT, edu.EMMET, edu.AlphaEdit)


def one_layer(method: BatchMethod) -> BatchMethod:
    """The same method, at its last layer only."""
    return replace(method, layers=method.layers[-1:])


def closed_forms(setup: Setup) -> dict[str, BatchMethod]:
    """MEMIT, EMMET and AlphaEdit with the model's presets, at one layer."""
    return {
        kind.__name__: one_layer(kind.preset(setup.name)).resolved(
            setup.model, setup.tokenizer
        )
        for kind in BATCHED
    }


def layers_of(methods: Mapping[str, Method]) -> set[int]:
    """The layers whose second moments these methods need."""
    return {at for m in methods.values() if m.needs_moments for at in m.edited()}


def write(
    setup: Setup,
    cases: Sequence[edu.Case],
    method: Method,
    moments: Moments,
    bank: Bank | None = None,
) -> edu.Edit:
    """All cases in one batch; values come from the bank if the method searches some."""
    return edu.edit(
        setup.model,
        setup.tokenizer,
        [case.fact for case in cases],
        method=method,
        moments=moments,
        find=bank if method.searches else None,
    )


def norm(change: edu.Edit) -> float:
    """The Frobenius norm of all changes of an edit."""
    sizes = [delta.dense().double().norm() for delta in change.deltas.values()]
    return float(torch.stack(sizes).norm())


def ranks(values: Sequence[float]) -> Tensor:
    """From 1 for the smallest; equal values share the mean of their ranks."""
    x = torch.tensor(values, dtype=torch.float64)
    below, same = x[None] < x[:, None], x[None] == x[:, None]
    return below.sum(1) + (same.sum(1) + 1) / 2


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The rank correlation of two lists; nan if one of them is constant."""
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    return float((x @ y) / (x.norm() * y.norm()))


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """How alike two lists order their places: tau-b, which sets ties aside.

    nan if one of them is constant.
    """
    x, y = (torch.sign(r[:, None] - r[None]) for r in (ranks(a), ranks(b)))
    return float((x * y).sum() / (x.norm() * y.norm()))


def interval(values: Sequence[float]) -> dict[str, float]:
    """The mean, half of its 95 % interval by Student's t, and how many are not nan."""
    known = [value for value in values if not math.isnan(value)]
    n = len(known)
    if n < 2:
        return {"mean": fmean(known or [math.nan]), "half": math.nan, "n": n}
    half = student(n - 1) * stdev(known) / math.sqrt(n)
    return {"mean": fmean(known), "half": half, "n": n}
