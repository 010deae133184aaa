"""What several processes do together, and one alone: statistics, searches, evaluations.

Each process has the whole model and does its part; all of them get the result. Every
function here is called by all processes of a group, see `ranks.joined`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.facts import Fact
from edutools.moments import SecondMoment, second_moment
from edutools.ranks import Ranks
from edutools.report import Report
from edutools.search import Find, TargetStates, target_states

__all__ = ["shared_moments", "shared_report", "shared_search"]


def shared_moments(
    ranks: Ranks,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Any,
    *,
    layers: Sequence[int],
    **options: Any,
) -> dict[int, SecondMoment]:
    """`second_moment` of several layers, each process with its share of the texts.

    Args:
        ranks: this process and the others.
        model: whose keys.
        tokenizer: the model's tokenizer.
        texts: all of them, in every process.
        layers: layers to measure.
        options: of `second_moment`.

    Returns:
        In every process, the moments over all texts.

    Raises:
        ValueError: if no text has a token, or as `second_moment`.

    Book: sec-scale-processes
    """
    mine = second_moment(
        model,
        tokenizer,
        texts,
        layers=layers,
        shard=(ranks.rank, ranks.size),
        **options,
    )
    count = torch.tensor([float(moment.count) for moment in mine.values()]).double()
    counts = [int(n) for n in ranks.total(count).tolist()]
    if not all(counts):
        raise ValueError("The texts have no tokens. Give one that is not empty.")
    return {
        layer: replace(
            moment,
            total=ranks.total(moment.total),
            count=n,
            info={key: x for key, x in moment.info.items() if key != "shards"},
        )
        for (layer, moment), n in zip(mine.items(), counts, strict=True)
    }


def shared_search(ranks: Ranks) -> Find:
    """`target_states` for `edit(..., find=...)`, each process with its share of facts.

    Facts that share a value stay together. Facts do not influence one another, so what
    is found differs from one process's search by rounding only.

    Book: sec-scale-processes
    """

    def find(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        layer: int,
        *,
        groups: Sequence[int] | None = None,
        **options: Any,
    ) -> TargetStates:
        groups = list(range(len(facts)) if groups is None else groups)
        kinds = list(dict.fromkeys(groups))
        everyone = [replace(ranks, rank=rank) for rank in range(ranks.size)]
        owner = {kind: one.rank for one in everyone for kind in one.share(kinds)}
        order = sorted(range(len(facts)), key=lambda i: owner[groups[i]])
        mine = [i for i in order if owner[groups[i]] == ranks.rank]
        part = None
        if mine:
            part = target_states(
                model,
                tokenizer,
                [facts[i] for i in mine],
                layer,
                groups=[groups[i] for i in mine],
                **options,
            )
        return _in_order(_gathered(ranks, part), order)

    return find


def shared_report(
    ranks: Ranks, measure: Callable[[list[Any]], Report], cases: Sequence[Any]
) -> Report:
    """The report on all cases, each process having measured its share.

    Args:
        ranks: this process and the others.
        measure: gives the report on some cases, at least one.
        cases: all of them, in every process.

    Raises:
        ValueError: as `measure`.

    Book: sec-scale-processes
    """
    mine = ranks.share(cases)
    if ranks.size == 1:
        return measure(mine)
    told = json.dumps(measure(mine).to_dict() if mine or not cases else None)
    found = [json.loads(text) for text in ranks.gather_texts(told)]
    return Report.join([Report.from_dict(data) for data in found if data is not None])


def _gathered(ranks: Ranks, part: TargetStates | None) -> list[TargetStates]:
    """What the processes have found, in the order of ranks; some may have nothing."""
    sent = {}
    if part is not None:
        sent = {f"history.{name}": column for name, column in part.history.items()}
        sent |= {"values": part.values, "initial": part.initial}
    return [
        TargetStates(
            values=got["values"],
            initial=got["initial"],
            history={
                name.removeprefix("history."): column
                for name, column in got.items()
                if name.startswith("history.")
            },
        )
        for got in ranks.gather(sent)
        if got
    ]


def _in_order(parts: Sequence[TargetStates], order: Sequence[int]) -> TargetStates:
    """The parts as one; `order` says which fact each column belongs to."""
    back = torch.tensor(order).argsort()
    names = parts[0].history
    return TargetStates(
        values=torch.cat([part.values for part in parts], 1)[:, back],
        initial=torch.cat([part.initial for part in parts], 1)[:, back],
        history={
            n: torch.cat([part.history[n] for part in parts])[back] for n in names
        },
    )
