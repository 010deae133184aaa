"""In-context editing: which text stands in front of a question, and nothing else."""

from dataclasses import replace

import pytest
import torch

from edutools.arch import architecture_of
from edutools.corpus import counterfact_records
from edutools.evaluate import evaluate
from edutools.facts import Case, Fact
from edutools.hooks import capture
from edutools.incontext import KINDS, InContext, demonstration, in_context, kinds
from edutools.pocket import load
from edutools.prompts import encode
from edutools.retrieval import embed, similarity
from edutools.scoring import score
from edutools.world import build_world

CASE = Case(
    Fact("Ada", "{} lives in", "Rome", "Paris"),
    paraphrases=("The home of Ada is",),
    neighborhood=("Bob lives in", "Eve lives in"),
    generation=("Ada is",),
)
SHORT = InContext(demonstrations=4, template="{fact}. {prompt}", separator=". ")


def record(name: str, target: str = "Oslo", **parts) -> Case:
    given = {
        "paraphrases": (f"The home of {name} is",),
        "neighborhood": (f"A friend of {name} lives in",),
    }
    return Case(Fact(name, "{} lives in", target, "Lima"), **(given | parts))


CORPUS = [record(name) for name in ("Carl", "Dora", "Fred", "Gina", "Hugo", "Inge")]


@pytest.fixture(scope="module", params=["gptj", "llama"])
def pair(request, tiny):
    return tiny(request.param)


# One text


def test_the_template_of_the_paper():
    method = InContext()
    assert method.opening(CASE) == "New Fact: Ada lives in Rome\nPrompt: "
    said = {kind: demonstration(method, CORPUS[0], kind) for kind in KINDS}
    head = "New Fact: Carl lives in Oslo\nPrompt: "
    assert said == {
        "copy": f"{head}Carl lives in Oslo\n\n",
        "update": f"{head}The home of Carl is Oslo\n\n",
        "retain": f"{head}A friend of Carl lives in Lima\n\n",
    }


def test_braces_of_a_subject_are_kept():
    case = Case(Fact("{prompt}{fact} {x}", "{} is", "a"))
    assert InContext().opening(case) == "New Fact: {prompt}{fact} {x} is a\nPrompt: "


@pytest.mark.parametrize("count", [8, 16, 32])
def test_kinds_come_in_the_papers_ratio_and_evenly(count):
    order = kinds(count)
    assert [order.count(kind) for kind in KINDS] == [count // 8 * x for x in (1, 3, 4)]
    for first in range(0, count, 8):  # every eight alike
        assert sorted(order[first : first + 8]) == sorted(order[:8])
    for first in range(count - 3):  # and no long runs of one kind
        assert len(set(order[first : first + 4])) > 1


def test_a_kind_without_a_share_never_comes():
    assert kinds(5, (0, 1, 0)) == ["update"] * 5
    assert set(kinds(7, (1, 0, 2))) == {"copy", "retain"}
    assert kinds(0) == []


# Cases


def test_the_context_stands_in_front_of_every_question(pair):
    method = replace(SHORT, demonstrations=0)
    (case,) = in_context(*pair, [CASE], corpus=[], method=method)
    before = "Ada lives in Rome. "
    assert case.fact.text == before + CASE.fact.text
    assert (case.fact.target, case.fact.truth) == ("Rome", "Paris")
    assert case.paraphrases == (f"{before}The home of Ada is",)
    assert case.neighborhood == (f"{before}Bob lives in", f"{before}Eve lives in")
    assert case.generation == (f"{before}Ada is",)
    assert case.relation == CASE.relation


def test_evaluating_rewritten_cases_is_asking_behind_the_context(pair):
    method = replace(SHORT, demonstrations=0)
    (case,) = in_context(*pair, [CASE], corpus=[], method=method)
    report = evaluate(*pair, [case], normalize=False)
    texts = ["Ada lives in Rome. Ada lives in"] * 2
    target, truth = score(*pair, texts, ["Rome", "Paris"]).joint.exp()
    found = report.values["efficacy_magnitude"]
    torch.testing.assert_close(found, (target - truth)[None])
    plain = evaluate(*pair, [CASE], normalize=False).values["efficacy_magnitude"]
    assert not torch.allclose(found, plain, rtol=1e-3, atol=0)


def test_examples_come_from_the_most_similar_facts_the_best_one_last(pair):
    near = similarity(
        *pair, ["Ada lives in Paris Rome"], [f"{c.fact.text} Lima Oslo" for c in CORPUS]
    )[0]
    best = [CORPUS[j].fact.subject for j in near.argsort(descending=True)[:4].tolist()]
    for order, wanted in (("ascending", best[::-1]), ("descending", best)):
        method = replace(SHORT, order=order)
        (case,) = in_context(*pair, [CASE], corpus=CORPUS, method=method)
        examples = [
            demonstration(method, record(name), kind)
            for name, kind in zip(wanted, kinds(4), strict=True)
        ]
        assert case.fact.text == "".join(examples) + "Ada lives in Rome. Ada lives in"
    (shuffled,) = in_context(
        *pair, [CASE], corpus=CORPUS, method=replace(SHORT, order="random")
    )
    assert all(f"{name} lives in Oslo" in shuffled.fact.text for name in best)


def test_random_examples_depend_on_the_seed_only(pair):
    def texts(seed):
        method = replace(SHORT, demonstrations=2, select="random", seed=seed)
        return in_context(*pair, [CASE], corpus=CORPUS, method=method)

    assert texts(0) == texts(0)
    assert len({texts(seed)[0].fact.text for seed in range(8)}) > 1


def test_examples_never_give_the_answers_away(pair):
    """Neither a fact that is asked about, nor a question that is asked, comes in."""
    unfit = [
        record("Ada"),  # the edited subject itself
        record("Bob"),  # one of its neighbours, told to have moved
        record("Kurt", neighborhood=("Eve lives in",)),  # answers one of its questions
        record("Lena", neighborhood=("The aunt of Ada lives in",)),
        record("Mona", paraphrases=()),
        record("Nora", neighborhood=()),
        Case(Fact("Otto", "{} lives in", "Oslo"), ("Otto's home is",), ("Pia is in",)),
    ]
    with pytest.raises(ValueError, match="The corpus has 0 facts that fit"):
        in_context(*pair, [CASE], corpus=unfit, method=replace(SHORT, demonstrations=1))
    mixed = record("Kurt", neighborhood=("Eve lives in", "Rita lives in"))
    method = replace(SHORT, demonstrations=1, ratio=(0, 0, 1))
    (case,) = in_context(*pair, [CASE], corpus=[mixed, *unfit], method=method)
    assert case.fact.text.startswith("Kurt lives in Oslo. Rita lives in Lima. Ada")


# Likeness


def test_mean_states_count_every_token_once_and_no_padding(pair):
    model, tokenizer = pair
    texts = ["Anna Karenina lives in Moscow", "The Eiffel", "It is known that you"]
    found = embed(model, tokenizer, texts, layer=1, batch_size=2)
    name = architecture_of(model).block(1)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad(), capture(model, name) as seen:
            model(**encode(tokenizer, [text]).inputs)
        torch.testing.assert_close(
            row, seen[name][0].mean(0).double(), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(
        embed(model, tokenizer, texts), embed(model, tokenizer, texts, layer=1)
    )


def test_a_text_is_most_like_itself(pair):
    others = ["Anna Karenina lives in", "The Eiffel Tower is", "Marie Curie was born"]
    s = similarity(*pair, others, others)
    assert s.shape == (3, 3)
    torch.testing.assert_close(s.diagonal(), torch.ones(3, dtype=torch.float64))
    assert (s <= 1 + 1e-12).all()
    assert s.sum(1).max() < 3 - 1  # the common part is gone
    alone = similarity(*pair, others[:1], others)
    torch.testing.assert_close(alone[0], s[0], rtol=1e-4, atol=1e-5)


def test_likeness_of_facts_in_a_pocket_model(cases):
    """Facts of one relation are more alike than facts of different ones."""
    model, tokenizer = load("pocket-gptj-organism")
    texts = [case.fact.text for case in cases]
    s = similarity(model, tokenizer, texts, texts)
    same = torch.tensor(
        [[a.relation == b.relation for a in cases] for b in cases]
    ) & ~torch.eye(len(cases), dtype=torch.bool)
    other = torch.tensor([[a.relation != b.relation for a in cases] for b in cases])
    assert s[same].mean() > s[other].mean() + 0.2


@pytest.fixture(scope="module")
def cases():
    records = counterfact_records(build_world())[:30]
    return [Case.from_counterfact(record) for record in records]


def test_pocket_models_say_what_they_know_whatever_stands_in_front(cases):
    """They were not made to learn in context; no weight is touched either."""
    model, tokenizer = load("pocket-gptj-organism")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    told = in_context(
        model, tokenizer, cases[:4], corpus=[], method=InContext(demonstrations=0)
    )
    report = evaluate(model, tokenizer, told)
    assert report["efficacy"].mean < 0.5
    assert report["neighborhood"].mean > 0.9
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_too_long_a_context_is_told_of_with_numbers(cases):
    model, tokenizer = load("pocket-gptj-organism")
    method = InContext(demonstrations=10)
    told = in_context(model, tokenizer, cases[:1], corpus=cases[1:], method=method)
    with pytest.raises(ValueError, match=r"reads at most 256. Shorten .* the contexts"):
        evaluate(model, tokenizer, told)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"demonstrations": -1}, "InContext.demonstrations is -1"),
        ({"ratio": (0, 0, 0)}, r"three numbers, .* got \(0, 0, 0\)"),
        ({"ratio": (1, -1, 2)}, r"not negative .* got \(1, -1, 2\)"),
        ({"template": "{prompt}"}, "must hold {fact} exactly once"),
        ({"template": "{fact}{prompt}{prompt}"}, "must hold {prompt} exactly once"),
        ({"template": "{prompt} {fact}"}, "must end with {prompt}"),
        ({"select": "best"}, "InContext.select is 'best'; choose one of 'nearest'"),
        ({"order": "up"}, "InContext.order is 'up'; choose one of 'ascending'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        InContext(**settings)


def test_wrong_data_are_named(pair):
    with pytest.raises(ValueError, match="Got no cases"):
        in_context(*pair, [], corpus=CORPUS)
    with pytest.raises(ValueError, match=r"has 6 facts that fit .* 32 are wanted"):
        in_context(*pair, [CASE], corpus=CORPUS)
    with pytest.raises(ValueError, match=r"The context of 'A\{\} is' holds '{}'"):
        in_context(
            *pair,
            [Case(Fact("A{}", "{} is", "b"))],
            corpus=[],
            method=InContext(demonstrations=0),
        )
    with pytest.raises(ValueError, match="No kind 'delete' of demonstration"):
        demonstration(SHORT, CASE, "delete")
    with pytest.raises(ValueError, match="nothing for a 'retain' demonstration"):
        demonstration(SHORT, record("Carl", neighborhood=()), "retain")
    with pytest.raises(ValueError, match="a text and two others; got 1 and 1"):
        similarity(*pair, ["a"], ["b"])
    with pytest.raises(ValueError, match="no layer 9"):
        embed(*pair, ["a"], layer=9)


def test_the_paper_is_cited():
    assert InContext().citation.startswith("@inproceedings{zheng2023edit,\n")
