"""Where tracing finds facts, and where edits work: what was measured, and how."""

import json
import math
from pathlib import Path

import pytest

from experiments import where
from experiments.compared import interval, ranks, spearman

RESULTS = Path(where.__file__).parent / "results"
MODELS = ("pocket-gptj-organism", "pocket-llama", "pocket-gptj")


def rows(model: str) -> list[dict]:
    told = json.loads((RESULTS / f"where-{model}.json").read_text(encoding="utf-8"))
    return told["rows"]


def test_ranks_and_their_correlation():
    assert ranks([30.0, 10.0, 10.0, 20.0]).tolist() == [4, 1.5, 1.5, 3]
    assert spearman([1, 2, 3, 4, 5], [1, 4, 9, 16, 25]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2, 3], [7, 7, 7]))


def test_the_interval_is_that_of_student():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0, math.nan])
    assert found == {"mean": 3, "half": pytest.approx(2.7764451 * 0.5**0.5), "n": 5}
    assert math.isnan(interval([1.0])["half"])


def made_up(seed: int, fact: int, outcome: list[float]) -> dict:
    """A row of a model of four layers, the last of which cannot be written."""
    return {
        "seed": seed,
        "fact": fact,
        "mlp": [0.1 + fact, 0.2 + fact, 0.3 + fact, 9.0],
        "score": outcome,
    }


def test_correlations_over_layers_and_over_facts_are_told_apart():
    up = [
        made_up(seed, fact, [0.1 - fact, 0.2 - fact, 0.3 - fact])
        for seed in (0, 1)
        for fact in range(3)
    ]
    found = where.correlations(up, "mlp", "score")
    assert found["layers, of means"]["mean"] == pytest.approx(1)
    assert found["layers, of each fact"]["mean"] == pytest.approx(1)
    within = [told["mean"] for told in found["facts, within a layer"]]
    assert within == pytest.approx([-1, -1, -1])
    up = [row | {"score": [*row["score"][:2], -9.0]} for row in up]
    assert where.correlations(up, "mlp", "score")["layers, of means"]["mean"] < 0
    few = where.correlations(up, "mlp", "score", lowest=2)
    assert few["layers, of means"]["mean"] == pytest.approx(1)
    assert len(few["facts, within a layer"]) == 2


@pytest.mark.parametrize("model", MODELS)
def test_all_facts_were_measured_at_all_layers(model):
    found = rows(model)
    assert {row["seed"] for row in found} == set(range(5))
    assert len(found) == 5 * where.FACTS
    assert {len(row["mlp"]) for row in found} == {10}
    assert {len(row[name]) for row in found for name in where.OUTCOMES} == {9}


def test_one_fact_gives_the_numbers_of_the_study(tmp_path):
    out = tmp_path / "where.json"
    where.main(["--seeds", "1", "--limit", "1", "--out", str(out)])
    (now,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    then = rows("pocket-gptj-organism")[0]
    assert now["subject"] == then["subject"]
    assert now["total_effect"] == pytest.approx(then["total_effect"], rel=0.02)
    for name in (*where.EFFECTS, *where.OUTCOMES):
        assert now[name] == pytest.approx(then[name], rel=0.02, abs=1e-3), name
