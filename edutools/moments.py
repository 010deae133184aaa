"""Measure what an edit must not disturb: C = E[k kᵀ] of a layer over ordinary text.

Every token counts, padding never. Moments are measured before any edit and carry what
identifies the model, so that those of another model are refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.checks import number, several
from edutools.hooks import capture, evaluating
from edutools.loaded import readable, tokenizes
from edutools.prompts import Batch
from edutools.provenance import fingerprint, fingerprints, provenance
from edutools.secondmoment import (
    SecondMoment,
    checked_moments,
    load_moments,
    save_moments,
)
from edutools.stream import Portion, batches, chunks

__all__ = [
    "SecondMoment",
    "check_moments",
    "identity_moment",
    "load_moments",
    "save_moments",
    "second_moment",
]

EMBEDDING = ("embedding", "embedding_float16")  # one of them fits in any precision


@overload
def second_moment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    layer: int,
    layers: None = None,
    dataset: str = "",
    shard: tuple[int, int] = (0, 1),
    batch_tokens: int = 4096,
    progress: bool = True,
) -> SecondMoment: ...
@overload
def second_moment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    layer: None = None,
    layers: Sequence[int],
    dataset: str = "",
    shard: tuple[int, int] = (0, 1),
    batch_tokens: int = 4096,
    progress: bool = True,
) -> dict[int, SecondMoment]: ...
def second_moment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    dataset: str = "",
    shard: tuple[int, int] = (0, 1),
    batch_tokens: int = 4096,
    progress: bool = True,
) -> SecondMoment | dict[int, SecondMoment]:
    r"""Measure C = E[k kᵀ] of one layer, or of several in one pass.

    .. math:: C = \frac1N \sum_{\text{tokens}} k\,k^\top

    The pass stops after the highest layer asked for. Texts are cut off at the model's
    context and weigh as much as they have tokens. The model must be the one that is to
    be edited, before any edit.

    Args:
        model: whose keys.
        tokenizer: the model's tokenizer.
        texts: ordinary text; empty ones count for nothing but a BOS, if there is one.
        layer: one layer, for a single moment.
        layers: several layers, for a dict of moments.
        dataset: what the texts are, for the record.
        shard: (rank, world): of every `world` texts only the one of this rank. The
            moments of all ranks are merged into that of all texts.
        batch_tokens: tokens per forward pass, padding included.
        progress: show a progress bar if there is a terminal.

    Returns:
        A `SecondMoment` for `layer`, a dict from layer to `SecondMoment` for `layers`.

    Raises:
        TypeError: if texts are one text, or hold something else.
        ValueError: if not exactly one of layer and layers is given, a layer does not
            exist, a key is not finite, or there is no text with a token in it.

    Source: Meng et al. 2022 (ROME), eq. 2 and appendix E.5.
    Book: sec-second-moment
    """
    if (layer is None) == (layers is None):
        raise ValueError(
            f"Give either layer=17 or layers=(3, 4, 5); got layer={layer!r} and "
            f"layers={layers!r}."
        )
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        several("texts", texts, str)  # refuses; a stream of texts is not held
    number("batch_tokens", batch_tokens, int, least=1)
    limit = getattr(model.config, "max_position_embeddings", None)
    portion = Portion(max_length=limit, shard=shard)
    wanted = several("layers", layers, int) if layer is None else [layer]
    moments = {item: _start(model, tokenizer, item, dataset) for item in wanted}
    if not moments:
        raise ValueError("layers is empty. Give at least one layer.")
    with tqdm(
        desc="second moment", unit=" tokens", disable=not progress or None
    ) as bar:
        for chunk in chunks(tokenizer, texts, portion):
            for batch in batches(tokenizer, chunk.rows, batch_tokens=batch_tokens):
                moments = _updated(model, batch.to(model.device), moments)
                bar.update(int(batch.mask.sum()))
    if portion.shard == (0, 1) and not all(m.count for m in moments.values()):
        raise ValueError("The texts have no tokens. Give one that is not empty.")
    moments = {item: moment.to("cpu") for item, moment in moments.items()}
    return moments if layer is None else moments[layer]


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
    write = oriented(submodule(model, arch.write(layer)))
    return provenance(model) | {
        "layer": layer,
        "module": arch.write(layer),
        "weight": fingerprint(write),
        **_embedding(model),
    }


def _embedding(model: PreTrainedModel) -> dict[str, str]:
    """The fingerprints of the embedding, by which a model is recognised."""
    weight = model.get_parameter(f"{architecture_of(model).embedding}.weight")
    return dict(zip(EMBEDDING, fingerprints(weight), strict=True))


def _start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layer: int,
    dataset: str,
) -> SecondMoment:
    tokenizes(tokenizer)
    info = _origin(model, check_layer(model, layer)) | {
        "tokenizer": f"{type(tokenizer).__name__} of {len(tokenizer)} tokens",
        "dataset": dataset,
    }
    return SecondMoment.empty(_d_in(model, layer), info)


@torch.no_grad()
def _updated(
    model: PreTrainedModel, batch: Batch, moments: Mapping[int, SecondMoment]
) -> dict[int, SecondMoment]:
    """The moments that have also seen this batch, from one pass."""
    names = {layer: moment.info["module"] for layer, moment in moments.items()}
    readable(model, batch.ids)
    with (
        evaluating(model),
        capture(model, names.values(), inputs=True, stop=True) as seen,
    ):
        seen.run(**batch.inputs, use_cache=False)
    return {
        layer: moments[layer].update(seen[name], batch.mask.to(seen[name].device))
        for layer, name in names.items()
    }


def _d_in(model: PreTrainedModel, layer: int) -> int:
    return oriented(submodule(model, architecture_of(model).write(layer))).shape[1]
