"""Facts written one batch after the other; several such sequences side by side.

An edit of one layer changes what this layer returns, and nothing that it reads. So the
next facts of several sequences, each to be written into other weights, can be searched
in one pass if every row gets the change of its own sequence there. Five facts together
take little longer than one.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, cat, nn

import edutools as edu
from edutools.arch import architecture_of, submodule
from edutools.batch import BatchMethod
from edutools.method import Moments
from edutools.search import TargetStates, target_states
from experiments.study import Setup

__all__ = ["Line", "in_turn", "searched_together", "write_next"]

OneLayer = edu.ROME | BatchMethod
KNOWN = "Fact .*: the model already says"  # what was written before may say it


@dataclass
class Line:
    """A sequence of edits, as far as it has been written.

    Attributes:
        cases: what it writes, in this order.
        moments: of the method's layers, and what a method wants remembered.
        total: the sum of all changes so far.
        done: how many of the cases they write.
    """

    cases: Sequence[edu.Case]
    moments: Moments
    total: edu.Edit = field(default_factory=edu.Edit)
    done: int = 0

    def next(self, batch: int) -> list[edu.Fact]:
        """The next facts; fewer than a batch, or none, at the end."""
        return [case.fact for case in self.cases[self.done : self.done + batch]]

    def write(
        self,
        setup: Setup,
        method: OneLayer,
        facts: Sequence[edu.Fact],
        values: TargetStates | None = None,
    ) -> None:
        """Write facts into the model as the earlier ones have left it.

        Args:
            setup: whose model is given back unedited.
            method: keys of earlier facts are handed on to one that spares them.
            facts: the next ones.
            values: of these facts; None: to be searched.
        """
        model, tokenizer = setup.model, setup.tokenizer
        with self.total.applied(model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", KNOWN)
            if values is None:
                more = edu.edit(
                    model, tokenizer, facts, method=method, moments=self.moments
                )
            else:  # of a fact whose subject the search has found: no more to check
                more = method.compute(
                    model, tokenizer, facts, self.moments, find=lambda *_, **__: values
                )
        total, moments = self.total + more, self.moments
        if isinstance(method, BatchMethod) and method.remembers:
            with total.applied(model):
                moments = edu.remember(
                    model, tokenizer, facts, method=method, moments=moments
                )
        self.total, self.moments, self.done = total, moments, self.done + len(facts)


def in_turn(
    setup: Setup,
    cases: Sequence[edu.Case],
    method: OneLayer,
    moments: Moments,
    *,
    batch: int = 1,
) -> Iterator[tuple[int, edu.Edit]]:
    """Batch after batch, each found on the model as the earlier ones have left it.

    Yields:
        How many cases are written, and the sum of all edits so far.
    """
    line = Line(cases, moments)
    while facts := line.next(batch):
        line.write(setup, method, facts)
        yield line.done, line.total


def write_next(
    setup: Setup, lines: Sequence[Line], method: OneLayer, *, batch: int
) -> dict[int, str]:
    """Write the next batch of every line; single facts are searched in one pass.

    Returns:
        What went wrong, by the place of the line; the others are written.
    """
    parts = [line.next(batch) for line in lines]
    values: Sequence[TargetStates | None] = [None] * len(lines)
    if batch == 1 and len(lines) > 1:
        totals, facts = [line.total for line in lines], [fact for (fact,) in parts]
        try:
            values = searched_together(setup, method, facts, totals)
        except RuntimeError:  # not finite in one of them: it will turn out in which
            pass
    wrong = {}
    for i, (line, facts) in enumerate(zip(lines, parts, strict=True)):
        try:
            line.write(setup, method, facts, values[i])
        except (ValueError, RuntimeError) as error:
            wrong[i] = str(error)
    return wrong


def searched_together(
    setup: Setup,
    method: OneLayer,
    facts: Sequence[edu.Fact],
    totals: Sequence[edu.Edit],
) -> list[TargetStates]:
    """The values of facts, each for the model with a change of its own.

    Args:
        setup: whose model is unedited.
        method: writes one layer, with its contexts written down.
        facts: one for each change.
        totals: changes of that layer.
    """
    (layer,) = method.layers
    name = architecture_of(setup.model).write(layer)
    order = sorted(range(len(facts)), key=lambda i: len(facts[i].text))
    found = [totals[i].deltas.get(name) for i in order]
    moves = [delta and delta.dense() for delta in found]  # each (d_out, d_in) or None
    hook = submodule(setup.model, name).register_forward_hook(_each_its_own(moves))
    try:
        values = target_states(
            setup.model,
            setup.tokenizer,
            [facts[i] for i in order],  # as the search would sort them
            layer,
            search=method.search,
            batch_size=len(facts),
        )
    finally:
        hook.remove()
    at = {i: place for place, i in enumerate(order)}
    return [_one(values, at[i]) for i in range(len(facts))]


def _each_its_own(
    moves: Sequence[Tensor | None],
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook on the written weight; the rows of a pass are those of fact after fact."""

    def add(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        parts = zip(
            args[0].chunk(len(moves)), output.chunk(len(moves)), moves, strict=True
        )
        return cat([v if m is None else v + k @ m.to(k).T for k, v, m in parts])

    return add


def _one(found: TargetStates, at: int) -> TargetStates:
    place = slice(at, at + 1)
    history = {name: part[place] for name, part in found.history.items()}
    return TargetStates(found.values[:, place], found.initial[:, place], history)
