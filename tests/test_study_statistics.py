"""How many tokens C needs: what was measured, and how."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

import edutools as edu
from edutools.corpus import documents, text_of
from edutools.moments import second_moment
from edutools.world import build_world
from experiments import ladder, statistics
from experiments.study import Setup

RESULTS = Path(statistics.__file__).parent / "results"
MODELS = ("pocket-gptj-organism", "pocket-llama")


@cache
def rows(model: str) -> list[dict]:
    path = RESULTS / f"statistics-{model}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def unit(row: dict) -> tuple:
    return row["method"], row["times"], row["facts"], row["seed"]


def test_a_larger_moment_goes_on_where_the_smaller_one_stopped(monkeypatch):
    setup = Setup.of("pocket-llama")
    monkeypatch.setattr(ladder, "TIMES", (0.1, 0.3))
    few, more = ladder.ladder(setup, 4, 3).values()
    assert (few.count, more.count) == (48, 144)
    texts = [
        (text_of(d) for d in documents(build_world(), seed=4000 + i)) for i in (0, 1)
    ]
    first, second = (
        second_moment(
            setup.model, setup.tokenizer, t, layer=4, tokens=n, progress=False
        )
        for t, n in zip(texts, (48, 96), strict=True)
    )
    torch.testing.assert_close(few.total, first.total)
    torch.testing.assert_close(more.total, first.total + second.total)
    other = ladder.ladder(setup, 4, 2)[0.1]
    assert not torch.allclose(other.total, few.total)


def test_shrinking_adds_a_hundredth_of_the_mean_eigenvalue():
    x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    moment = edu.SecondMoment.empty(3).update(x)
    assert ladder.mean_eigenvalue(moment) == pytest.approx(1)
    found = ladder.shrunk(moment)
    torch.testing.assert_close(
        found.value, moment.value + 0.01 * torch.eye(3, dtype=torch.float64)
    )
    assert found.count == 5
    assert found.factor.condition < 1000


def test_facts_alone_are_scored_by_their_mean_rates():
    kept = {"neighborhood": 1.0, "norm": 3.0}
    told = statistics.mean(
        [
            {"efficacy": 1.0, "paraphrase": 0.0, "score": 0.0, **kept},
            {"efficacy": 1.0, "paraphrase": 1.0, "score": 1.0, **kept},
        ]
    )
    assert told["paraphrase"] == 0.5
    assert told["score"] == pytest.approx(0.75)
    assert told["measured"] == 2


@pytest.mark.parametrize("model", MODELS)
def test_all_was_measured(model):
    wanted = statistics.plan(5, statistics.BATCH)
    found = rows(model)
    assert [unit(row) for row in found] == [unit(row) for row in wanted]
    for row in found:
        assert row["n"] == (1 if row["method"] == "ROME" else 64)
        known = row["times"] and "refused" not in row
        assert ("log10_condition" in row) == bool(known)


@pytest.mark.parametrize("model", MODELS)
def test_fewer_tokens_than_numbers_in_a_key_are_refused(model):
    for row in rows(model):
        few = 0 < row["times"] < 1 and row["method"] != "EMMET, shrunk"
        if few or row["times"] == 0 or row["times"] > 1:
            assert ("refused" in row) == few


def agree(row: dict, then: dict) -> None:
    assert row.keys() == then.keys()
    for name, value in row.items():
        if name in ("norm", "perplexity"):
            assert value == pytest.approx(then[name], rel=2e-2), name
        elif name.startswith("log10"):
            assert value == pytest.approx(then[name], abs=0.05), name
        elif isinstance(value, float) and name != "seconds":
            assert value == pytest.approx(then[name], abs=1e-3), name
        elif name not in ("seconds", "refused"):  # whose pair or direction may vary
            assert value == then[name], name


def test_some_units_give_the_numbers_of_the_study(tmp_path, monkeypatch):
    """With C of up to three times d; larger ones go on in documents of their own."""
    for module in (ladder, statistics):
        monkeypatch.setattr(module, "TIMES", ladder.TIMES[:4])
    out = tmp_path / "statistics.json"
    only = ["--unit", "method=ROME", "--unit", "method=EMMET"]
    only += ["--unit", "times=1", "--unit", "times=3"]
    statistics.main(["--seeds", "1", *only, "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))["rows"]
    known = {unit(row): row for row in rows("pocket-gptj-organism")}
    assert len(found) == 4
    for row in found:
        agree(row, known[unit(row)])
