"""What the choices inside ROME do: what was measured, and how."""

import json
from pathlib import Path

import pytest

import edutools as edu
from experiments import choices

RESULTS = Path(choices.__file__).parent / "results"
MODELS = ("pocket-gptj-organism", "pocket-llama")
NUMBERS = ("efficacy", "paraphrase", "neighborhood", "score", "probability", "steps")


def rows(model: str) -> list[dict]:
    told = json.loads((RESULTS / f"choices-{model}.json").read_text(encoding="utf-8"))
    return told["rows"]


def mean(model: str, choice: str, value: float | str, name: str) -> float:
    mine = [r for r in rows(model) if (r["choice"], r["value"]) == (choice, value)]
    assert len(mine) == 5
    return sum(row[name] for row in mine) / len(mine)


@pytest.mark.parametrize("choice", choices.CHOICES)
def test_one_choice_is_changed_at_a_time(choice):
    rome = edu.ROME.preset("pocket-llama")
    for value in choices.CHOICES[choice]:
        told, usual = choices.method(rome, choice, value).to_dict(), rome.to_dict()
        search, same = told.pop("search"), usual.pop("search")
        other = [name for name in same if search[name] != same[name]]
        if choice == "preset":
            assert (told, other) == (usual, [])
        elif value in ("prompt", "mixed"):
            assert (told, other) == (usual | {"key": value}, [])
        else:
            wanted = {"key": "contexts", "stop": "stop_loss"}.get(choice, choice)
            assert told == usual
            assert other == ["stop" if value == "argmax" else wanted]


def test_no_prefix_is_the_bare_prompt():
    assert choices.contexts(0).given == ("{}",)
    assert choices.contexts(5).prefixes == ((5, 8),)


@pytest.mark.parametrize("model", MODELS)
def test_all_choices_were_measured(model):
    wanted = [(choice, v) for choice, vs in choices.CHOICES.items() for v in vs]
    for seed in range(5):
        found = [r for r in rows(model) if r["seed"] == seed]
        assert [(r["choice"], r["value"]) for r in found] == wanted
        assert {r["n"] for r in found} == {choices.FACTS}


def test_some_choices_give_the_numbers_of_the_study(tmp_path):
    out = tmp_path / "choices.json"
    only = ["--unit", "choice=preset", "--unit", "choice=key"]
    choices.main(["--seeds", "1", *only, "--out", str(out)])
    now = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert len(now) == 1 + len(choices.CHOICES["key"])
    for row, then in zip(now, rows("pocket-gptj-organism"), strict=False):
        assert (row["choice"], row["value"]) == (then["choice"], then["value"])
        for name in (*NUMBERS, "known_probability"):
            assert row[name] == pytest.approx(then[name], rel=0.02, abs=1e-3), name
