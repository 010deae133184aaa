"""The value search: which state at the subject makes the model say the target.

ROME's v* and MEMIT's z are the same search at two places. All facts and contexts go
through the model together; the facts do not influence one another.

Axes: n facts · contexts · steps evaluations of the loss.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import check_layer, n_layers
from edutools.capacity import facts_per_pass
from edutools.checks import number
from edutools.descent import RECORDED, Descent
from edutools.facts import Fact
from edutools.hooks import evaluating, frozen
from edutools.keyvalue import ValueSearch, beginning
from edutools.objective import Objective
from edutools.rows import SearchRows

__all__ = ["Find", "TargetStates", "target_states"]


@dataclass(frozen=True)
class TargetStates:
    """The values found by `target_states`, with the record of the search.

    Attributes:
        values: the wanted state of each fact, one column per fact, float64.
        initial: the state before, at the same place on the bare prompt.
        history: for 'loss' and its parts 'nll', 'kl', 'decay' (nats), for the mean
            'probability' of the target, and for the share of contexts in which it is
            'said' by first choices: one row per fact, one column per evaluation, nan
            after a fact has finished.

    Book: sec-rome-value
    """

    values: Float[Tensor, "d_out n"]
    initial: Float[Tensor, "d_out n"]
    history: dict[str, Float[Tensor, "n steps"]]

    @property
    def iterations(self) -> Int[Tensor, " n"]:
        """How many evaluations each fact took."""
        return (~self.history["loss"].isnan()).sum(1)

    @property
    def probability(self) -> Float[Tensor, " n"]:
        """The target's mean probability over contexts at the value found, per fact."""
        last = self.iterations[:, None] - 1
        return self.history["probability"].gather(1, last)[:, 0]

    def summary(self) -> dict[str, list[float]]:
        """How each fact's search ended, as plain numbers for the record."""
        return {
            "probability": self.probability.tolist(),
            "iterations": self.iterations.tolist(),
        }

    def __repr__(self) -> str:
        n = self.values.shape[1]
        p = float(self.probability.mean())
        return f"TargetStates(n={n}, mean probability={p:.3f})"


Find = Callable[..., TargetStates]  # called as `target_states` is


def target_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    *,
    search: ValueSearch,
    groups: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> TargetStates:
    """Search, for each fact, the state at its subject that makes the model say it.

    All facts of a batch are searched together; a finished one leaves the batch. Facts
    do not influence one another: the result is that of one search per fact. The blocks
    up to the layer are run once, since δ does not change them. Weights and their
    gradients stay untouched; δ is float32 whatever the model is.

    Args:
        model: its weights stay untouched.
        tokenizer: the model's.
        facts: what the model shall say.
        layer: where δ is added. At the last layer it cannot reach the answer.
        search: what to minimise and how far to go.
        groups: a number per fact; facts with the same one share one value, which
            minimises the mean of their losses. They must share subject and prompt up
            to its end. By default each fact has its own value.
        batch_size: facts per pass; changes memory and speed only. None: as many as
            fit, see `edutools.capacity.facts_per_pass`.
        progress: show a bar that counts facts.

    Returns:
        Values and the trajectory of every part of the loss.

    Raises:
        ValueError: if the layer does not exist or is the last, a subject is lost, or
            facts of one group begin differently.
        RuntimeError: if a loss is not a number.

    Source: Meng et al. 2022 (ROME), eq. 4; Meng et al. 2023 (MEMIT), eq. 16.
    Book: sec-rome-value
    """
    check_layer(model, layer)
    if layer == n_layers(model) - 1:
        raise ValueError(
            f"Layer {layer} is the last one: what is written there at the subject "
            "cannot reach the answer. Choose an earlier layer."
        )
    if batch_size is not None:
        number("batch_size", batch_size, int, least=1)
    contexts = search.contexts.texts(model, tokenizer)
    objective = Objective.at(model, layer, search)
    groups = _checked_groups(facts, groups)
    order, done = [], []
    bar = tqdm(total=len(facts), desc="values", disable=not progress)
    with bar, evaluating(model), frozen(model):
        size = batch_size or _fitting(objective, tokenizer, facts, contexts)
        for batch in _batches(facts, groups, size):
            order += batch
            part = [facts[i] for i in batch]
            rows = SearchRows.of(tokenizer, part, contexts, essence=search.essence)
            values = list(dict.fromkeys(groups[i] for i in batch))
            owner = torch.tensor([values.index(groups[i]) for i in batch])
            descent = Descent(objective, rows, owner, size)
            descent.run()
            done.append(descent)
            _check_finite(descent, part, layer)
            bar.update(len(part))
    back = torch.tensor(order).argsort()
    return TargetStates(
        values=torch.cat([d.initial + d.delta_h for d in done])[back].T.double(),
        initial=torch.cat([d.initial for d in done])[back].T.double(),
        history={p: torch.cat([d.history[p] for d in done])[back] for p in RECORDED},
    )


def _checked_groups(facts: Sequence[Fact], groups: Sequence[int] | None) -> list[int]:
    """A number per fact, after a look whether those who share one have the same key."""
    groups = list(range(len(facts)) if groups is None else groups)
    if len(groups) != len(facts):
        raise ValueError(
            f"Got {len(facts)} facts and {len(groups)} groups; each fact needs one."
        )
    first: dict[int, int] = {}
    for i, group in enumerate(groups):
        texts = beginning(facts[first.setdefault(group, i)]), beginning(facts[i])
        if texts[0] != texts[1]:
            raise ValueError(
                f"Facts {first[group]} and {i} are in one group but begin differently, "
                f"{texts[0]!r} and {texts[1]!r}, so they have different keys. Give "
                "them different groups."
            )
    return groups


def _fitting(
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
) -> int:
    """How many facts like the longest one fit into memory."""
    if len(facts) < 2:
        return 1
    longest = max(facts, key=lambda fact: len(fact.text) + len(fact.target))
    essence = objective.search.essence
    rows = SearchRows.of(tokenizer, [longest], contexts, essence=essence)
    return facts_per_pass(objective, rows)


def _batches(
    facts: Sequence[Fact], groups: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Indices of facts of similar length; a group is never torn apart."""
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    batch: list[int] = []
    for part in sorted(
        members.values(), key=lambda part: max(len(facts[i].text) for i in part)
    ):
        if batch and len(batch) + len(part) > batch_size:
            yield batch
            batch = []
        batch += part
    yield batch


def _check_finite(found: Descent, facts: Sequence[Fact], layer: int) -> None:
    bad = (~(found.initial + found.delta_h).isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise RuntimeError(
            f"The value search for {facts[bad[0]].text!r} at layer {layer} ran into "
            "numbers that are not finite. Lower ValueSearch.lr, or load the model in "
            "float32 or bfloat16."
        )
