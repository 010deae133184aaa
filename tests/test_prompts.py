"""Tokens of subjects and targets, padding, contexts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from edutools.facts import Fact, SubjectNotFound
from edutools.hooks import patch
from edutools.prompts import (
    context_prefixes,
    encode,
    fill,
    pad,
    subject_span,
    target_ids,
    token_ids,
)
from edutools.testing import TINY, tiny_tokenizer

BYTES, MARKED = tiny_tokenizer("gpt2"), tiny_tokenizer("llama")
both = pytest.mark.parametrize("tokenizer", [BYTES, MARKED], ids=["bytes", "marked"])


def tokens(tokenizer, text, span):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[slice(*span)]


@both
@pytest.mark.parametrize(
    "subject", ["The Eiffel Tower", "Zoë Ångström", "漢字 🐙", "A"]
)
def test_the_span_spells_the_subject(tokenizer, subject):
    prompt = fill(Fact(subject, "It is said that {} lives in", "Rome"))
    span = prompt.span(tokenizer)
    ids = tokenizer(prompt.text).input_ids[slice(*span)]
    assert tokenizer.decode(ids).strip() == subject
    rest = tokenizer(prompt.text).input_ids[span[1] :]
    assert tokenizer.decode(rest).strip() == "lives in"


@both
@given(
    before=st.text(max_size=8),
    subject=st.text(min_size=1, max_size=8).filter(str.strip),
    after=st.text(max_size=8),
)
def test_every_subject_has_tokens_and_no_neighbour_matters(
    tokenizer, before, subject, after
):
    text = before + subject + after
    first, end = subject_span(tokenizer, before, subject, text)
    assert 0 <= first < end <= len(tokenizer(text).input_ids)
    coded = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    begin = len(before) + len(subject) - len(subject.lstrip())
    covered = {c for i in range(first, end) for c in range(*coded[i])}
    assert covered & set(range(begin, begin + len(subject.strip())))


@both
def test_the_right_one_of_two_equal_subjects_is_found(tokenizer):
    fact = Fact("Rome", "Rome said that {} is in Rome, not", "x")
    span = fill(fact).span(tokenizer)
    start = len(tokenizer("Rome said that").input_ids)
    assert span[0] == start
    assert "".join(tokens(tokenizer, fact.text, span)).strip("▁Ġ") == "Rome"


def test_a_subject_elsewhere_in_the_text_is_not_found():
    with pytest.raises(SubjectNotFound, match=r"'Rome' is not behind 'In '"):
        subject_span(BYTES, "In ", "Rome", "In Paris Rome")
    with pytest.raises(SubjectNotFound):
        subject_span(BYTES, "In ", "  ", "In   Paris")


def test_a_subject_lost_in_tokenization_shows_the_tokens():
    lossy = tiny_tokenizer("gpt2")
    lossy.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(SubjectNotFound) as error:
        fill(Fact("\u200b", "I see {}; he", "x")).span(lossy)
    assert "lost in tokenization" in str(error.value)
    shown = lossy.convert_ids_to_tokens(lossy("I see ; he").input_ids)
    assert str(shown) in str(error.value)


def test_slow_tokenizers_are_refused():
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=BYTES.backend_tokenizer)
    with pytest.raises(TypeError, match="Slow has no character offsets"):
        subject_span(slow, "", "a", "a")


def test_braces_in_facts_and_contexts_survive():
    prompt = fill(Fact("{} {0}", "a {} b", "c"), "{x} {} {y}")
    assert prompt.text == "{x} a {} {0} b {y}"
    assert (prompt.before, prompt.subject, prompt.after) == (
        "{x} a ",
        "{} {0}",
        " b {y}",
    )


def test_a_context_needs_a_slot():
    with pytest.raises(ValueError, match=r"must hold '\{\}' .* got 'It rains\.'"):
        fill(Fact("a", "{} b", "c"), "It rains.")


@both
def test_rows_are_padded_on_the_right_and_masked(tokenizer):
    texts = ["Paris", "The Eiffel Tower is in Paris"]
    batch = encode(tokenizer, texts)
    rows = [tokenizer(text).input_ids for text in texts]
    assert batch.lengths.tolist() == [len(row) for row in rows]
    for index, row in enumerate(rows):
        assert batch.ids[index, : len(row)].tolist() == row
        assert batch.mask[index].tolist() == [1] * len(row) + [0] * (
            batch.ids.shape[1] - len(row)
        )
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert len(batch) == 2
    assert torch.equal(batch.to("cpu").ids, batch.ids)


def test_the_pad_token_falls_back_without_touching_the_tokenizer():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.padding_side = "left"
    before = (len(tokenizer), tokenizer.pad_token_id, tokenizer.padding_side)
    batch = encode(tokenizer, ["Paris", "Rome is in Italy"])
    assert batch.ids[0, -1] == tokenizer.eos_token_id
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.padding_side) == before
    tokenizer.eos_token = None
    assert encode(tokenizer, ["Paris", "Rome is in Italy"]).ids[0, -1] == 0
    tokenizer.pad_token = "a"
    batch = encode(tokenizer, ["Paris", "Rome is in Italy"])
    assert batch.ids[0, -1] == tokenizer.pad_token_id != 0


@pytest.mark.parametrize("kind", TINY)
def test_padding_changes_no_logits(tiny, kind):
    model, tokenizer = tiny(kind)
    short, long = "Paris is", "The Eiffel Tower is located in the city of Paris."
    together = encode(tokenizer, [short, long])
    with torch.no_grad():
        alone = model(**encode(tokenizer, [short]).inputs).logits[0]
        padded = model(**together.inputs).logits[0, : together.lengths[0]]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_token_types_are_never_passed_on():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert set(encode(tokenizer, ["Paris"]).inputs) == {"input_ids", "attention_mask"}


def test_empty_rows_are_refused_with_their_index():
    with pytest.raises(ValueError, match="Text 1 is empty"):
        encode(BYTES, ["Paris", ""])
    assert encode(MARKED, ["Paris", ""]).lengths.tolist()[1] == 1  # BOS alone
    assert token_ids(BYTES, []) == []
    assert pad(BYTES, []).ids.shape == (0, 0)


def test_a_closing_token_is_left_out():
    closing = tiny_tokenizer("llama")
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert closing("Paris").input_ids[-1] == 2
    assert token_ids(closing, ["Paris"]) == token_ids(MARKED, ["Paris"])


@both
@pytest.mark.parametrize("target", ["Rome", " Rome", "Rome ", "Marie Curie", "漢"])
@pytest.mark.parametrize("prompt", ["It is in", 'Zoë said: "', "a"])
def test_prompt_and_target_tokens_are_those_of_the_whole(tokenizer, prompt, target):
    ids = target_ids(tokenizer, target, prompt)
    whole = token_ids(tokenizer, [f"{prompt} {target.strip()}"])[0]
    assert token_ids(tokenizer, [prompt])[0] + ids == whole
    assert tokenizer.bos_token_id not in ids
    assert target_ids(tokenizer, target) == ids


@both
def test_any_prompt_is_continued_by_the_same_ids(tokenizer):
    assert target_ids(tokenizer, "Rome", "  ") == target_ids(tokenizer, "Rome")


def test_targets_have_no_bos():
    bare = MARKED("Rome").input_ids
    assert bare[0] == MARKED.bos_token_id
    assert target_ids(MARKED, "Rome") == bare[1:]


def test_a_border_that_tokens_cross_falls_back_to_the_target_alone():
    vocab = {"a": 0, " ": 1, "b": 2, "a ": 3, " b": 4, "a b": 5}
    merges = [("a", " "), (" ", "b"), ("a ", "b")]
    crossing = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=merges))
    )
    assert crossing("a b").input_ids == [5]
    assert target_ids(crossing, "b") == [4]


@pytest.mark.parametrize("target", ["", "  "])
def test_empty_targets_are_refused(target):
    with pytest.raises(ValueError, match="must not be empty"):
        target_ids(BYTES, target)


def test_a_target_without_tokens_is_refused():
    lossy = tiny_tokenizer("gpt2")
    lossy.backend_tokenizer.normalizer = normalizers.Replace(" \u200b", "")
    with pytest.raises(ValueError, match="has no tokens"):
        target_ids(lossy, "\u200b")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_contexts_are_reproducible_and_leave_the_seed_alone(tiny, kind):
    model, tokenizer = tiny(kind)
    state = torch.random.get_rng_state()
    first = context_prefixes(model, tokenizer, n=7, length=5, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == context_prefixes(model, tokenizer, n=7, length=5, seed=3)
    assert first != context_prefixes(model, tokenizer, n=7, length=5, seed=4)
    assert len(first) == 7
    starts = ("The", "Therefore", "Because", "I", "You", "The", "Therefore")
    for text, start in zip(first, starts, strict=True):
        assert text.startswith(start)
        assert text.endswith(". {}")
        assert text.count("{") == text.count("}") == 1
        assert "\n" not in text
        assert "<" not in text or kind != "llama"  # no special tokens spelled out
        assert fill(Fact("Ada", "{} is", "x"), text).text.endswith(". Ada is")


def test_special_and_unknown_tokens_are_never_written(tiny):
    """Even if the model likes nothing better."""
    model, tokenizer = tiny("llama")
    wish = torch.zeros(model.config.vocab_size)
    wish[[tokenizer.eos_token_id, tokenizer.bos_token_id]] = 1e4
    wish[len(tokenizer) :] = 1e4
    with patch(model, {"lm_head": lambda logits: logits + wish}):
        made = context_prefixes(model, tokenizer, n=3, length=4, seed=0)
    plain = context_prefixes(model, tokenizer, n=3, length=4, seed=0)
    assert made == plain


def test_short_contexts(tiny):
    model, tokenizer = tiny("gpt2")
    made = context_prefixes(
        model, tokenizer, n=2, length=0, seed=0, starts=["It rains"]
    )
    assert made == ("It rains. {}",) * 2
    assert context_prefixes(model, tokenizer, n=0, length=5, seed=0) == ()


@pytest.mark.parametrize("wrong", [{"n": -1}, {"length": -1}, {"starts": ()}])
def test_impossible_contexts_are_refused(tiny, wrong):
    settings = {"n": 1, "length": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match="must not be negative"):
        context_prefixes(*tiny("gpt2"), **settings)
