"""Whether the ranking of methods depends on the convention: measured, and how."""

import json
import math
from pathlib import Path

import pytest

import edutools as edu
from experiments import conventions, counted
from experiments.compared import kendall
from experiments.study import Setup

RESULTS = Path(conventions.__file__).parent / "results"
MODELS = ("pocket-gptj-organism", "pocket-llama")
METHODS = [
    *("MEMIT", "EMMET", "AlphaEdit", "FT-L", "MEND"),
    *("ROME", "p-ROME", "ROME, two keys", "unedited"),
]


def rows(model: str) -> list[dict]:
    path = RESULTS / f"conventions-{model}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_kendall_counts_pairs():
    assert kendall([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / 6**0.5)  # tau-b
    assert math.isnan(kendall([1, 2, 3], [5, 5, 5]))


@pytest.mark.parametrize(
    ("text", "found"),
    [(" Rome.", True), (" Rome", True), (" Rome and", False), (" Romeo.", False)],
)
def test_an_exact_answer_ends_its_sentence(text, found):
    assert counted.exactly(text, "Rome") == found


def test_the_conventions_are_those_of_the_package():
    setup = Setup.of("pocket-llama")
    model, tokenizer, cases = setup.model, setup.tokenizer, setup.draw(6, 3)
    told = counted.measured(setup, cases)
    for convention, normalize in (
        ("NLL per token", True),
        ("joint probability", False),
    ):
        report = edu.evaluate(model, tokenizer, cases, normalize=normalize)
        for rate, values in told[convention].items():
            assert values.tolist() == report.values[rate].tolist()
    for rate, values in told["first choices, per answer"].items():
        assert values.tolist() == report.values[f"{rate}_top1"].tolist()
    wrote = edu.evaluate(
        model, tokenizer, cases, generation=edu.Generation(tokens=1)
    ).values
    assert told["free text, begins"]["efficacy"].tolist() == (
        wrote["free_generation"].tolist()
    )
    assert float(told["free text, begins"]["neighborhood"].mean()) > 0.8


def made_up(seed: int, method: str, a: float, b: float) -> dict:
    return {
        "seed": seed,
        "method": method,
        "points": [{"convention": "a", "score": a}, {"convention": "b", "score": b}],
    }


def test_ranks_and_agreement_are_of_methods_not_of_the_unedited_model():
    found = [
        made_up(seed, method, *scores)
        for seed in (0, 1)
        for method, scores in {
            "good": (0.9, 0.2 + seed / 2),
            "bad": (0.1, 0.6),
            "unedited": (0.0, 0.99),
        }.items()
    ]
    ranks = {(r["convention"], r["method"]): r for r in conventions.ranked(found)}
    assert len(ranks) == 4
    assert (ranks["a", "good"]["mean"], ranks["a", "good"]["rank"]) == (0.9, 1)
    assert ranks["b", "bad"]["rank"] == 1
    (told,) = conventions.agreement(found)
    assert told["conventions"] == ["a", "b"]
    assert (told["mean"], told["n"]) == (pytest.approx(0), 2)  # once -1, once 1


@pytest.mark.parametrize("model", MODELS)
def test_all_methods_were_measured(model):
    for seed in range(5):
        found = [row for row in rows(model) if row["seed"] == seed]
        assert [row["method"] for row in found] == METHODS
        assert {row["n"] for row in found} == {conventions.BATCH}
        assert {len(row["points"]) for row in found} == {6}


def test_some_methods_give_the_numbers_of_the_study(tmp_path):
    out = tmp_path / "conventions.json"
    only = ["--unit", "method=MEND", "--unit", "method=MEMIT"]
    conventions.main(["--seeds", "1", *only, "--out", str(out)])
    now = json.loads(out.read_text(encoding="utf-8"))["rows"]
    then = {row["method"]: row for row in rows("pocket-gptj-organism")[:9]}
    assert [row["method"] for row in now] == ["MEMIT", "MEND"]
    for row in now:
        for told, wanted in zip(
            row["points"], then[row["method"]]["points"], strict=True
        ):
            assert told.pop("convention") == wanted.pop("convention")
            assert told == pytest.approx(wanted, abs=1e-3)
