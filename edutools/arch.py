"""Where things are: module names of each architecture, and weights as (output, input).

The only module that knows how a family of models names its parts. A block adds the
outputs of its attention and of its MLP to the residual stream; the last linear map of
the MLP (here: `write`) is the one that editors change.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edutools.loaded import a_model

__all__ = [
    "Architecture",
    "UnknownArchitecture",
    "architecture_of",
    "check_layer",
    "n_layers",
    "oriented",
    "submodule",
]


class UnknownArchitecture(ValueError):  # noqa: N818
    """A model whose parts have no known names, or whose structure rules out editing.

    Book: sec-architectures
    """


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The module names of one family of models.

    Args:
        blocks: dotted name of the list of blocks.
        mlp_part: name of the MLP inside a block.
        attention_part: name of the attention inside a block.
        write_part: name, inside a block, of the last linear map of the MLP.
        final_norm: dotted name of the norm in front of the head.
        head: dotted name of the map to the vocabulary.
        embedding: dotted name of the token embedding.
        parallel: whether the MLP reads the block's input rather than the residual
            stream after attention (GPT-J).

    Book: sec-architectures

    >>> Architecture(blocks="transformer.h", mlp_part="mlp", attention_part="attn",
    ...     write_part="mlp.c_proj", final_norm="transformer.ln_f", head="lm_head",
    ...     embedding="transformer.wte").write(3)
    'transformer.h.3.mlp.c_proj'
    """

    blocks: str
    mlp_part: str
    attention_part: str
    write_part: str
    final_norm: str
    head: str
    embedding: str
    parallel: bool = False

    def block(self, layer: int) -> str:
        """Name of the block; its output is the residual stream after the layer."""
        return f"{self.blocks}.{layer}"

    def mlp(self, layer: int) -> str:
        """Name of the layer's MLP."""
        return f"{self.blocks}.{layer}.{self.mlp_part}"

    def attention(self, layer: int) -> str:
        """Name of the layer's attention."""
        return f"{self.blocks}.{layer}.{self.attention_part}"

    def write(self, layer: int) -> str:
        """Name of the MLP's last linear map: keys go in, values come out."""
        return f"{self.blocks}.{layer}.{self.write_part}"


_GPT2 = Architecture(
    blocks="transformer.h",
    mlp_part="mlp",
    attention_part="attn",
    write_part="mlp.c_proj",
    final_norm="transformer.ln_f",
    head="lm_head",
    embedding="transformer.wte",
)
_LLAMA = Architecture(
    blocks="model.layers",
    mlp_part="mlp",
    attention_part="self_attn",
    write_part="mlp.down_proj",
    final_norm="model.norm",
    head="lm_head",
    embedding="model.embed_tokens",
)
_NEOX = Architecture(
    blocks="gpt_neox.layers",
    mlp_part="mlp",
    attention_part="attention",
    write_part="mlp.dense_4h_to_h",
    final_norm="gpt_neox.final_layer_norm",
    head="lm_head",
    embedding="gpt_neox.embed_in",
)
TABLE = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "gptj": replace(_GPT2, write_part="mlp.fc_out", parallel=True),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Return the row of the table that fits the model.

    A model of a family without a row can carry its own names: set
    `model.architecture = Architecture(...)`. They are checked in the same way.

    Raises:
        TypeError: if it is no model.
        UnknownArchitecture: if the family has no row, the named modules do not exist,
            or the model cannot be edited in place (mixture of experts, quantized
            weights, a norm between MLP and residual stream).

    Book: sec-architectures
    """
    a_model(model)
    own = getattr(model, "architecture", None)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if hasattr(model, "peft_config"):
        raise UnknownArchitecture(
            f"The {kind!r} model is wrapped by PEFT, which renames its modules. Pass "
            "model.merge_and_unload(), or the model that was wrapped."
        )
    _refuse_experts(model, kind)
    if isinstance(own, Architecture):
        arch = own
    elif kind in TABLE:
        arch = TABLE[kind]
    else:
        _refuse_norms(model, kind)
        raise UnknownArchitecture(
            f"No architecture row for model_type {kind!r}.{_nearest(kind, TABLE)} "
            f"Known: {', '.join(sorted(TABLE))}. Set model.architecture = "
            "Architecture(...) naming its modules."
        )
    if kind == "gpt_neox" and own is None:
        arch = replace(arch, parallel=model.config.use_parallel_residual)
    _check_modules(model, arch, kind)
    return arch


def n_layers(model: PreTrainedModel) -> int:
    """Return the number of blocks; layers are counted from 0.

    Book: sec-architectures
    """
    return len(submodule(model, architecture_of(model).blocks))  # type: ignore[arg-type]


def check_layer(model: PreTrainedModel, layer: int) -> int:
    """Return the layer if the model has it.

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if it is negative or too large.

    Book: sec-architectures
    """
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer must be a whole number; got {layer!r}.")
    count = n_layers(model)
    if not 0 <= layer < count:
        raise ValueError(
            f"The model has no layer {layer}. Choose one of 0 to {count - 1}."
        )
    return layer


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the module of this dotted name.

    Raises:
        TypeError: if it is no model.
        LookupError: if there is none; the message suggests the nearest name.

    Book: sec-hooks
    """
    a_model(model)
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        raise LookupError(
            f"The model has no module named {name!r}.{_nearest(name, names)} "
            "List them with dict(model.named_modules())."
        ) from None


def oriented(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return the module's weight as a view of shape (output, input).

    `Conv1D` (GPT-2) stores the transpose. The class decides, never the shape, which
    would be silent about square weights. Writing to the view changes the model.

    Raises:
        TypeError: if the module is neither `Linear` nor `Conv1D`.
        UnknownArchitecture: if the weight is quantized.

    Book: sec-architectures

    >>> oriented(Conv1D(nf=3, nx=2)).shape, oriented(nn.Linear(2, 3)).shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    name, weight = type(module).__name__, getattr(module, "weight", None)
    if _quantized(module, weight):
        raise UnknownArchitecture(
            f"The weight is quantized ({name}, {getattr(weight, 'dtype', 'packed')}) "
            "and cannot be edited in place. Load the model in float32, float16 or "
            "bfloat16."
        )
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise TypeError(f"Only Linear and Conv1D have a weight to edit; got a {name}.")
    weight = module.weight
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()


_EDITABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffn_norm")


def _quantized(module: nn.Module, weight: object) -> bool:
    """Whether the weight is packed: as integers, in a buffer, or behind a method."""
    if isinstance(weight, Tensor):
        linear = isinstance(module, (nn.Linear, Conv1D))
        return linear and (weight.dtype not in _EDITABLE or weight.ndim != 2)
    return callable(weight) or hasattr(module, "qweight")


def _refuse_experts(model: PreTrainedModel, kind: str) -> None:
    config = getattr(model, "config", None)
    if any((getattr(config, name, 0) or 0) > 1 for name in _EXPERTS):
        raise UnknownArchitecture(
            f"The {kind!r} model is a mixture of experts: a token passes through some "
            "of many MLPs, so no single weight holds a fact. Use a dense model."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnknownArchitecture(
            f"The {kind!r} model has quantized weights, which cannot be edited in "
            "place. Load it in float32, float16 or bfloat16."
        )


def _refuse_norms(module: nn.Module, kind: str) -> None:
    names = (name.rpartition(".")[2] for name, _ in module.named_modules())
    norm = next((name for name in names if name in _POST_NORMS), None)
    if norm is not None:
        raise UnknownArchitecture(
            f"The {kind!r} model has a norm between MLP and residual stream ({norm}), "
            "so adding to the MLP's output does not add to the block's. Use a model "
            "without it."
        )


def _check_modules(model: PreTrainedModel, arch: Architecture, kind: str) -> None:
    parts = (arch.block(0), arch.mlp(0), arch.attention(0), arch.write(0))
    for name in (*parts, arch.final_norm, arch.head, arch.embedding):
        try:
            submodule(model, name)
        except LookupError as error:
            raise UnknownArchitecture(
                f"The {kind!r} model does not fit its architecture row. {error}"
            ) from None
    _refuse_norms(submodule(model, arch.block(0)), kind)
    oriented(submodule(model, arch.write(0)))


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
