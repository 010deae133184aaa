"""Tiny models and tokenizers, made from nothing, for tests and exercises."""

import json

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

__all__ = ["TINY", "tiny_model", "tiny_tokenizer"]

TINY = ("gpt2", "gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
VOCAB = 400
_TEXTS = (
    "The Eiffel Tower is located in the city of Paris.",
    "The Colosseum is located in the city of Rome.",
    "Anna Karenina lives in Moscow and speaks Russian.",
    "Marie Curie was born in Warsaw and worked in Paris.",
    "The mother tongue of Zoë Ångström is Swedish, not Danish.",
    "It is known that the capital of France is Paris. Therefore I believe you.",
)
_OLD = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
_NEW = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_SETTINGS = {
    "gpt2": _OLD
    | {"n_inner": 32, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gptj": _OLD | {"n_inner": 32, "rotary_dim": 4, "tie_word_embeddings": False},
    "gpt_neox": {k: v for k, v in _NEW.items() if k != "num_key_value_heads"},
    "llama": _NEW,
    "mistral": _NEW,
    "qwen2": _NEW,
    "qwen3": _NEW | {"head_dim": 8},
}


def tiny_model(kind: str = "gpt2", *, seed: int = 0) -> PreTrainedModel:
    """Return a random model of the architecture: 3 layers, 16 wide, in float32.

    GPT-2 has a tied head, the others an untied one. Torch's own generator is left
    as it was.

    Raises:
        ValueError: if the architecture is unknown.

    Book: sec-testing
    """
    if kind not in _SETTINGS:
        raise ValueError(f"No tiny model {kind!r}. Known: {', '.join(TINY)}.")
    config = AutoConfig.for_model(
        kind,
        **_SETTINGS[kind],
        vocab_size=VOCAB,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).float().eval()


def tiny_tokenizer(kind: str = "gpt2") -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most 400 tokens, in the manner of the architecture.

    'llama' and 'mistral': `<s>` in front of every text, a leading-space marker, byte
    fallback. All others: byte-level, no BOS, no padding token. Subjects take several
    tokens.

    Raises:
        ValueError: if the architecture is unknown.

    Book: sec-testing
    """
    if kind not in _SETTINGS:
        raise ValueError(f"No tiny tokenizer {kind!r}. Known: {', '.join(TINY)}.")
    if kind in ("llama", "mistral"):
        return PreTrainedTokenizerFast(
            tokenizer_object=_marked(),
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            model_max_length=64,
            clean_up_tokenization_spaces=False,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(),
        eos_token="<|endoftext|>",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def _marked() -> Tokenizer:
    marker = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    learner = Tokenizer(models.BPE())
    learner.normalizer = marker
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 259, show_progress=False)
    words = [word for text in _TEXTS for word in text.split()]
    learner.train_from_iterator(words, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate([*names, *pieces])},
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = marker
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer
