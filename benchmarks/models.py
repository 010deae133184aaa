"""Models of published sizes with random weights, and what there is to write into them.

The weights say nothing, so nothing can be learned here about how well facts are
written; sizes, and so memory and time, are the real ones. The tokenizer is that of a
pocket model, whose tokens all of these models know.
"""

import hashlib
from itertools import islice

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import edutools as edu
from edutools.corpus import counterfact_records, documents, text_of
from edutools.outline import outline
from edutools.pocket import pocket
from edutools.world import build_world

NAMES = {"gptj-6b": "gpt-j-6b", "llama2-7b": "llama-2-7b"}
TOKENIZERS = {"gptj-6b": "gptj", "llama2-7b": "llama"}
SIZES = ("full", "tenth", "tiny")
# A tenth of the layers' work or less: what a CPU can do in a minute, or a test.
SMALLER = {
    ("gptj-6b", "tenth"): {"n_embd": 512, "n_layer": 10, "n_head": 8},
    ("gptj-6b", "tiny"): {"n_embd": 32, "n_layer": 10, "n_head": 2, "rotary_dim": 8}
    | {"vocab_size": 4096},
    ("llama2-7b", "tenth"): {"hidden_size": 512, "num_hidden_layers": 10}
    | {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 1376},
    ("llama2-7b", "tiny"): {"hidden_size": 32, "num_hidden_layers": 10}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 88}
    | {"vocab_size": 4096},
}


def build(
    name: str, size: str, *, device: str, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """A model with random weights, made where it will be, layer by layer.

    Weights are normal with the deviation that the configuration names, biases zero,
    norms one, as at the start of a training.
    """
    config = outline(NAMES[name]).config
    for key, value in SMALLER.get((name, size), {}).items():
        setattr(config, key, value)
    devices = [device] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.name_or_path = f"{NAMES[name]} ({size}, random weights)"
    return model.eval().requires_grad_(False)


def tokenizer_of(name: str):
    """A tokenizer that needs no network."""
    return AutoTokenizer.from_pretrained(str(pocket(TOKENIZERS[name])))


def cases(n: int) -> list[edu.Case]:
    """Cases about different subjects, from the world of the pocket models."""
    found: dict[str, edu.Case] = {}
    for record in counterfact_records(build_world()):
        case = edu.Case.from_counterfact(record)
        found.setdefault(case.fact.subject, case)
    if len(found) < n:
        raise ValueError(f"The world has {len(found)} subjects; wanted {n}.")
    return list(islice(found.values(), n))


def texts(tokenizer, tokens: int, *, length: int = 512) -> list[str]:
    """Texts of about `length` tokens each that have `tokens` of them together."""
    found, part, size, total = [], [], 0, 0
    while total < tokens:
        for pieces in documents(build_world(), seed=len(found)):
            text = text_of(pieces)
            count = len(tokenizer(text).input_ids)
            if part and size + count > length:
                found.append("\n".join(part))
                part, size = [], 0
            part.append(text)
            size, total = size + count, total + count
            if total >= tokens:
                break
    return [*found, "\n".join(part)]


@torch.no_grad()
def digest(model: PreTrainedModel) -> str:
    """A hash of every bit of all weights, computed where they are."""
    told = hashlib.sha256()
    for name, weight in model.named_parameters():
        whole = torch.int16 if weight.dtype.itemsize == 2 else torch.int32
        bits = weight.detach().contiguous().view(whole).flatten()
        for chunk in bits.split(2**26):
            place = torch.arange(1, len(chunk) + 1, device=chunk.device)
            value = chunk.long()  # sums wrap around, alike on every machine
            sums = (int(value.sum()), int((value * place).sum()))
            told.update(f"{name} {sums}".encode())
    return told.hexdigest()[:16]
