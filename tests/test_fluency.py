"""Metrics of texts and of predicted text, against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edutools.fluency import Tfidf, n_gram_entropy, reference_score, says, words
from edutools.perplexity import Perplexity, drawdown, perplexity
from edutools.testing import TINY, taught_model, tiny_model, tiny_tokenizer

TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Anna lives",
    "It is known that the capital of France is Paris. Therefore I believe you.",
    "You speak Russian, not Danish.",
]


def test_entropies_by_hand():
    # a b a c: pairs ab, ba, ac; triples aba, bac; all once.
    assert n_gram_entropy("a b a c") == pytest.approx(2 / 3 * math.log2(3) + 4 / 3)
    # x x x y: pairs xx, xx, xy: 2/3 and 1/3; triples xxx, xxy.
    pairs = 2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3)
    assert n_gram_entropy("x x x y") == pytest.approx(2 / 3 * pairs + 4 / 3)


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_the_released_form_is_half_and_the_bound_is_that_of_the_length(letters):
    text, m = " ".join(letters), len(letters)
    paper = n_gram_entropy(text)
    assert n_gram_entropy(text, form="released") == pytest.approx(paper / 2)
    bound = 2 / 3 * math.log2(max(1, m - 1)) + 4 / 3 * math.log2(max(1, m - 2))
    assert 0 <= paper <= bound + 1e-9


def test_the_bound_is_reached_by_a_text_without_repetition():
    text = " ".join(f"w{i}" for i in range(100))
    most = 2 / 3 * math.log2(99) + 4 / 3 * math.log2(98)
    assert n_gram_entropy(text) == pytest.approx(most)
    # The scale of published tables: 100 times the released form, at most 662.
    assert 100 * n_gram_entropy(text, form="released") == pytest.approx(661.96, abs=0.1)


@pytest.mark.parametrize("text", ["", "one", "yes yes yes yes", " \n "])
def test_poor_texts_have_no_entropy(text):
    assert n_gram_entropy(text) == 0


def test_entropy_takes_other_words_and_refuses_other_forms():
    assert n_gram_entropy("a,b a,b", tokenize=str.split) == 0
    assert n_gram_entropy("a,b a,b") > 0
    with pytest.raises(ValueError, match=r"form must be one of .*; got 'nats'"):
        n_gram_entropy("a b c", form="nats")


def test_words_are_words_and_marks():
    assert words('Zoë said: "No."') == ["Zoë", "said", ":", '"', "No", ".", '"']
    assert words("") == []


def test_weights_of_words_by_hand():
    tfidf = Tfidf.fit(["the cat sat", "the dog sat on the mat", "A the"])
    # n = 3; the: in 3 texts, sat: in 2, cat: in 1; 'A' is too short.
    assert set(tfidf.idf) == {"the", "cat", "sat", "dog", "on", "mat"}
    assert tfidf.idf["the"] == pytest.approx(math.log(4 / 4) + 1)
    assert tfidf.idf["sat"] == pytest.approx(math.log(4 / 3) + 1)
    assert tfidf.idf["cat"] == pytest.approx(math.log(4 / 2) + 1)
    found = tfidf.vector("The cat, the CAT, the bird")
    the, cat = 3.0, 2 * (math.log(2) + 1)
    length = math.sqrt(the**2 + cat**2)
    assert found == pytest.approx({"the": the / length, "cat": cat / length})
    assert repr(tfidf) == "Tfidf(words=6)"
    with pytest.raises(TypeError, match=r"Pass \[text\]"):
        Tfidf.fit("the cat")


def test_likeness_by_hand():
    tfidf = Tfidf.fit(["red apple", "green apple"])
    red, apple = math.log(3 / 2) + 1, 1.0
    # 'red apple' against 'apple': cosine is apple / |(red, apple)|.
    wanted = apple / math.hypot(red, apple)
    assert reference_score(["red", "apple"], ["apple"], tfidf) == pytest.approx(wanted)
    assert reference_score(["red apple"], ["apple red"], tfidf) == pytest.approx(1)
    assert reference_score(["red"], ["green"], tfidf) == 0


def test_likeness_without_words():
    tfidf = Tfidf.fit(["red apple"])
    assert reference_score([], ["red apple"], tfidf) == 0
    assert reference_score(["blue"], ["red apple"], tfidf) == 0
    assert math.isnan(reference_score(["red"], [], tfidf))
    assert math.isnan(reference_score(["red"], ["blue"], tfidf))
    assert math.isnan(reference_score(["red"], ["red"], Tfidf.fit([])))


@pytest.mark.parametrize(
    ("text", "target", "yes"),
    [
        (" Rome.", "Rome", True),
        ("ROME", "rome", True),
        ("\n the  city\tof Rome!", "the city of Rome", True),
        (" Romeo", "Rome", False),
        (" Rome2", "Rome", False),
        (" in Rome", "Rome", False),
        (" Rom", "Rome", False),
        ("", "Rome", False),
        (" C++ and", "C++", True),
        ("Zoe\u0308", "Zoë", True),
    ],
)
def test_what_counts_as_said(text, target, yes):
    assert says(text, target) is yes


def lost(model, tokenizer, text):
    """−log P of all tokens but the first, and how many these are."""
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1)
    return -float(logp.gather(1, ids[0, 1:, None]).sum()), ids.shape[1] - 1


@pytest.mark.parametrize("kind", TINY)
def test_perplexity_is_that_of_whole_forward_passes(kind):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    found = perplexity(model, tokenizer, TEXTS, batch_size=3)
    each = [lost(model, tokenizer, text) for text in TEXTS]
    assert found.tokens.tolist() == [n for _, n in each]
    assert found.nll.tolist() == pytest.approx([nll for nll, _ in each], abs=1e-3)
    total, n = (sum(column) for column in zip(*each, strict=True))
    assert found.value == pytest.approx(math.exp(total / n), rel=1e-4)


def test_perplexity_weighs_tokens_not_texts():
    nll, tokens = torch.tensor([1.0, 30.0]), torch.tensor([1, 10])
    found = Perplexity(nll, tokens)
    assert found.value == pytest.approx(math.exp(31 / 11))
    assert repr(found) == "Perplexity(16.75, texts=2)"
    row = found.row()
    assert (row.metric, row.unit, row.n) == ("perplexity", "perplexity", 2)
    assert row.low == pytest.approx(math.exp(1))
    assert row.high == pytest.approx(math.exp(3))


def test_neither_batch_nor_order_changes_a_perplexity(tiny):
    model, tokenizer = tiny("llama")
    whole = perplexity(model, tokenizer, TEXTS)
    single = perplexity(model, tokenizer, TEXTS, batch_size=1)
    turned = perplexity(model, tokenizer, TEXTS[::-1], batch_size=2)
    torch.testing.assert_close(whole.nll, single.nll)
    torch.testing.assert_close(whole.nll, turned.nll.flip(0))


def test_texts_without_a_second_token_count_for_nothing():
    model, tokenizer = tiny_model("gptj"), tiny_tokenizer("gptj")  # no BOS
    with_short = perplexity(model, tokenizer, [*TEXTS, "", "."])
    assert with_short.tokens[-2:].tolist() == [0, 0]
    assert with_short.value == pytest.approx(perplexity(model, tokenizer, TEXTS).value)
    assert with_short.row().n == len(TEXTS)
    nothing = perplexity(model, tokenizer, ["", "."])
    assert math.isnan(nothing.value)
    assert nothing.row().note == "no text has a token that follows another"
    assert "undefined" in str(nothing.row())
    with pytest.raises(ValueError, match="Got no texts"):
        perplexity(model, tokenizer, [])
    with pytest.raises(TypeError, match=r"Pass \[text\]"):
        perplexity(model, tokenizer, "Paris")


def test_long_texts_are_cut_off(tiny):
    model, tokenizer = tiny("gpt2")
    found = perplexity(model, tokenizer, ["city of Paris " * 60])
    assert found.tokens.tolist() == [63]
    assert math.isnan(found.row().low)  # one text tells no interval


def test_drawdown_by_hand():
    tokens = torch.tensor([10, 10])
    before = Perplexity(torch.tensor([10.0, 20.0]), tokens)
    after = Perplexity(torch.tensor([11.0, 23.0]), tokens)
    row = drawdown(before, after)
    assert row.mean == pytest.approx(math.exp(1.7) - math.exp(1.5))
    assert row.low == pytest.approx(math.exp(1.1) - math.exp(1.0))
    assert row.high == pytest.approx(math.exp(2.3) - math.exp(2.0))
    assert (row.metric, row.unit, row.n) == ("perplexity_drawdown", "perplexity", 2)
    assert drawdown(before, before).mean == 0
    assert (drawdown(before, before).low, drawdown(before, before).high) == (0, 0)


def test_the_interval_of_a_drawdown_is_paired():
    """All texts get worse alike, so the interval is narrow, though texts differ."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((50,), 20)
    nll = 40 + 20 * torch.rand(50, generator=generator)
    before, after = Perplexity(nll, tokens), Perplexity(nll + 0.4, tokens)
    row, own = drawdown(before, after), after.row()
    assert 0 < row.low < row.mean < row.high
    assert row.high - row.low < (own.high - own.low) / 20


def test_a_drawdown_needs_the_same_texts(tiny):
    model, tokenizer = tiny("gpt2")
    all_texts = perplexity(model, tokenizer, TEXTS)
    with pytest.raises(ValueError, match=r"got 4 texts of .* and 3 of"):
        drawdown(all_texts, perplexity(model, tokenizer, TEXTS[:3]))


def test_a_damaged_model_has_a_drawdown():
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    before = perplexity(model, tokenizer, TEXTS)
    with torch.no_grad():
        model.transformer.h[1].mlp.fc_out.weight.mul_(-3)
    row = drawdown(before, perplexity(model, tokenizer, TEXTS))
    assert row.low > 0
