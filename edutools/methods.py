"""`edit`, the verb: from facts, a method and moments to the change that writes them."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.batch import EMMET, MEMIT
from edutools.change import Edit, edit_info, weight_at
from edutools.checks import of_kind, several
from edutools.facts import Fact
from edutools.finetune import FineTune
from edutools.loaded import tokenizes
from edutools.merge import MEMITMerge
from edutools.method import Method, Moments
from edutools.momentfolder import checked_moments
from edutools.moments import identity_moment
from edutools.precision import chosen_precision
from edutools.prompts import fill
from edutools.rome import ROME
from edutools.rows import locate
from edutools.scoring import score
from edutools.search import Find
from edutools.sequential import ENCORE, AlphaEdit

__all__ = [
    "EMMET",
    "ENCORE",
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "FineTune",
    "MEMITMerge",
    "Method",
    "edit",
    "edit_each",
]


def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    method: Method,
    moments: Moments | None = None,
    precision: str = "auto",
    find: Find | None = None,
) -> Edit:
    """Find the change of weights that writes facts into a model.

    The model is not changed: apply the result with `applied` or `apply_`. Everything
    that can be known to fail is checked before the work begins.

    Args:
        model: is given back as it was, bit for bit.
        tokenizer: the model's.
        facts: what to write.
        method: how: ROME, MEMIT, EMMET, FineTune or a method of your own.
        moments: second moments of the layers to be written, by layer; methods that
            need none ignore them.
        precision: in which C is factorised, where the weight is: 'float64', 'refined'
            (float32, then refined), or 'auto', see `precision.chosen_precision`.
        find: who searches values, called as `search.target_states`, which is the
            default; `together.shared_search` lets several processes do it. Methods that
            search none ignore it.

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
    method, used = _prepared(model, tokenizer, facts, method, moments)
    used = _placed(model, method, used, precision)
    method.check(model, tokenizer, facts, used)
    _warn_of_known(model, tokenizer, facts)
    more = {"find": find} if find is not None and method.searches else {}
    found = method.compute(model, tokenizer, facts, used, **more)
    return _signed(model, found, facts, method, used)


def edit_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    method: Method,
    moments: Moments | None = None,
    precision: str = "auto",
) -> list[Edit]:
    """For each fact find the change that writes it alone, into the unedited model.

    As `edit` fact by fact, for evaluations of single edits; methods that can (ROME)
    search the values of all facts in one batch, which is many times faster.

    Args:
        model: is given back as it was, bit for bit.
        tokenizer: the model's.
        facts: what to write, one change each.
        method: how.
        moments: second moments of the layers to be written, by layer; methods that
            need none ignore them.
        precision: in which C is factorised, where the weight is: 'float64', 'refined'
            (float32, then refined), or 'auto', see `precision.chosen_precision`.

    Returns:
        One change per fact, to be applied one at a time.

    Raises:
        TypeError: as `edit` does.
        ValueError: as `edit` does.
        SubjectNotFound: if a subject is lost in tokenization.

    Warns:
        UserWarning: if the model already says a target.

    Book: sec-evaluation-report
    """
    facts = _checked(facts, method)
    method, used = _prepared(model, tokenizer, facts, method, moments)
    used = _placed(model, method, used, precision)
    for fact in facts:
        method.check(model, tokenizer, [fact], used)
    _warn_of_known(model, tokenizer, facts)
    edits = method.compute_each(model, tokenizer, facts, used)
    return [
        _signed(model, found, [fact], method, used)
        for fact, found in zip(facts, edits, strict=True)
    ]


def _prepared(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: list[Fact],
    method: Method,
    moments: Moments | None,
) -> tuple[Method, Moments]:
    """The method and the moments that will be used; refuses lost subjects."""
    architecture_of(model)
    tokenizes(tokenizer)
    locate(tokenizer, [fill(fact) for fact in facts])
    if not method.needs_moments:
        moments = {}
    elif getattr(method, "covariance", "moments") == "identity":
        layers = [check_layer(model, layer) for layer in method.edited()]
        moments = {layer: identity_moment(model, layer) for layer in layers}
    return method.resolved(model, tokenizer), moments or {}


def _placed(
    model: PreTrainedModel, method: Method, moments: Moments, precision: str
) -> Moments:
    """The moments, to be factorised where the weights are."""
    chosen_precision("cpu", precision)
    moments = checked_moments(moments)
    write, found = architecture_of(model).write, dict(moments)
    for layer in method.edited():
        if layer in moments:
            weight = oriented(submodule(model, write(check_layer(model, layer))))
            found[layer] = moments[layer].on(weight.device, precision)
    return found


def _signed(
    model: PreTrainedModel,
    found: Edit,
    facts: list[Fact],
    method: Method,
    moments: Moments,
) -> Edit:
    """The change with its origin: model, method, facts, moments and norms."""
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
    solved = {name: x.solved for name, x in found.deltas.items() if x.solved}
    if solved:
        info["solved"] = {name: asdict(told) for name, told in solved.items()}
    origin = edit_info(model, list(found.deltas))
    return Edit(found.deltas, {**origin, **info, **found.info})


def _relative_norms(model: PreTrainedModel, change: Edit) -> dict[str, float]:
    """Of each change against the weight it changes; of a bias of zeros it has none."""
    sizes = {n: float(weight_at(model, n).float().norm()) for n in change.deltas}
    return {
        name: norm / sizes[name] for name, norm in change.norms().items() if sizes[name]
    }


def _checked(facts: Any, method: Any) -> list[Fact]:
    of_kind("method", method, Method, "ROME(layer=5)")
    facts = several("facts", facts, Fact)
    if not facts:
        raise ValueError("Got no facts; edit needs at least one Fact.")
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
