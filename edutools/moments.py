"""Measure what an edit must not disturb: C = E[k kᵀ] of a layer over ordinary text.

Every token counts, padding never. Moments are measured before any edit and carry what
identifies the model, so that those of another model are refused.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checkpoint import Checkpoints
from edutools.checks import number, several, shown
from edutools.gather import gathered
from edutools.momentfolder import load_moments, merge_moments, save_moments
from edutools.origin import check_moments, empty_moment, identity_moment, marks
from edutools.progress import Progress
from edutools.secondmoment import SecondMoment
from edutools.stream import Portion

__all__ = [
    "SecondMoment",
    "check_moments",
    "identity_moment",
    "load_moments",
    "merge_moments",
    "save_moments",
    "second_moment",
]


@overload
def second_moment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    layer: int,
    layers: None = None,
    dataset: str = "",
    tokens: int | str | None = None,
    documents: int | None = None,
    max_length: int | None = None,
    shard: tuple[int, int] = (0, 1),
    checkpoint: str | Path | None = None,
    every: float = 600.0,
    batch_tokens: int = 4096,
    progress: bool | Callable[[Progress], None] = True,
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
    tokens: int | str | None = None,
    documents: int | None = None,
    max_length: int | None = None,
    shard: tuple[int, int] = (0, 1),
    checkpoint: str | Path | None = None,
    every: float = 600.0,
    batch_tokens: int = 4096,
    progress: bool | Callable[[Progress], None] = True,
) -> dict[int, SecondMoment]: ...
def second_moment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    dataset: str = "",
    tokens: int | str | None = None,
    documents: int | None = None,
    max_length: int | None = None,
    shard: tuple[int, int] = (0, 1),
    checkpoint: str | Path | None = None,
    every: float = 600.0,
    batch_tokens: int = 4096,
    progress: bool | Callable[[Progress], None] = True,
) -> SecondMoment | dict[int, SecondMoment]:
    r"""Measure C = E[k kᵀ] of one layer, or of several in one pass.

    .. math:: C = \frac1N \sum_{\text{tokens}} k\,k^\top

    The pass stops after the highest layer asked for. Texts weigh as much as they have
    tokens. The model must be the one that is to be edited, before any edit.

    Which tokens count is decided by the texts and their order, never by the size of
    the batches. Products are in float32 where the keys are, sums in float64.

    Args:
        model: whose keys.
        tokenizer: the model's tokenizer.
        texts: ordinary text; empty ones count for nothing but a BOS, if there is one.
        layer: one layer, for a single moment.
        layers: several layers, for a dict of moments.
        dataset: what the texts are, for the record; by default what
            `texts.read_texts` says.
        tokens: stop after exactly so many; the text in which they are reached is cut
            off there. '10*d' is ten times the size of a key, which serves as well as
            many more and takes minutes. None for all texts.
        documents: stop after so many texts; the papers' number is 100,000.
        max_length: tokens that a text is cut off at; the model's context by default, as
            in the papers.
        shard: (rank, world): of every `world` texts only the one of this rank. The
            moments of all ranks are merged into that of all texts.
        checkpoint: folder for what has been measured so far. A measurement that was
            interrupted goes on from there, with texts from the first on, and gives the
            same bits. Two files are kept; delete the folder when you have the result.
        every: seconds between two checkpoints.
        batch_tokens: tokens per forward pass, padding included.
        progress: show a progress bar if there is a terminal; or what is called with a
            `Progress` after each batch.

    Returns:
        A `SecondMoment` for `layer`, a dict from layer to `SecondMoment` for `layers`.

    Raises:
        TypeError: if texts are one text, or hold something else.
        ValueError: if not exactly one of layer and layers is given, a layer does not
            exist, a key is not finite, there is no text with a token in it, or the
            checkpoint is one of another measurement.

    Warns:
        UserWarning: if the texts end before tokens or documents are reached, or a
            checkpoint is damaged.

    Source: Meng et al. 2022 (ROME), eq. 2 and appendix E.5, whose code reads
        100,000 documents.
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
    wanted = several("layers", layers, int) if layer is None else [layer]
    portion = Portion(documents=documents, max_length=max_length, shard=shard)
    info: dict[str, Any] = {"dataset": dataset or str(getattr(texts, "source", ""))}
    if portion.shard != (0, 1):
        info["shards"] = {info["dataset"]: [list(portion.shard)]}
    moments = {item: empty_moment(model, tokenizer, item, **info) for item in wanted}
    if not moments:
        raise ValueError("layers is empty. Give at least one layer.")
    portion = replace(portion, tokens=_tokens(tokens, moments))
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None:
        portion = replace(portion, max_length=min(max_length or context, context))
    kept = None
    if checkpoint is not None:
        told = marks(model, tokenizer) | {"layers": sorted(wanted), **info}
        told |= asdict(portion) | {"batch_tokens": batch_tokens}
        kept = Checkpoints(checkpoint, identity=told, shard=portion.shard, every=every)
    found = gathered(
        model,
        tokenizer,
        texts,
        moments,
        portion=portion,
        batch_tokens=batch_tokens,
        checkpoints=kept,
        progress=progress,
    )
    return found if layer is None else found[layer]


def _tokens(
    tokens: int | str | None, moments: Mapping[int, SecondMoment]
) -> int | None:
    """How many tokens '10*d' are."""
    if not isinstance(tokens, str):
        return tokens
    found = re.fullmatch(r"([1-9]\d*) ?\* ?d", tokens.strip())
    if found is None:
        raise ValueError(
            f"tokens is {shown(tokens)}; give a number, or '10*d' for ten times the "
            "size of a key."
        )
    return int(found[1]) * max(len(moment.total) for moment in moments.values())
