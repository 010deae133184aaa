"""Free generation: the same text whatever the batch, and what is counted of it."""

import math
from collections import Counter

import pytest
import torch

import edutools as edu
from edutools.evaluate import evaluate
from edutools.facts import Case, Fact
from edutools.fluency import Tfidf, n_gram_entropy, reference_score
from edutools.generation import Generation, generate
from edutools.metrics import wilson
from edutools.report import Report
from edutools.testing import TINY, taught_model, tiny_model, tiny_tokenizer
from edutools.writing import evaluate_writing

PROMPTS = [  # of very different lengths, one of them twice
    "The Eiffel Tower is",
    "It is known that the capital of France is Paris. Therefore",
    "Anna",
    "The mother tongue of Zoë Ångström is Swedish, not",
    "Anna",
]


@pytest.fixture(scope="module", params=["gptj", "gpt2", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


def plainly(model, tokenizer, prompt, n):
    """The likeliest tokens, one whole forward pass for each."""
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)]
        if int(logits.argmax()) == tokenizer.eos_token_id:
            break
        ids = [*ids, int(logits.argmax())]
    return ids[start:]


@pytest.mark.parametrize("kind", TINY)
def test_greedy_text_is_that_of_whole_forward_passes(kind):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt).input_ids
        whole = tokenizer.decode(
            [*ids, *plainly(model, tokenizer, prompt, 12)], skip_special_tokens=True
        )
        assert prompt + text == whole
    assert len(set(found)) == 4


@pytest.mark.parametrize("top_k", [1, 5])
def test_neither_batch_nor_order_changes_a_text(taught, top_k):
    options = {"max_new_tokens": 10, "top_k": top_k, "seed": 3}
    together = generate(*taught, PROMPTS, **options)
    for size in (1, 2, 3):
        assert generate(*taught, PROMPTS, batch_size=size, **options) == together
    alone = [generate(*taught, [prompt], **options)[0] for prompt in PROMPTS]
    assert alone[:-1] == together[:-1]  # the last one repeats another
    turned = generate(*taught, PROMPTS[-2::-1], **options)
    assert turned[::-1] == together[:-1]
    longer = generate(*taught, PROMPTS, **(options | {"max_new_tokens": 15}))
    assert all(map(str.startswith, longer, together))


def test_draws_follow_the_seed_and_the_probabilities(tiny):
    model, tokenizer = tiny("gptj")
    prompts = ["The city of"] * 2000
    drawn = generate(model, tokenizer, prompts, max_new_tokens=1, top_k=3, seed=0)
    again = generate(model, tokenizer, prompts, max_new_tokens=1, top_k=3, seed=0)
    other = generate(model, tokenizer, prompts, max_new_tokens=1, top_k=3, seed=1)
    assert drawn == again != other
    ids = torch.tensor([tokenizer("The city of").input_ids])
    with torch.no_grad():
        best = model(ids).logits[0, -1, : len(tokenizer)].topk(3)
    wanted = Counter()  # several tokens may be parts of characters and look alike
    for token, p in zip(best.indices, best.values.softmax(0), strict=True):
        wanted[tokenizer.decode([int(token)])] += float(p)
    assert len(wanted) > 1
    assert set(drawn) == set(wanted)
    for text, p in wanted.items():
        assert drawn.count(text) / len(drawn) == pytest.approx(p, abs=0.04)


def test_the_end_of_the_text_ends_it():
    """A model that always says the end: nothing is written, in any batch."""
    model, tokenizer = tiny_model("gptj"), tiny_tokenizer("gptj")
    end = tokenizer.eos_token_id
    with torch.no_grad():
        model.lm_head.bias[end] = 1e4
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=5) == [""] * 5


def test_the_end_cuts_each_row_for_itself(taught):
    """One row ends early, the others go on as they would alone."""
    model, tokenizer = taught
    full = generate(model, tokenizer, PROMPTS, max_new_tokens=8)
    third = plainly(model, tokenizer, PROMPTS[0], 8)[2]
    tokenizer = tiny_tokenizer(model.config.model_type)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    cut = generate(model, tokenizer, PROMPTS, max_new_tokens=8)
    assert full[0].startswith(cut[0])
    assert len(cut[0]) < len(full[0])
    for prompt, text in zip(PROMPTS, cut, strict=True):
        assert text == generate(model, tokenizer, [prompt], max_new_tokens=8)[0]


def test_each_prompt_may_have_its_own_limit(taught):
    model, tokenizer = taught
    room = [3, 0, 8, 1, 5]
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=room)
    for prompt, more, text in zip(PROMPTS, room, found, strict=True):
        assert text == generate(model, tokenizer, [prompt], max_new_tokens=more)[0]
    assert found[1] == ""
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=0) == [""] * 5
    assert generate(model, tokenizer, []) == []
    with pytest.raises(ValueError, match="got 2 for 1 prompts"):
        generate(model, tokenizer, ["Anna"], max_new_tokens=[1, 2])


def test_the_model_stays_as_it_was(taught):
    model, tokenizer = taught
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, tokenizer, PROMPTS, max_new_tokens=3, top_k=5)
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    model.eval()


def test_bad_requests_are_refused(taught):
    with pytest.raises(TypeError, match=r"Pass \[text\]"):
        generate(*taught, "Anna")
    with pytest.raises(ValueError, match="max_new_tokens=-1 and top_k=1"):
        generate(*taught, ["Anna"], max_new_tokens=-1)
    with pytest.raises(ValueError, match="top_k=0"):
        generate(*taught, ["Anna"], top_k=0)
    with pytest.raises(ValueError, match=r"90 more are \d+; this model reads at most"):
        generate(*taught, ["Anna"], max_new_tokens=90)
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        generate(tiny_model("gptj"), tiny_tokenizer("gptj"), [""])


def test_settings_are_checked_and_named():
    assert str(Generation(tokens=8)) == "texts of 8 tokens more, top 5, seed 0"
    assert "greedy" in str(Generation(top_k=1))
    assert "with the prompt" in str(Generation.released(seed=2))
    with pytest.raises(ValueError, match="tokens=0 and top_k=5"):
        Generation(tokens=0)
    with pytest.raises(ValueError, match=r"Generation\.text must be one of .* 'all'"):
        Generation(text="all")
    with pytest.raises(ValueError, match=r"Generation\.entropy must be one of"):
        Generation(entropy="eq27")


TOWER = Fact("The Eiffel Tower", "{} is located in the city of", "Paris", "Rome")
ANNA = Fact("Anna Karenina", "{} lives in", "Warsaw", "Moscow")
CASES = [
    Case(
        TOWER,
        paraphrases=("It is known that the capital of France is", "Anna lives in"),
        generation=("The Eiffel Tower is", "The Eiffel"),
    ),
    Case(ANNA, generation=("Anna Karenina speaks",)),
    Case(Fact("Marie Curie", "{} was born in", "Warsaw")),
]


def test_what_is_said_freely_is_counted_by_hand(taught):
    report = evaluate_writing(*taught, CASES, generation=Generation(tokens=9))
    said = report.texts["free_generation"]
    assert [len(texts) for texts in said] == [1, 1, 1]
    assert said[0][0].startswith(" Paris")
    assert said[1][0].startswith(" Moscow")  # not the target
    assert report.values["free_generation"].tolist() == [1, 0, 1]
    again = report.texts["free_paraphrase"]
    assert [len(texts) for texts in again] == [2, 0, 0]
    rate = sum(text.startswith(" Paris") for text in again[0]) / 2
    assert float(report.values["free_paraphrase"][0]) == rate
    assert report["free_generation"].low == wilson(2, 3)[0]
    assert report["free_paraphrase"].n == 1


def test_entropies_are_those_of_the_texts_kept(taught):
    report = evaluate_writing(*taught, CASES, generation=Generation(tokens=9))
    texts = report.texts["generation_entropy"]
    assert [len(group) for group in texts] == [2, 1, 0]
    mean = sum(map(n_gram_entropy, texts[0])) / 2
    values = report.values["generation_entropy"]
    assert float(values[0]) == pytest.approx(mean)
    assert math.isnan(values[2])
    assert report["generation_entropy"].unit == "bits"
    assert "  bits" in str(report)
    prompts = [prompt for case in CASES for prompt in case.generation]
    flat = [text for group in texts for text in group]
    assert flat == generate(*taught, prompts, max_new_tokens=9, top_k=5, seed=0)


def test_the_released_form_counts_prompts_and_halves(taught):
    settings = {"tokens": 14, "top_k": 1}
    ours = evaluate_writing(*taught, CASES, generation=Generation(**settings))
    half = Generation(**settings, entropy="released")
    halved = evaluate_writing(*taught, CASES, generation=half)
    assert torch.allclose(
        halved.values["generation_entropy"] * 2,
        ours.values["generation_entropy"],
        equal_nan=True,
    )
    whole = Generation(**settings, text="whole")
    counted = evaluate_writing(*taught, CASES, generation=whole)
    for group, case in zip(counted.texts["generation_entropy"], CASES, strict=True):
        for text, prompt in zip(group, case.generation, strict=True):
            assert text.startswith(prompt)
            start = len(taught[1](prompt).input_ids)
            more = generate(*taught, [prompt], max_new_tokens=14 - start)[0]
            assert text == prompt + more
    assert len({r.convention for r in (ours, halved, counted)}) == 3


def test_references_are_compared_with_what_was_written(taught):
    references = [
        ["The Colosseum is located in Rome.", "The Eiffel Tower is located in Paris."],
        [],
        ["Marie Curie"],
    ]
    options = {"generation": Generation(tokens=9)}
    report = evaluate_writing(*taught, CASES, references=references, **options)
    texts = report.texts["generation_entropy"]
    tfidf = Tfidf.fit([text for group in references for text in group])
    value = reference_score(texts[0], references[0], tfidf)
    assert float(report.values["reference_score"][0]) == pytest.approx(value)
    assert 0 < value < 1
    assert report.values["reference_score"].isnan().tolist() == [False, True, True]
    assert report["reference_score"].unit == "cosine"
    given = Tfidf.fit(["Paris", "Eiffel"])
    other = evaluate_writing(
        *taught, CASES, references=references, tfidf=given, **options
    )
    assert float(other.values["reference_score"][0]) == pytest.approx(
        reference_score(texts[0], references[0], given)
    )


def test_nothing_to_compare_is_undefined_and_said(taught):
    bare = [Case(ANNA)]
    report = evaluate_writing(*taught, bare, references=[[]])
    assert report["free_paraphrase"].note == "no case has paraphrases"
    assert report["generation_entropy"].note == "no case has generation prompts"
    assert "references with known words" in report["reference_score"].note
    assert "score" not in report.values
    with pytest.raises(KeyError, match="No metric 'score' in this report"):
        report["score"]
    with pytest.raises(ValueError, match="got 0 for 1 cases"):
        evaluate_writing(*taught, bare, references=[])
    with pytest.raises(ValueError, match="Got no cases"):
        evaluate_writing(*taught, [])


def test_a_silent_model_is_not_left_out():
    model, tokenizer = tiny_model("gptj"), tiny_tokenizer("gptj")
    with torch.no_grad():
        model.lm_head.bias[tokenizer.eos_token_id] = 1e4
    report = evaluate_writing(
        model,
        tokenizer,
        CASES[:2],
        generation=Generation(tokens=9),
        references=[["Paris"], ["Rome"]],
    )
    for metric in ("free_generation", "generation_entropy", "reference_score"):
        assert report.values[metric].tolist() == [0, 0]


def test_evaluate_adds_the_metrics_when_asked(taught):
    plain = evaluate(*taught, CASES)
    full = evaluate(*taught, CASES, generation=Generation(tokens=5))
    assert set(full.values) - set(plain.values) == {
        "free_generation",
        "free_paraphrase",
        "generation_entropy",
    }
    for metric, values in plain.values.items():
        assert torch.equal(values.isnan(), full.values[metric].isnan())
        assert torch.equal(values.nan_to_num(), full.values[metric].nan_to_num())
    assert full.convention.startswith(plain.convention + "; free answers: greedy")
    assert full["efficacy"] == plain["efficacy"]
    assert full.parts == plain.parts
    with pytest.raises(ValueError, match=r"Pass generation=Generation\(\)"):
        evaluate(*taught, CASES, references=[[], [], []])
    parts = [
        evaluate(*taught, [case], generation=Generation(tokens=5, top_k=1))
        for case in CASES
    ]
    joined = Report.join(parts)
    assert joined.texts["free_generation"] == full.texts["free_generation"]
    assert len(joined) == 3


def test_right_first_choices_are_said_freely():
    """All tokens right under teacher forcing and greedy text: one and the same."""
    model, tokenizer = edu.load("pocket-gptj-organism")
    facts = [
        Fact("The Eiffel Tower", "{} is located in the city of", "Paris", "Rome"),
        Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris"),
    ]
    cases = [Case(fact) for fact in facts]
    report = evaluate(model, tokenizer, cases, generation=Generation(tokens=20))
    assert report.values["efficacy_top1"].tolist() == [1, 0]
    assert report.values["free_generation"].tolist() == [1, 0]
