"""`edit`, the verb: from facts, a method and moments to the change that writes them."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.batch import EMMET, MEMIT
from edutools.change import Edit, edit_info
from edutools.facts import Fact
from edutools.method import Method, Moments
from edutools.moments import identity_moment
from edutools.prompts import fill
from edutools.rome import ROME
from edutools.rows import locate
from edutools.scoring import score

__all__ = ["EMMET", "MEMIT", "ROME", "Method", "edit"]


def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    method: Method,
    moments: Moments | None = None,
) -> Edit:
    """Find the change of weights that writes facts into a model.

    The model is not changed: apply the result with `applied` or `apply_`. Everything
    that can be known to fail is checked before the work begins.

    Args:
        model: is given back as it was, bit for bit.
        tokenizer: the model's.
        facts: what to write.
        method: how: ROME, MEMIT, EMMET or a method of your own.
        moments: second moments of the layers to be written, by layer.

    Returns:
        The change, with its origin.

    Raises:
        TypeError: if facts or method are something else.
        ValueError: if there is no fact, a layer or a moment is missing or unfit, or the
            method cannot write these facts.
        SubjectNotFound: if a subject is lost in tokenization.

    Warns:
        UserWarning: if the model already says a target.

    Book: sec-rewriting-one-fact
    """
    facts = _checked(facts, method)
    architecture_of(model)
    locate(tokenizer, [fill(fact) for fact in facts])
    if getattr(method, "covariance", "moments") == "identity":
        layers = [check_layer(model, layer) for layer in method.edited()]
        moments = {layer: identity_moment(model, layer) for layer in layers}
    method = method.resolved(model, tokenizer)
    method.check(model, tokenizer, facts, moments or {})
    _warn_of_known(model, tokenizer, facts)
    found = method.compute(model, tokenizer, facts, moments or {})
    used = {layer: moments[layer] for layer in method.edited()} if moments else {}
    info = {
        "method": method.to_dict(),
        "facts": [asdict(fact) for fact in facts],
        "moments": {
            str(layer): {**moment.info, "tokens": moment.count}
            for layer, moment in used.items()
        },
        "relative_norms": _relative_norms(model, found),
    }
    origin = edit_info(model, list(found.deltas))
    return Edit(found.deltas, {**origin, **info, **found.info})


def _relative_norms(model: PreTrainedModel, change: Edit) -> dict[str, float]:
    return {
        name: norm / float(oriented(submodule(model, name)).float().norm())
        for name, norm in change.norms().items()
    }


def _checked(facts: Any, method: Any) -> list[Fact]:
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be a Method such as ROME(layer=5); got {method!r}."
        )
    if isinstance(facts, Fact):
        raise TypeError("facts must be several facts, not one. Pass [fact].")
    facts = list(facts)
    if not facts:
        raise ValueError("Got no facts; edit needs at least one Fact.")
    for i, fact in enumerate(facts):
        if not isinstance(fact, Fact):
            raise TypeError(f"facts[{i}] must be a Fact; got {fact!r}.")
    return facts


def _warn_of_known(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: list[Fact]
) -> None:
    prompts, targets = [f.text for f in facts], [f.target for f in facts]
    scores = score(model, tokenizer, prompts, targets)
    for i in scores.correct.nonzero()[:, 0].tolist():
        warnings.warn(
            f"Fact {i}: the model already says {' ' + targets[i]!r} with probability "
            f"{float(scores.joint[i].exp()):.2f}; the edit writes what is there.",
            stacklevel=3,
        )
