"""The workbench, used as a reader would: by its controls."""

import pytest
import torch

import edutools as edu
from edutools.corpus import counterfact_records, documents, text_of
from edutools.widgets import Workbench, workbench
from edutools.world import build_world

LAYER = 5


@pytest.fixture(scope="module")
def pocket():
    return edu.load("pocket-gptj-organism")


@pytest.fixture(scope="module")
def cases():
    records = counterfact_records(build_world())[:40:10]
    return [edu.Case.from_counterfact(record) for record in records]


@pytest.fixture
def bench(pocket, cases) -> Workbench:
    from itertools import islice

    world = build_world()
    texts = [text_of(d) for d in islice(documents(world, seed=3), 400)]
    return workbench(*pocket, cases, texts=texts)


def weights(model):
    return {name: w.clone() for name, w in model.state_dict().items()}


def same(model, before) -> bool:
    return all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_a_fact_is_traced_written_shown_and_taken_back(bench, pocket):
    model, _ = pocket
    before = weights(model)
    assert "unedited" in bench.table.value
    bench.buttons["Trace"].click()
    assert "<img" in bench.picture.value
    assert 'alt="Indirect effect' in (bench.picture.value)
    bench.method.value = "MEMIT"
    bench.layer.value = LAYER
    bench.buttons["Edit"].click()
    assert "Applied: Edit(MEMIT" in bench.status.value
    assert bench.edit is not None
    assert list(bench.moments) == [LAYER]
    assert not same(model, before)
    shown = bench.table.value
    bench.buttons["Undo"].click()
    assert bench.edit is None
    assert same(model, before)
    assert bench.table.value != shown


def test_the_table_tells_what_the_model_says(bench, pocket, cases):
    model, tokenizer = pocket
    bench.buttons["Edit"].click()
    fact = bench.fact
    p = edu.scoring.score(model, tokenizer, [fact.text], [fact.target]).joint.exp()
    assert f"<td>{float(p[0]):.3f}</td></tr>" in bench.table.value
    assert p[0] > 0.5
    bench.undo()
    for text in (cases[0].paraphrases[0], cases[0].neighborhood[0]):
        assert text in bench.table.value


def test_another_fact_begins_with_the_unedited_model(bench, pocket, cases):
    model, _ = pocket
    before = weights(model)
    bench.buttons["Edit"].click()
    bench.case.value = 1
    assert same(model, before)
    assert bench.edit is None
    assert bench.target.value == cases[1].fact.target
    assert cases[1].fact.text in bench.table.value


def test_a_second_edit_takes_the_place_of_the_first(bench, pocket):
    model, _ = pocket
    before = weights(model)
    bench.buttons["Edit"].click()
    bench.method.value = "EMMET"
    bench.buttons["Edit"].click()
    assert "EMMET, 1 facts" in bench.status.value
    bench.buttons["Undo"].click()
    assert same(model, before)


def test_what_cannot_be_done_is_said_in_the_status_line(bench, pocket):
    model, _ = pocket
    before = weights(model)
    bench.target.value = " "
    bench.buttons["Edit"].click()
    assert "target" in bench.status.value
    assert same(model, before)
    bare = workbench(*pocket, bench.cases)
    bare.layer.value = 2
    bare.buttons["Edit"].click()
    assert "no second moment of layer 2" in bare.status.value
    assert same(model, before)


def test_it_is_shown_by_notebooks(bench):
    data = bench._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data


def test_wrong_input_is_refused(pocket, cases):
    with pytest.raises(TypeError, match="cases"):
        workbench(*pocket, [cases[0].fact])
    with pytest.raises(ValueError, match="0 cases and 3 methods"):
        workbench(*pocket, [])
    with pytest.raises(ValueError, match="0 methods"):
        workbench(*pocket, cases, methods={})
