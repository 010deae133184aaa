"""Second moments over ever more tokens, and what is done to those over too few."""

from dataclasses import replace

import torch

import edutools as edu
from edutools.arch import architecture_of, oriented, submodule
from edutools.corpus import documents, text_of
from edutools.world import build_world
from experiments.study import Setup

TIMES = (0.1, 0.3, 1, 3, 10, 30, 100)  # tokens over the size of a key
SHRINK = 0.01  # of the mean eigenvalue


def ladder(setup: Setup, layer: int, seed: int) -> dict[float, edu.SecondMoment]:
    """For each of `TIMES` the moment over so many tokens; larger ones hold smaller."""
    write_map = submodule(setup.model, architecture_of(setup.model).write(layer))
    world, size = build_world(), oriented(write_map).shape[1]
    found: dict[float, edu.SecondMoment] = {}
    known = None
    for i, times in enumerate(TIMES):
        texts = (text_of(d) for d in documents(world, seed=1000 * (seed + 1) + i))
        more = edu.second_moment(
            setup.model,
            setup.tokenizer,
            texts,
            layer=layer,
            tokens=round(times * size) - (known.count if known else 0),
            progress=False,
        )
        known = found[times] = known + more if known else more
    return found


def mean_eigenvalue(moment: edu.SecondMoment) -> float:
    """tr(C) / d."""
    return float(moment.value.trace()) / len(moment.total)


def shrunk(moment: edu.SecondMoment) -> edu.SecondMoment:
    """C and a little of I, which counts as the d tokens that it takes."""
    size = len(moment.total)
    eye = torch.eye(size, dtype=torch.float64)
    C = moment.value + SHRINK * mean_eigenvalue(moment) * eye
    count = moment.count + size
    return replace(moment, total=C * count, count=count)
