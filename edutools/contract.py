"""What every editing method promises, as checks that name the broken promise."""

import copy
import tempfile
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.change import Edit
from edutools.facts import Fact
from edutools.method import Method
from edutools.methods import edit
from edutools.moments import SecondMoment
from edutools.scoring import score

__all__ = ["check_contract"]

Weights = dict[str, Shaped[Tensor, "..."]]


def check_contract(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    moments: Mapping[int, SecondMoment],
) -> Edit:
    """Check that a method keeps all promises on one model; return the edit it made.

    Args:
        method: the method under test.
        model: a small one; it is given back unchanged if the method keeps its word.
        tokenizer: the model's.
        facts: what to write; the model must not say the targets already.
        moments: second moments of the method's layers.

    Raises:
        AssertionError: names the promise that is broken.

    Book: sec-testing
    """

    def make(facts: Sequence[Fact] = facts) -> Edit:
        return edit(model, tokenizer, facts, method=method, moments=moments)

    with _unchanged(model, "`edit` leaves the model as it was, bit for bit"):
        change = make()
    _promise(bool(change.deltas), "`edit` changes at least one weight")
    _promise(_same(change, make()), "the same call gives the same edit")
    _check_undo(model, change)
    _check_undo(copy.deepcopy(model).bfloat16(), change)
    _check_undo(copy.deepcopy(model).half(), change)
    _check_saved(model, change)
    _check_effect(model, tokenizer, facts[0], make(facts[:1]))
    _check_missing(model, tokenizer, facts, method)
    return change


class _unchanged:  # noqa: N801 (reads as a statement)
    """Compare weights, gradients, modes and hooks before and after a block."""

    def __init__(self, model: PreTrainedModel, promise: str):
        self.model, self.promise = model, promise

    def __enter__(self) -> None:
        self.before, self.state = _weights(self.model), _state(self.model)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            same = _equal(self.before, _weights(self.model))
            _promise(same and self.state == _state(self.model), self.promise)


def _weights(model: PreTrainedModel) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _state(model: PreTrainedModel) -> list[object]:
    parameters = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    return [*parameters, *modules]


def _equal(first: Weights, second: Weights) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def _same(first: Edit, second: Edit) -> bool:
    return first.deltas.keys() == second.deltas.keys() and all(
        delta.equal(second.deltas[name]) for name, delta in first.deltas.items()
    )


def _promise(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"Broken promise: {promise}.")


def _check_undo(model: PreTrainedModel, change: Edit) -> None:
    dtype = str(model.dtype).removeprefix("torch.")
    before = _weights(model)
    with _unchanged(model, f"undo restores every bit in {dtype}"):
        undo = change.apply_(model)
        applied = _weights(model)
        undo()
    _promise(not _equal(before, applied), f"the edit changes the model in {dtype}")
    with _unchanged(model, "`with edit.applied(model)` gives the weights back"):
        with change.applied(model):
            inside = _weights(model)
    _promise(_equal(applied, inside), "`applied` does what `apply_` does")
    with _unchanged(model, "the weights come back when an exception flies"):
        try:
            with change.applied(model):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass


def _check_saved(model: PreTrainedModel, change: Edit) -> None:
    with tempfile.TemporaryDirectory() as folder:
        change.save_pretrained(folder)
        loaded = Edit.from_pretrained(folder)
    _promise(_same(change, loaded), "a saved edit is loaded as it was")
    with change.applied(model):
        expected = _weights(model)
    with loaded.applied(model):
        _promise(_equal(expected, _weights(model)), "a loaded edit does the same")


def _check_effect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    change: Edit,
) -> None:
    before = score(model, tokenizer, [fact.text], [fact.target]).joint
    with change.applied(model):
        after = score(model, tokenizer, [fact.text], [fact.target]).joint
    _promise(
        bool(after > before),
        f"a fact that is written alone becomes more probable; {fact.target!r} after "
        f"{fact.text!r} had log-probability {float(before):.3f} and has "
        f"{float(after):.3f}",
    )


def _check_missing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    method: Method,
) -> None:
    layers = method.edited() if method.needs_moments else ()
    if not layers or getattr(method, "covariance", "moments") == "identity":
        return
    try:
        edit(model, tokenizer, facts, method=method, moments={})
    except ValueError as error:
        text = str(error)
        named = all(str(layer) in text for layer in layers)
        _promise(named, f"an error for missing moments names the layers; got {text!r}")
    else:
        _promise(False, "missing moments are refused with a ValueError")
