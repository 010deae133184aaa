"""A pocket model before training, and the parts of a training step.

Axes: rows texts in a batch · tokens of a row.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

# Weights that write into the residual stream.
WRITERS = ("fc_out.weight", "out_proj.weight", "down_proj.weight", "o_proj.weight")
OUTSIDE = ("wte", "embed", "lm_head")


def new_model(recipe: dict, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights; outputs into the residual stream start small."""
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    make = {"gptj": _gptj, "llama": _llama}[recipe["architecture"]]
    torch.manual_seed(recipe["seed"])
    model = make(recipe, tokens)
    for name, parameter in model.named_parameters():
        if name.endswith(WRITERS):
            parameter.data *= (2 * recipe["layers"]) ** -0.5
    return model


def _gptj(recipe: dict, tokens: dict[str, Any]) -> PreTrainedModel:
    d, heads = recipe["width"], recipe["heads"]
    config = GPTJConfig(
        n_embd=d,
        n_layer=recipe["layers"],
        n_head=heads,
        n_inner=recipe["inner"],
        rotary_dim=d // heads // 2,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **tokens,
    )
    return GPTJForCausalLM(config)


def _llama(recipe: dict, tokens: dict[str, Any]) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=recipe["width"],
        num_hidden_layers=recipe["layers"],
        num_attention_heads=recipe["heads"],
        intermediate_size=recipe["inner"],
        max_position_embeddings=256,
        **tokens,
    )
    return LlamaForCausalLM(config)


def optimizers(model: nn.Module, recipe: dict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and not any(part in name for part in OUTSIDE)
        (matrices if inside else others).append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=recipe["lr_matrix"],
        momentum=0.95,
        weight_decay=recipe["weight_decay"],
        ns_steps=4,
    )
    adam = torch.optim.AdamW(
        others, lr=recipe["lr_other"], betas=(0.9, 0.95), weight_decay=0.0
    )
    return [muon, adam]


def rate(step: int, recipe: dict, steps: int) -> float:
    """Factor of the learning rates: rise, plateau, line to zero."""
    if step < recipe["warmup"]:
        return (step + 1) / recipe["warmup"]
    return min(1.0, (steps - step) / (steps * (1 - recipe["constant"])))


def read_through(model: Any, masks: list[Tensor]) -> None:
    """Let block i use masks[i], an additive attention mask; refill the list at will."""
    gptj = hasattr(model, "transformer")
    for i, block in enumerate(model.transformer.h if gptj else model.model.layers):

        def use(module, args, kwargs, i=i):
            return args, kwargs | {"attention_mask": masks[i]}

        block.register_forward_pre_hook(use, with_kwargs=True)


def losses(
    model: nn.Module,
    ids: Int[Tensor, "rows tokens"],
    weight: Float[Tensor, "rows tokens"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Weighted next-token loss, and the plain mean over tokens of objects."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weight = weight[:, 1:].flatten()
    objects = weight > 0.999
    return (each * weight).sum() / weight.sum(), each[objects].mean()
