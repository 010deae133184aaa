"""Answers token by token: zsRE, and the scope of an edit."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edutools as edu
from edutools.facts import Case, Fact, ZsreCase
from edutools.generation import generate
from edutools.metrics import harmonic_mean, wilson
from edutools.moments import load_moments
from edutools.questions import evaluate_zsre
from edutools.scope import Answers, answers_of, evaluate_scope
from edutools.testing import taught_model, tiny_tokenizer

QUESTIONS = [
    ZsreCase(
        question="The Eiffel Tower is located in",
        rephrase="It is known that the capital of France is",
        answer="Paris. Therefore I",
        unrelated_question="Anna Karenina lives",
        unrelated_answer="in Moscow and speaks Danish",
        subject="The Eiffel Tower",
    ),
    ZsreCase(
        question="Marie Curie was born in",
        rephrase="Marie Curie worked in",
        answer="Warsaw and",
        unrelated_question="Therefore I",
        unrelated_answer="believe you",
        subject="Marie Curie",
    ),
]
CASES = [
    Case(
        Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris"),
        paraphrases=("It is known that the capital of France is", "Rome, not"),
        neighborhood=("Marie Curie worked in", "The Colosseum is"),
    ),
    Case(Fact("Anna Karenina", "{} lives in", "Moscow and speaks")),
]


@pytest.fixture(scope="module", params=["gptj", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


@pytest.fixture
def changed(taught):
    """The same model, damaged, as an edit gone wrong would do it."""
    model = taught_model(taught[0].config.model_type)
    with torch.no_grad():
        layers = getattr(model, "transformer", None) or model.model
        blocks = layers.h if hasattr(layers, "h") else layers.layers
        mlp = blocks[1].mlp
        weight = (mlp.fc_out if hasattr(mlp, "fc_out") else mlp.down_proj).weight
        weight.mul_(-1)
    return model, taught[1]


def choices(model, tokenizer, prompt, answer):
    """First choices along an answer, by one whole forward pass; and its tokens."""
    start = tokenizer(prompt).input_ids
    whole = tokenizer(f"{prompt} {answer}").input_ids
    assert whole[: len(start)] == start
    with torch.no_grad():
        best = model(torch.tensor([whole])).logits[0].argmax(-1)
    return best[len(start) - 1 : -1].tolist(), whole[len(start) :]


def rate(model, tokenizer, prompt, answer, per):
    best, wanted = choices(model, tokenizer, prompt, answer)
    hits = [guess == token for guess, token in zip(best, wanted, strict=True)]
    return sum(hits) / len(hits) if per == "token" else float(all(hits))


@pytest.mark.parametrize("per", ["token", "answer"])
def test_zsre_equals_the_plain_computation(taught, per):
    report = evaluate_zsre(*taught, QUESTIONS, per=per, batch_size=2)
    for i, case in enumerate(QUESTIONS):
        pairs = {
            "efficacy": (case.question, case.answer),
            "paraphrase": (case.rephrase, case.answer),
            "specificity": (case.unrelated_question, case.unrelated_answer),
        }
        for name, pair in pairs.items():
            found = float(report.values[name][i])
            assert found == pytest.approx(rate(*taught, *pair, per)), name
    assert f"per {per}" in report.convention
    assert list(report.values) == list(report.parts)
    means = [report[name].mean for name in report.parts]
    assert report["score"].mean == pytest.approx(harmonic_mean(*means))


def test_a_wrong_answer_may_have_right_tokens(taught):
    tokens = evaluate_zsre(*taught, QUESTIONS)
    answers = evaluate_zsre(*taught, QUESTIONS, per="answer")
    assert 0 < float(tokens.values["specificity"][0]) < 1
    assert float(answers.values["specificity"][0]) == 0
    for name, values in tokens.values.items():
        assert (values >= answers.values[name]).all()
    row = answers["specificity"]
    right = int(answers.values["specificity"].sum())
    assert (row.low, row.high) == wilson(right, 2)


def test_neither_batch_nor_order_matters(taught):
    whole = evaluate_zsre(*taught, QUESTIONS)
    turned = evaluate_zsre(*taught, QUESTIONS[::-1], batch_size=1)
    for name, values in whole.values.items():
        assert torch.equal(values, turned.values[name].flip(0))


def test_the_released_form_never_finds_parts_of_characters():
    """'ø' is two tokens: right under teacher forcing, wrong when tokenized again."""
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    case = ZsreCase("Zoë is", "Zoë was", "øre", "Therefore I", "believe you.", "Zoë")
    ids = tokenizer(" øre").input_ids
    assert tokenizer.decode(ids[1:2]) == "\ufffd"
    teach(model, tokenizer("Zoë is øre").input_ids)
    paper = evaluate_zsre(model, tokenizer, [case])
    released = evaluate_zsre(model, tokenizer, [case], form="released")
    assert float(paper.values["efficacy"]) == 1
    lost = float(paper.values["efficacy"] - released.values["efficacy"])
    assert lost > 1.9 / len(ids)
    # Where all tokens are whole characters the two agree.
    assert released.values["specificity"].equal(paper.values["specificity"])
    assert float(paper.values["specificity"]) == 1
    assert paper.convention != released.convention


def teach(model, ids):
    """Let the model learn one sentence by heart and forget the rest."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = torch.tensor([ids])
    keep = torch.tensor([tiny_tokenizer("gptj")("Therefore I believe you.").input_ids])
    for _ in range(60):
        loss = model(batch, labels=batch).loss + model(keep, labels=keep).loss
        adam.zero_grad()
        loss.backward()
        adam.step()


def test_a_mark_in_front_of_texts_is_no_part_of_an_answer():
    """The released form is not caught by a tokenizer that adds a BOS."""
    model, tokenizer = taught_model("llama"), tiny_tokenizer("llama")
    assert tokenizer("Paris").input_ids[0] == tokenizer.bos_token_id
    case = QUESTIONS[1]
    report = evaluate_zsre(model, tokenizer, [case], form="released")
    assert float(report.values["efficacy"]) > 0


def test_recorded_accuracies_are_those_of_each_token(golden):
    """What the released code found, without the mean over tokens and cases."""
    folders = [path.parent for path in golden.glob("models/*/model.safetensors")]
    assert folders
    for folder in folders:
        recorded = golden / folder.name / "8_eval.json"
        items = json.loads(recorded.read_text(encoding="utf-8"))["zsre"]
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        cases = [as_case(item["source"]) for item in items]
        for form in ("paper", "released"):
            report = evaluate_zsre(model, tokenizer, cases, form=form)
            for i, item in enumerate(items):
                for name, key in {
                    "efficacy": "rewrite",
                    "paraphrase": "paraphrase",
                    "specificity": "neighborhood",
                }.items():
                    hits = item["result"][f"{key}_prompts_correct"]
                    found = float(report.values[name][i])
                    assert found == pytest.approx(sum(hits) / len(hits))


def as_case(source):
    """With the mark in front of the unrelated question, as the released code asks."""
    return ZsreCase(
        question=source["src"],
        rephrase=source["rephrase"],
        answer=source["answers"][0],
        unrelated_question=source["loc"] + "?",
        unrelated_answer=source["loc_ans"],
        subject=source["subject"],
    )


@pytest.mark.parametrize("per", ["token", "answer"])
def test_scope_equals_the_plain_computation(taught, changed, per):
    before = answers_of(*taught, CASES)
    report = evaluate_scope(*changed, CASES, before=before, per=per)
    values = report.values
    fact = CASES[0].fact
    assert float(values["reliability"][0]) == rate(*changed, fact.text, "Rome", per)
    rates = [rate(*changed, text, "Rome", per) for text in CASES[0].paraphrases]
    assert float(values["generalization"][0]) == pytest.approx(sum(rates) / 2)
    same = []
    for text in CASES[0].neighborhood:
        old, _ = choices(*taught, text, "Paris")
        new, _ = choices(*changed, text, "Paris")
        kept = [a == b for a, b in zip(old, new, strict=True)]
        same.append(sum(kept) / len(kept) if per == "token" else float(all(kept)))
    assert float(values["locality"][0]) == pytest.approx(sum(same) / 2)
    assert values["generalization"].isnan().tolist() == [False, True]
    assert values["locality"].isnan().tolist() == [False, True]
    assert "portability" not in values
    assert report.parts == ()


def test_an_unchanged_model_is_perfectly_local_even_where_it_is_wrong(taught):
    cases = [*CASES, *QUESTIONS]
    before = answers_of(*taught, cases)
    for per in ("token", "answer"):
        report = evaluate_scope(*taught, cases, before=before, per=per)
        known = report.values["locality"]
        assert known[~known.isnan()].unique().tolist() == [1]
    truth = evaluate_zsre(*taught, QUESTIONS, per="answer")
    assert truth["specificity"].mean < 1
    assert repr(before) == "Answers(n=4)"


def test_a_damaged_model_is_not_local(taught, changed):
    before = answers_of(*taught, QUESTIONS)
    whole = evaluate_scope(*changed, QUESTIONS, before=before)
    tokens = evaluate_scope(*changed, QUESTIONS, before=before, per="token")
    assert whole["locality"].mean < 1
    assert (tokens.values["locality"] >= whole.values["locality"]).all()
    assert whole.convention != tokens.convention


def test_questions_and_facts_are_asked_alike(taught):
    zsre = evaluate_zsre(*taught, QUESTIONS, per="answer")
    scope = evaluate_scope(*taught, QUESTIONS)
    assert torch.equal(scope.values["reliability"], zsre.values["efficacy"])
    assert torch.equal(scope.values["generalization"], zsre.values["paraphrase"])


def test_whole_answers_are_those_that_the_model_gives_freely(taught):
    model, tokenizer = taught
    report = evaluate_scope(*taught, QUESTIONS)
    for case, right in zip(QUESTIONS, report.values["reliability"], strict=True):
        n = len(choices(*taught, case.question, case.answer)[1])
        (said,) = generate(model, tokenizer, [case.question], max_new_tokens=n)
        assert (said.strip() == case.answer) == bool(right)
    assert report["reliability"].n == 2


def test_consequences_are_asked_for_on_request(taught):
    pairs = [[("Anna Karenina lives in", "Moscow"), ("You speak", "Danish")], []]
    report = evaluate_scope(*taught, CASES, portability=pairs)
    wanted = [rate(*taught, *pair, "answer") for pair in pairs[0]]
    assert float(report.values["portability"][0]) == sum(wanted) / 2 == 0.5
    assert math.isnan(report.values["portability"][1])
    nothing = evaluate_scope(*taught, CASES, portability=[[], []])
    assert nothing["portability"].note == "no case has a consequence to ask for"
    with pytest.raises(ValueError, match="got 1 for 2 cases"):
        evaluate_scope(*taught, CASES, portability=[[]])


def test_what_is_missing_is_said(taught):
    report = evaluate_scope(*taught, CASES)
    assert math.isnan(report["locality"].mean)
    assert "before=answers_of(...)" in report["locality"].note
    alone = evaluate_scope(*taught, CASES[1:], before=answers_of(*taught, CASES[1:]))
    assert alone["generalization"].note == "no case has another wording"
    assert "unrelated prompt" in alone["locality"].note


def test_wrong_requests_are_refused(taught):
    for ask in (evaluate_zsre, evaluate_scope, answers_of):
        with pytest.raises(ValueError, match="Got no cases"):
            ask(*taught, [])
    with pytest.raises(ValueError, match=r"per must be one of .*; got 'word'"):
        evaluate_zsre(*taught, QUESTIONS, per="word")
    with pytest.raises(ValueError, match=r"form must be one of .*; got 'code'"):
        evaluate_zsre(*taught, QUESTIONS, form="code")
    with pytest.raises(ValueError, match=r"per must be one of .*; got 'word'"):
        evaluate_scope(*taught, CASES, per="word")
    other = answers_of(*taught, QUESTIONS)
    with pytest.raises(ValueError, match="answers to 2 prompts, but not the 2 of"):
        evaluate_scope(*taught, CASES, before=other)
    turned = Answers(other.asked[::-1], other.first[::-1])
    with pytest.raises(ValueError, match="in this order"):
        evaluate_scope(*taught, QUESTIONS, before=turned)


def test_an_edit_that_works_is_seen_to_work():
    model, tokenizer = edu.load("pocket-gptj-organism")
    moments = load_moments(edu.pocket("gptj-organism"))
    fact = Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")
    case = Case(fact, neighborhood=("The Louvre is located in the city of",))
    method = edu.ROME.preset("pocket-gptj-organism")
    change = edu.edit(model, tokenizer, [fact], method=method, moments=moments)
    before = answers_of(model, tokenizer, [case])
    assert evaluate_scope(model, tokenizer, [case])["reliability"].mean == 0
    with change.applied(model):
        report = evaluate_scope(model, tokenizer, [case], before=before)
    assert report["reliability"].mean == 1
    assert report["locality"].n == 1
