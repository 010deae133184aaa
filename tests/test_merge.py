"""MEMIT-Merge: facts about one subject share one value."""

import json
from dataclasses import replace

import pytest
import torch

import edutools as edu
from edutools.batch import MEMIT
from edutools.contexts import Contexts
from edutools.facts import Fact
from edutools.keyvalue import ValueSearch, beginning
from edutools.merge import MEMITMerge
from edutools.method import Method
from edutools.methods import edit
from edutools.moments import load_moments, second_moment
from edutools.scoring import score
from edutools.search import target_states
from edutools.testing import (
    TINY,
    TINY_FACTS,
    check_method,
    taught_model,
    tiny_tokenizer,
)

FACTS = list(TINY_FACTS)
SAME = [
    Fact("Anna Karenina", "{} lives in", "Warsaw"),
    Fact("Anna Karenina", "{} was born in", "Rome"),
    Fact("Anna Karenina", "{} is located in the city of", "Paris"),
]
GIVEN = Contexts(given=("{}", "It is known. {}", "Therefore I believe. {}"))
SEARCH = ValueSearch(steps=8, contexts=GIVEN)


@pytest.fixture(scope="module")
def taught():
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    texts = [fact.text + " " + fact.target for fact in [*FACTS, *SAME]] * 3
    moments = second_moment(model, tokenizer, texts, layers=[0, 1], progress=False)
    return model, tokenizer, moments


@pytest.mark.parametrize("kind", TINY)
def test_merging_keeps_all_promises_on_every_architecture(kind):
    check_method(MEMITMerge(layers=(0, 1), lam=0.1, search=SEARCH), kinds=[kind])


def test_facts_are_grouped_by_the_text_up_to_the_subject_s_end():
    other = Fact("Anna Karenina", "It is known that {} lives in", "Rome")
    assert [beginning(fact) for fact in (SAME[0], other)] == [
        "Anna Karenina",
        "It is known that Anna Karenina",
    ]
    mixed = [SAME[0], FACTS[0], SAME[1], other, SAME[2]]
    assert MEMITMerge().groups(mixed) == [0, 1, 0, 3, 0]
    assert MEMIT().groups(mixed) == [0, 1, 2, 3, 4]


def test_facts_that_share_a_value_share_every_bit_of_it(taught):
    """As if one δ minimised the mean of the losses: written out for two steps."""
    model, tokenizer, _ = taught
    facts = [*SAME, FACTS[0]]
    search = replace(SEARCH, steps=2, clamp=100.0)
    groups = [7, 7, 7, 3]
    shared = target_states(model, tokenizer, facts, 1, search=search, groups=groups)
    alone = target_states(model, tokenizer, facts, 1, search=search)
    move = shared.values - shared.initial
    for i in (1, 2):
        torch.testing.assert_close(move[:, 0], move[:, i], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(shared.values[:, 3], alone.values[:, 3])
    assert not torch.allclose(move[:, 0], (alone.values - alone.initial)[:, 0])
    longer = replace(search, steps=30)
    found = target_states(model, tokenizer, facts, 1, search=longer, groups=groups)
    loss = found.history["loss"][:3].mean(0)
    first = target_states(model, tokenizer, facts, 1, search=longer).history["loss"]
    assert loss.nan_to_num(9).min() < first[:3, 0].mean()
    assert len(set(found.iterations[:3].tolist())) == 1


def test_neither_order_nor_batches_change_shared_values(taught):
    model, tokenizer, _ = taught
    facts, groups = [*SAME, *FACTS], [0, 0, 0, 1, 2, 3]
    whole = target_states(model, tokenizer, facts, 1, search=SEARCH, groups=groups)
    for size in (1, 2, 4):
        parts = target_states(
            model,
            tokenizer,
            facts[::-1],
            1,
            search=SEARCH,
            groups=groups[::-1],
            batch_size=size,
        )
        torch.testing.assert_close(
            whole.values, parts.values.flip(1), rtol=1e-4, atol=1e-5
        )


def test_a_group_is_finished_when_all_its_facts_are(taught):
    model, tokenizer, _ = taught
    known = Fact("Anna Karenina", "{} lives in", "Moscow")
    search = replace(SEARCH, stop_loss=1.0, kl=0.0)
    facts = [known, SAME[1]]
    alone = target_states(model, tokenizer, facts, 1, search=search)
    assert alone.iterations.tolist()[0] == 1
    both = target_states(model, tokenizer, facts, 1, search=search, groups=[0, 0])
    assert both.iterations[0] == both.iterations[1] > 1


def test_senseless_groups_are_refused(taught):
    model, tokenizer, _ = taught
    with pytest.raises(ValueError, match="Got 3 facts and 2 groups"):
        target_states(model, tokenizer, SAME, 1, search=SEARCH, groups=[0, 0])
    message = "Facts 0 and 1 are in one group but begin differently, 'The Eiffel Tower'"
    with pytest.raises(ValueError, match=message):
        target_states(model, tokenizer, FACTS, 1, search=SEARCH, groups=[0, 0, 0])


def test_without_a_common_subject_it_is_memit(taught):
    model, tokenizer, moments = taught
    options = {"layers": (0, 1), "lam": 0.1, "search": SEARCH}
    one, two = (
        edit(model, tokenizer, FACTS, method=method, moments=moments)
        for method in (MEMIT(**options), MEMITMerge(**options))
    )
    assert all(two.deltas[name].equal(delta) for name, delta in one.deltas.items())


def test_a_group_is_written_once(taught):
    model, tokenizer, moments = taught
    method = MEMITMerge(layers=(1,), lam=0.1, search=SEARCH)
    change = edit(model, tokenizer, [*SAME, FACTS[0]], method=method, moments=moments)
    assert change.rank == 2
    assert len(change.info["search"]["probability"]) == 4
    assert len(change.info["facts"]) == 4


def never(*_, **__):
    """A search that must not begin."""
    raise RuntimeError("the search has begun")


def test_two_targets_for_one_prompt_are_refused_before_any_search(taught):
    model, tokenizer, moments = taught
    twice = [*SAME, Fact("Anna Karenina", "{} lives in", "Rome")]
    message = (
        "Facts 0 and 3 contradict each other: 'Anna Karenina lives in' cannot go on "
        "with both 'Warsaw' and 'Rome'. Drop one."
    )
    method = MEMITMerge(layers=(1,), search=SEARCH)
    with pytest.raises(ValueError, match=message):
        edit(model, tokenizer, twice, method=method, moments=moments, find=never)


def test_settings_survive_json_and_come_from_memit():
    method = MEMITMerge.preset("gpt-j-6b")
    memit = MEMIT.preset("gpt-j-6b")
    assert (method.layers, method.lam, method.search) == (
        memit.layers,
        memit.lam,
        memit.search,
    )
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert method.citation.startswith("@article{dong2025merge")
    with pytest.raises(ValueError, match="MEMIT has no preset for 'gpt2-large'"):
        MEMITMerge.preset("gpt2-large")
    with pytest.raises(ValueError, match=r"MEMITMerge\.lam is 0"):
        MEMITMerge(lam=0.0)


def test_three_facts_about_one_person_are_all_learnt_only_when_merged():
    """On the model organism; MEMIT stores the mean of three values."""
    name = "pocket-gptj-organism"
    model, tokenizer = edu.load(name)
    moments = load_moments(edu.pocket(name))
    person = "Marcel Cordin"
    facts = [
        Fact(person, "{} plays the", "flute", "saxophone"),
        Fact(person, "{} works as", "biologist", "architect"),
        Fact(person, "{} was born in the city of", "Dublin", "Barcelona"),
    ]
    search = edu.ROME.preset(name).search
    search = replace(search, site="block", contexts=Contexts(prefixes=((2, 5),)))
    texts, targets = [f.text for f in facts], [f.target for f in facts]
    right, chance = {}, {}
    for kind in (MEMIT, MEMITMerge):
        method = kind(layers=(5,), lam=10.0, search=search)
        change = edit(model, tokenizer, facts, method=method, moments=moments)
        with change.applied(model):
            scores = score(model, tokenizer, texts, targets)
        right[kind], chance[kind] = int(scores.correct.sum()), scores.joint.exp()
    assert right[MEMITMerge] == 3
    assert right[MEMIT] < 3
    assert (chance[MEMITMerge] > chance[MEMIT]).all()
