"""Tiny models and tokenizers, made from nothing, for tests and exercises."""

import json
from collections.abc import Sequence

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

from edutools.contract import check_contract
from edutools.facts import Fact
from edutools.method import Method
from edutools.moments import second_moment
from edutools.prompts import encode

__all__ = [
    "TINY",
    "TINY_FACTS",
    "check_method",
    "taught_model",
    "tiny_model",
    "tiny_tokenizer",
]

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


TINY_FACTS = (
    Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris"),
    Fact("Anna Karenina", "{} lives in", "Warsaw", "Moscow"),
    Fact("Zoë Ångström", "The mother tongue of {} is", "Danish", "Swedish"),
)


def check_method(
    method: Method,
    *,
    kinds: Sequence[str] = TINY,
    facts: Sequence[Fact] = TINY_FACTS,
) -> None:
    """Check, on tiny models, that a method keeps what every editing method promises.

    The model stays as it was; the same call gives the same edit; undo restores every
    bit, also in bfloat16 and float16 and when an exception flies; saving and loading
    change nothing; the targets become more probable; missing moments that a method
    needs are refused by name.

    Args:
        method: with layers that a model of three layers has, the last one excluded.
        kinds: architectures to try.
        facts: what to write; a method for single facts gets the first one.

    Raises:
        AssertionError: names the promise that is broken and the architecture.

    Book: sec-testing

    >>> from edutools import ROME
    >>> check_method(ROME(layer=1), kinds=["llama"])
    """
    chosen = list(facts) if method.several else [facts[0]]
    for kind in kinds:
        model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
        moments = {}
        if method.needs_moments:
            layers = method.edited()
            moments = second_moment(
                model, tokenizer, _TEXTS, layers=layers, progress=False
            )
        try:
            check_contract(method, model, tokenizer, chosen, moments)
        except AssertionError as error:
            raise AssertionError(f"On {kind!r}: {error}") from None


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


def taught_model(kind: str = "gpt2", *, steps: int = 40) -> PreTrainedModel:
    """Return a tiny model that knows six sentences by heart, made in a moment.

    What it says depends on the subject, so an edit of a fact can be seen to work.

    Raises:
        ValueError: if the architecture is unknown.

    Book: sec-testing
    """
    model = tiny_model(kind)
    batch = encode(tiny_tokenizer(kind), _TEXTS)
    labels = batch.ids.masked_fill(batch.mask == 0, -100)[:, 1:]
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        logits = model(**batch.inputs, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    adam.zero_grad()
    return model


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
