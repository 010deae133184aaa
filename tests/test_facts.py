"""Facts, cases and their files."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edutools.facts import Case, Fact, SubjectNotFound, ZsreCase

RECORD = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is located in the city of",
        "relation_id": "P131",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "subject": "The Eiffel Tower",
    },
    "paraphrase_prompts": ["The Eiffel Tower stands in"],
    "neighborhood_prompts": ["The Louvre is located in the city of"],
    "generation_prompts": ["Near the Eiffel Tower"],
}
QUESTION = {
    "subject": "Linux",
    "src": "Who made Linux?",
    "pred": "Linus",
    "rephrase": "Who is the author of Linux?",
    "alt": "Ada",
    "answers": ["Linus Torvalds", "Torvalds"],
    "loc": "nq question: who sang the song",
    "loc_ans": "Nina",
    "cond": "Linus >> Ada || Who made Linux?",
}


def without(record: dict, *path: str) -> dict:
    """A deep copy of the record without one key."""
    copy = json.loads(json.dumps(record))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return copy


def test_a_fact_strips_and_fills():
    fact = Fact(" Ada ", " {} lives in ", " Rome ", " Paris ")
    assert fact == Fact("Ada", "{} lives in", "Rome", "Paris")
    assert fact.text == "Ada lives in"


@given(st.text(min_size=1).filter(str.strip))
def test_any_subject_survives_unchanged(subject):
    assert Fact(subject, "a {} b", "c").text == f"a {subject.strip()} b"


def test_braces_in_the_subject_survive():
    assert Fact("{0} {} {x}", "It is {}, said", "he").text == "It is {0} {} {x}, said"


def test_facts_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Fact("Ada", "{} is", "x").target = "y"


@pytest.mark.parametrize("prompt", ["Paris is in", "{} and {}", "{0} is", "{ } is"])
def test_a_prompt_without_exactly_one_slot_is_refused(prompt):
    with pytest.raises(ValueError, match=r"exactly one '\{\}'") as error:
        Fact("Ada", prompt, "x")
    assert prompt in str(error.value)
    assert "Write e.g. '{} is located in the city of'." in str(error.value)


@pytest.mark.parametrize("field", ["subject", "prompt", "target", "truth"])
@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_empty_fields_are_refused(field, empty):
    values = {"subject": "Ada", "prompt": "{} is", "target": "x", "truth": "y"}
    with pytest.raises(ValueError, match=rf"Fact\.{field} must not be empty"):
        Fact(**values | {field: empty})


@pytest.mark.parametrize("field", ["subject", "prompt", "target", "truth"])
def test_fields_that_are_no_text_are_refused(field):
    values = {"subject": "Ada", "prompt": "{} is", "target": "x", "truth": "y"}
    with pytest.raises(TypeError, match=field):
        Fact(**values | {field: 3})


def test_a_missing_truth_is_allowed():
    assert Fact("Ada", "{} is", "x").truth is None


def test_counterfact_records_go_there_and_back():
    case = Case.from_counterfact(RECORD)
    assert case.fact == Fact(
        "The Eiffel Tower", "{} is located in the city of", "Rome", "Paris"
    )
    assert case.paraphrases == ("The Eiffel Tower stands in",)
    assert case.relation == "P131"
    assert Case.from_counterfact(case.to_counterfact()) == case
    assert "case_id" not in case.to_counterfact()
    assert case.to_counterfact(case_id=7)["case_id"] == 7


def test_records_without_generation_prompts_or_relation_are_read():
    record = without(RECORD, "generation_prompts")
    del record["requested_rewrite"]["relation_id"]
    case = Case.from_counterfact(record)
    assert (case.generation, case.relation) == ((), "")


def test_null_stands_for_nothing_where_a_key_may_be_missing():
    rewrite = RECORD["requested_rewrite"] | {"relation_id": None}
    nulls = {"requested_rewrite": rewrite, "generation_prompts": None}
    case = Case.from_counterfact(RECORD | nulls)
    assert (case.generation, case.relation) == ((), "")
    with pytest.raises(TypeError, match="paraphrase_prompts must be a list"):
        Case.from_counterfact(RECORD | {"paraphrase_prompts": None})


def test_a_relation_is_text():
    rewrite = RECORD["requested_rewrite"] | {"relation_id": 131}
    with pytest.raises(TypeError, match="relation"):
        Case.from_counterfact(RECORD | {"requested_rewrite": rewrite})


@pytest.mark.parametrize("field", ["paraphrases", "neighborhood", "generation"])
def test_cases_hold_no_empty_texts(field):
    with pytest.raises(ValueError, match=rf"Case\.{field} must hold no empty text"):
        Case(Fact("Ada", "{} is", "x"), **{field: ("a", " ")})


def test_a_case_without_truth_has_no_record():
    fact = Fact("Ada", "{} is", "x")
    with pytest.raises(ValueError, match="needs a truth; 'Ada is' has none"):
        Case(fact, ("a",), ("b",)).to_counterfact()


def test_cases_hold_facts_and_texts():
    with pytest.raises(TypeError):
        Case("Ada", (), ())
    with pytest.raises(TypeError):
        Case(Fact("Ada", "{} is", "x"), "one text", ())


@pytest.mark.parametrize(
    "path",
    [
        ("requested_rewrite",),
        ("requested_rewrite", "subject"),
        ("requested_rewrite", "prompt"),
        ("requested_rewrite", "target_new"),
        ("requested_rewrite", "target_true", "str"),
        ("paraphrase_prompts",),
        ("neighborhood_prompts",),
    ],
)
def test_a_missing_key_is_named(path):
    with pytest.raises(ValueError, match=f"key '{path[-1]}' is missing"):
        Case.from_counterfact(without(RECORD, *path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("paraphrase_prompts", "one text"),
        ("neighborhood_prompts", [1, 2]),
        ("generation_prompts", {"a": "b"}),
    ],
)
def test_prompts_that_are_no_lists_of_texts_are_refused(key, value):
    with pytest.raises(TypeError, match=key.removesuffix("_prompts")):
        Case.from_counterfact(RECORD | {key: value})


def test_a_rewrite_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="must be an object"):
        Case.from_counterfact(RECORD | {"requested_rewrite": ["a"]})


def test_zsre_records_are_read():
    case = ZsreCase.from_zsre(QUESTION)
    assert case.answer == "Linus Torvalds"
    assert case.unrelated_question == "who sang the song?"
    assert case.fact == Fact("Linux", "Who made {}?", "Linus Torvalds")
    asked = ZsreCase.from_zsre(QUESTION | {"loc": "who sang it?"})
    assert asked.unrelated_question == "who sang it?"


def test_a_subject_named_twice_becomes_one_slot():
    case = replace(ZsreCase.from_zsre(QUESTION), question="Is Linux like Linux?")
    assert case.fact.prompt == "Is {} like Linux?"
    assert case.fact.text == case.question


@pytest.mark.parametrize("question", ["Who made it?", "Who made {} of Linux?"])
def test_a_question_must_hold_its_subject_and_no_slot(question):
    with pytest.raises(SubjectNotFound, match="must hold the subject 'Linux'"):
        ZsreCase.from_zsre(QUESTION | {"src": question})


@pytest.mark.parametrize("key", ["src", "rephrase", "answers", "loc", "loc_ans"])
def test_a_missing_zsre_key_is_named(key):
    with pytest.raises(ValueError, match=f"key '{key}' is missing"):
        ZsreCase.from_zsre(without(QUESTION, key))


def test_a_question_without_answers_is_refused():
    with pytest.raises(ValueError, match="'answers' is empty"):
        ZsreCase.from_zsre(QUESTION | {"answers": []})
