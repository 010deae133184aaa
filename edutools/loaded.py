"""Checks of loaded models and tokenizers: are they some, and do they go together?

Where a model is spread over devices, everything follows its weights. Those that
accelerate keeps on the CPU or the disk between passes are on the meta device meanwhile;
they can be read, but not edited.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from edutools.checks import shown

__all__ = [
    "a_model",
    "embedding_weight",
    "fetched",
    "in_memory",
    "input_device",
    "known",
    "not_nan",
    "readable",
    "tokenizes",
]


def a_model(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        TypeError: if it is the name of one, a tokenizer, or something else.

    Book: sec-errors
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a loaded model; got {shown(model)}. edutools.load and "
            "AutoModelForCausalLM.from_pretrained give one."
        )


def tokenizes(tokenizer: Any) -> None:
    """Refuse what is no tokenizer.

    Raises:
        TypeError: if it cannot turn tokens into text.

    Book: sec-errors
    """
    if not hasattr(tokenizer, "batch_decode"):
        raise TypeError(
            f"tokenizer must be the model's tokenizer; got {shown(tokenizer)}. "
            "edutools.load and AutoTokenizer.from_pretrained give one."
        )


def readable(model: PreTrainedModel, ids: Int[Tensor, "..."]) -> None:
    """Refuse token rows that the model cannot read.

    Raises:
        ValueError: if a row is longer than its context, or it does not know a token.

    Book: sec-errors
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and ids.shape[-1] > limit:
        raise ValueError(
            f"A text with its answer has {ids.shape[-1]} tokens; this model reads at "
            f"most {limit}. Shorten the prompt or the contexts in front of it."
        )
    known(model, ids)


def known(model: PreTrainedModel, ids: Int[Tensor, "..."]) -> None:
    """Refuse tokens that the model does not know.

    Raises:
        ValueError: if there is one, because the tokenizer is another model's.

    Book: sec-errors
    """
    embedding = model.get_input_embeddings()
    if not _offloaded(embedding):
        in_memory("The token embedding", embedding.get_parameter("weight"))
    size = len(embedding.get_parameter("weight"))
    if ids.numel() and int(ids.max()) >= size:
        raise ValueError(
            f"The tokenizer gives token {int(ids.max())}, but this model knows "
            f"{size} tokens only. Use the tokenizer that belongs to the model."
        )


def in_memory(name: str, weight: Shaped[Tensor, "..."]) -> None:
    """Refuse a weight without values.

    Raises:
        ValueError: if it is on the meta device.

    Book: sec-errors
    """
    if weight.is_meta:
        raise ValueError(
            f"{name} has no values: it is on the meta device, because the model was "
            "not loaded, or device_map keeps this part on the CPU or the disk between "
            "passes. Load it so that this part stays on a device."
        )


def input_device(model: nn.Module) -> torch.device:
    """Where the tokens of a text must be: with the weight of the token embedding.

    Of a model on several devices `model.device` says little. If accelerate fetches the
    embedding for each pass, tokens start on the CPU and are fetched, too.

    Book: sec-scale-device-map
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    place = embedding.get_parameter("weight").device
    return torch.device("cpu") if _offloaded(embedding) else place


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Inside, the weights of a module have values, also if accelerate keeps them.

    Changes of fetched weights are lost.

    Book: sec-scale-device-map
    """
    if not _offloaded(module):
        yield
        return
    hook: Any = module._hf_hook
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def embedding_weight(model: PreTrainedModel) -> Float[Tensor, "vocab d_model"]:
    """The weight of the token embedding, by which models are recognised.

    Book: sec-scale-device-map
    """
    embedding = model.get_input_embeddings()
    with fetched(embedding):
        return embedding.get_parameter("weight")


def _offloaded(module: nn.Module) -> bool:
    """Whether accelerate fetches the module's own weights for each pass."""
    own = module.parameters(recurse=False)
    return hasattr(module, "_hf_hook") and any(weight.is_meta for weight in own)


def not_nan(found: Float[Tensor, "..."]) -> None:
    """Refuse what a model has computed if it is no number.

    Raises:
        RuntimeError: if there is a nan.

    Book: sec-errors
    """
    if bool(found.isnan().any()):
        raise RuntimeError(
            "The model's probabilities are not numbers (nan). Look whether its weights "
            "are finite; float16 overflows easily, bfloat16 and float32 do not."
        )
