"""Where second moments come from, and which of them fit which model."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.loaded import embedding_weight, fetched, tokenizes
from edutools.momentfolder import checked_moments
from edutools.prompts import token_ids
from edutools.provenance import fingerprint, fingerprints, provenance
from edutools.secondmoment import SecondMoment

__all__ = ["check_moments", "empty_moment", "identity_moment", "marks"]

EMBEDDING = ("embedding", "embedding_float16")  # one of them fits in any precision
PROBE = "The Eiffel Tower is in Paris."  # shows what a tokenizer adds to a text


def empty_moment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layer: int,
    **info: Any,
) -> SecondMoment:
    """The moment of a layer that has seen nothing yet, and knows where it is from.

    Args:
        model: whose keys it will see.
        tokenizer: the model's tokenizer.
        layer: whose keys.
        info: what else shall be known, such as the data set.

    Raises:
        ValueError: if the model has no such layer.

    Book: sec-second-moment
    """
    tokenizes(tokenizer)
    info = _origin(model, check_layer(model, layer)) | {
        "tokenizer": f"{type(tokenizer).__name__} of {len(tokenizer)} tokens",
        **info,
    }
    return SecondMoment.empty(_d_in(model, layer), info)


def marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Fingerprints of all weights and of the tokenizer, by which a run is recognised.

    Weights that are fetched for each pass are left out.

    Book: sec-second-moment
    """
    weights = hashlib.sha256()
    for weight in model.parameters():
        if not weight.is_meta:
            weights.update(fingerprint(weight).encode())
    known = repr([sorted(tokenizer.get_vocab().items()), token_ids(tokenizer, [PROBE])])
    return {
        "weights": weights.hexdigest()[:16],
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": hashlib.sha256(known.encode()).hexdigest()[:16],
    }


def identity_moment(model: PreTrainedModel, layer: int) -> SecondMoment:
    """Return C = I in place of a measured moment: it protects no key in particular.

    Some published implementations use it silently; here it has to be asked for.

    Raises:
        ValueError: if the model has no such layer.

    Book: sec-second-moment
    """
    check_layer(model, layer)
    arch = architecture_of(model)
    d_in = oriented(submodule(model, arch.write(layer))).shape[1]
    info = _origin(model, layer) | {"dataset": "none (identity)"}
    return SecondMoment(torch.eye(d_in, dtype=torch.float64) * d_in, d_in, info)


def check_moments(
    model: PreTrainedModel,
    moments: Mapping[int, SecondMoment] | None,
    layers: Sequence[int],
    *,
    method: str = "The method",
) -> None:
    """Refuse moments that cannot serve to edit these layers of this model.

    Args:
        model: the model to be edited.
        moments: layer -> moment.
        layers: the layers to be edited.
        method: name of the method, for the message.

    Raises:
        TypeError: if they are no moments by layer.
        ValueError: if a moment is missing, belongs to another model, is not finite, or
            counts fewer tokens than keys have dimensions.

    Book: sec-second-moment
    """
    moments = checked_moments({} if moments is None else moments)
    missing = [layer for layer in layers if layer not in moments]
    if missing:
        raise ValueError(
            f"{method} edits layers {list(layers)} but moments has none for {missing}. "
            f"Compute it with second_moment(model, tokenizer, texts, "
            f"{f'layer={missing[0]}' if len(missing) == 1 else f'layers={missing}'})."
        )
    for layer in layers:
        _check_origin(model, moments[layer], layer)


def _check_origin(model: PreTrainedModel, moment: SecondMoment, layer: int) -> None:
    name = provenance(model)["model"] or "this model"
    origin = f"measured on {moment.info.get('model') or 'an unnamed model'!r}"
    d_in, size = _d_in(model, layer), len(moment.total)
    if size != d_in:
        raise ValueError(
            f"moments[{layer}] is {size} x {size}, {origin}; layer {layer} of {name!r} "
            f"takes keys of size {d_in}. Measure it on this model."
        )
    known = {moment.info.get(key) for key in EMBEDDING} - {None}
    if known and known.isdisjoint(_embedding(model).values()):
        raise ValueError(
            f"moments[{layer}] was {origin}, whose token embedding differs from that "
            f"of {name!r}. Measure it on this model."
        )
    if moment.info.get("layer", layer) != layer:
        raise ValueError(
            f"moments[{layer}] was measured at layer {moment.info['layer']}. Measure "
            f"it at layer {layer}."
        )
    if not moment.finite:
        raise ValueError(
            f"moments[{layer}] holds a NaN or an infinity. Measure it again, with the "
            "model in float32 or bfloat16."
        )
    if moment.count < d_in:
        raise ValueError(
            f"moments[{layer}] counts {moment.count} tokens for keys of size {d_in}, "
            f"so it has no inverse. Use at least {d_in} tokens (100,000 is usual)."
        )


def _origin(model: PreTrainedModel, layer: int) -> dict[str, Any]:
    arch = architecture_of(model)
    write = submodule(model, arch.write(layer))
    with fetched(write):
        mark = fingerprint(oriented(write))
    return provenance(model) | {
        "layer": layer,
        "module": arch.write(layer),
        "weight": mark,
        **_embedding(model),
    }


def _embedding(model: PreTrainedModel) -> dict[str, str]:
    """The fingerprints of the embedding, by which a model is recognised."""
    marks = fingerprints(embedding_weight(model))
    return dict(zip(EMBEDDING, marks, strict=True))


def _d_in(model: PreTrainedModel, layer: int) -> int:
    return oriented(submodule(model, architecture_of(model).write(layer))).shape[1]
