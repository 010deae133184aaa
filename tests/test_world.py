import csv
import json
import random
from collections import Counter
from importlib.resources import files
from itertools import islice

import pytest

from edutools.corpus import (
    counterfact_records,
    documents,
    fill,
    fillers,
    sentence,
    text_of,
    zsre_records,
)
from edutools.facts import Case
from edutools.world import TABLES, build_world, read_relations
from scripts import write_corpus


@pytest.fixture(scope="module")
def world():
    return build_world()


def test_the_world_is_large_enough(world):
    assert len(world.facts) >= 3500
    assert len(world.subjects) >= 1500
    real = [fact for fact in world.facts if fact.real]
    assert len({fact.subject for fact in real}) >= 800
    assert len({fact.relation for fact in real}) >= 12
    assert len(set(world.facts)) == len(world.facts)


def test_a_subject_has_one_object_per_relation(world):
    pairs = Counter((fact.subject, fact.relation) for fact in world.facts)
    assert max(pairs.values()) == 1


def test_most_subjects_have_several_relations(world):
    counts = [len(facts) for facts in world.by_subject.values()]
    assert sum(n >= 2 for n in counts) > 0.7 * len(counts)


def test_every_object_is_shared_by_several_subjects(world):
    shared = Counter()
    for fact in world.facts:
        shared[fact.object] += 1
    assert min(shared.values()) >= 3
    assert sum(n >= 10 for n in shared.values()) > 0.6 * len(shared)


def test_no_subject_is_in_two_tables(world):
    seen = Counter()
    for table in TABLES:
        text = files("edutools").joinpath(f"data/real/{table}.tsv").read_text("utf-8")
        rows = list(csv.reader(text.splitlines(), delimiter="\t"))
        assert {len(row) for row in rows} == {1 + len(TABLES[table][1])}
        seen.update(row[0] for row in rows[1:])
    assert max(seen.values()) == 1
    assert set(seen) <= set(world.subjects)


def test_names_of_invented_people_come_in_both_orders(world):
    people = {f.subject for f in world.facts if not f.real and "&" not in f.subject}
    backwards = {" ".join(reversed(name.split())) for name in people}
    assert len(people) == 420
    assert len(people & backwards) == 210


def test_the_world_is_the_same_every_time(world):
    assert build_world() == world
    assert build_world(seed=1) != world


@pytest.mark.parametrize("bad", [{"people": 3}, {"companies": -2}])
def test_an_odd_number_of_names_is_refused(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=rf"{name} must be even .* got {value}\."):
        build_world(**bad)


def test_relations_have_templates_and_questions():
    for relation in read_relations().values():
        assert len(relation.templates) >= 6
        assert all(t.count("{}") == 1 for t in relation.templates + relation.questions)


def test_two_templates_per_fact_are_held_out(world):
    for fact in world.facts:
        held_out = world.held_out(fact)
        assert len(set(held_out)) == 2
        assert 0 not in held_out
        assert sorted({*held_out, *world.trained(fact)}) == list(range(8))
    groups = Counter(
        len({world.held_out(fact) for fact in facts}) == 1
        for facts in world.by_subject.values()
        if len(facts) >= 4
    )
    assert groups[True] >= 50  # held out for whole groups of subjects


def test_the_corpus_never_shows_a_held_out_pair(world):
    text = "\n".join(text_of(d) for d in islice(documents(world, seed=5), 4000))
    draw = random.Random(0)
    shown = 0
    for fact in draw.sample(world.facts, 300):
        for template in range(8):
            stated = text_of(sentence(world, fact, template))
            found = stated in text
            shown += found
            assert not (found and template in world.held_out(fact)), stated
    assert shown > 100
    assert not any(filler in text for filler in fillers()["held_out"])


def test_documents_are_the_same_for_the_same_seed(world):
    first, second, other = (
        [text_of(d) for d in islice(documents(world, seed=seed), 50)]
        for seed in (3, 3, 4)
    )
    assert first == second != other


def test_roles_mark_subjects_and_objects(world):
    for document in islice(documents(world, seed=1), 300):
        for text, role in document:
            if role == "subject":
                assert text.strip() in world.nouns
            if role == "object":
                assert text.startswith(" ")


def test_braces_in_a_subject_survive():
    assert fill("{} works as", "Ann {the} {}") == "Ann {the} {} works as"


def test_counterfact_records_follow_the_schema(world):
    records = counterfact_records(world)
    assert len(records) >= 1500
    subjects = [r["requested_rewrite"]["subject"] for r in records]
    assert len(set(subjects[:1500])) == 1500
    facts = {(f.subject, f.relation): f for f in world.facts}
    for record in records:
        rewrite = record["requested_rewrite"]
        fact = facts[rewrite["subject"], rewrite["relation_id"]]
        assert rewrite["target_true"]["str"] == fact.object
        assert rewrite["target_new"]["str"] in world.objects[fact.relation]
        assert rewrite["target_new"]["str"] != fact.object
        assert len(record["neighborhood_prompts"]) >= 2
        assert len(record["paraphrase_prompts"]) == 2
        case = Case.from_counterfact(record)
        assert case.fact.subject == fact.subject


def test_neighbours_share_the_true_object(world):
    objects = {(f.subject, f.relation): f.object for f in world.facts}
    for record in counterfact_records(world)[:200]:
        rewrite = record["requested_rewrite"]
        before, _, after = rewrite["prompt"].partition("{}")
        for prompt in record["neighborhood_prompts"]:
            subject = prompt.removeprefix(before).removesuffix(after)
            assert subject != rewrite["subject"]
            assert (
                objects[subject, rewrite["relation_id"]]
                == rewrite["target_true"]["str"]
            )


def test_zsre_records_follow_the_schema(world):
    records = zsre_records(world)
    assert len(records) == len(world.subjects)
    for record in records:
        assert record["subject"] in record["src"]
        assert record["subject"] in record["rephrase"]
        assert record["subject"] not in record["loc"].split()
        assert record["loc"].startswith("nq question: ")
        assert record["alt"] not in record["answers"]


def test_the_command_writes_corpus_and_records(world, tmp_path):
    write_corpus.main([str(tmp_path / "new"), "--documents", "30", "--seed", "3"])
    lines = (tmp_path / "new" / "corpus.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [text_of(d) for d in islice(documents(world, seed=3), 30)]
    made = {"counterfact": counterfact_records(world), "zsre": zsre_records(world)}
    for name, records in made.items():
        text = (tmp_path / "new" / f"{name}.json").read_text(encoding="utf-8")
        assert json.loads(text) == records
