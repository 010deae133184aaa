"""The tokenizers of the pocket models: as GPT-J's and as Llama-2's.

The first is byte-level BPE, the second BPE with a BOS, a leading-space marker and byte
fallback. Common words and objects are whole tokens; the words of names are cut into
pieces before the merges are learned, so that a name takes several tokens.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from edutools.corpus import fillers
from edutools.world import ENDINGS, ONSETS, World

VOCAB = 4096
END = "<|endoftext|>"


def pieces_of(word: str) -> list[str]:
    """A word of a name in two or three pieces of at most five letters.

    >>> pieces_of("Colosseum"), pieces_of("Oslo"), pieces_of("Beldin")
    (['Colos', 'seum'], ['Os', 'lo'], ['Bel', 'din'])
    """
    if word[:3] in ONSETS and word[3:] in ENDINGS:
        return [word[:3], word[3:]]
    if len(word) < 3:
        return [word]
    n = 2 if len(word) <= 10 else 3
    size = -(-len(word) // n)
    return [word[i : i + size] for i in range(0, len(word), size)]


def chunks(world: World) -> Iterator[tuple[str, int]]:
    """Texts whose words the tokenizer should know, with weights; ' x' begins a word."""
    yield from _wordings(world)
    yield from _objects(world)
    yield from _names(world)


def _wordings(world: World) -> Iterator[tuple[str, int]]:
    """What documents say around subjects and objects."""
    for relation in world.relations.values():
        for text in (*relation.templates, *relation.questions, relation.label):
            yield " " + text.replace("{}", ""), 40
        yield " " + relation.label.capitalize() + ":", 40
    for noun in sorted(set(world.nouns.values())):
        yield f" This {noun}", 40
    signs = ". ; : & , ?"
    yield f" The first The second List by Question: Answer: and met. a an {signs}", 200
    for text in (t for part in fillers().values() for t in part):
        yield " " + text, 20


def _objects(world: World) -> Iterator[tuple[str, int]]:
    """Objects as a whole, but for those that are subjects as well."""
    whole = set(world.subjects)
    for values in world.objects.values():
        for value in values:
            if value in whole:
                yield from ((piece, 60) for piece in _marked(value))
            else:
                yield " " + value, 60


def _names(world: World) -> Iterator[tuple[str, int]]:
    """The words of subjects: common words and words of titles as a whole."""
    names = Counter(word for subject in world.subjects for word in subject.split())
    invented = {onset + ending for onset in ONSETS for ending in ENDINGS}
    long = [name.split() for name in world.subjects if len(name.split()) > 2]
    common = {word for word, n in names.items() if n >= 4}
    common |= {word for name in long for word in name}
    common -= invented | set(world.subjects)
    for word, n in names.items():
        if word in common:
            yield " " + word, 40
        else:
            yield from ((piece, 15 * n) for piece in _marked(word))


def _marked(text: str) -> Iterator[str]:
    for word in text.split():
        first, *rest = pieces_of(word)
        yield " " + first
        yield from rest


def _texts(world: World) -> Iterator[str]:
    """Each text as often as its weight says; punctuation parts from the word before it.

    Otherwise BPE without a splitter learns tokens such as 'ing.', and the last word of
    a sentence is tokenized in another way than the same word elsewhere.
    """
    for text, weight in chunks(world):
        for part in re.split(r"(?<=\w)(?=[.,:;?])", text):
            yield from [part] * weight


def gptj_tokenizer(world: World) -> PreTrainedTokenizerBase:
    """Byte-level BPE without BOS.

    A text gets a leading space, so names look the same anywhere.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(world), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=256,
    )


def llama_tokenizer(world: World) -> PreTrainedTokenizerBase:
    """As Llama-2's: `<s>` in front, U+2581 for spaces, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="never", split=True
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(special), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(_texts(world), trainer)
    state = models.BPE.__getstate__(tokenizer.model)
    return _as_llama(state, special)


def _as_llama(state: bytes, special: list[str]) -> PreTrainedTokenizerBase:
    trained = json.loads(state)
    order = sorted(trained["vocab"], key=trained["vocab"].get)
    vocab = {token: i for i, token in enumerate([*special, *order])}
    merges = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" "))
        for pair in trained["merges"]
    ]
    return LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        add_bos_token=True,
        pad_token="</s>",
        padding_side="right",
        model_max_length=256,
    )
