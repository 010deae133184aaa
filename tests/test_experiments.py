"""What the book says of the pocket models was measured on the shipped weights."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

import edutools as edu
from edutools.moments import load_moments
from edutools.pocket import POCKET_MODELS
from edutools.settings import presets
from edutools.world import build_world
from experiments import closed_forms, pocket
from experiments import mend as mend_experiment
from scripts.train_mend import split_cases

ROOT = Path(__file__).resolve().parent.parent
MEASURED = json.loads((ROOT / "experiments/pocket.json").read_text(encoding="utf-8"))
ORGANISMS = [name for name in POCKET_MODELS if name != "pocket-gptj"]


def peak(told: dict, kind: str, role: str) -> tuple[float, int]:
    effect = told["tracing"][kind][role]["mean"]
    return max(effect), effect.index(max(effect))


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_the_numbers_belong_to_the_shipped_weights(name):
    weights = (edu.pocket(name) / "model.safetensors").read_bytes()
    assert MEASURED[name]["provenance"]["weights"] == sha256(weights).hexdigest()
    assert MEASURED[name]["settings"]["layer"] == edu.ROME.preset(name).layer


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_facts_are_known_in_wordings_never_seen(name):
    known = MEASURED[name]["accuracy"]
    assert known["trained"]["mean"] >= 0.99
    assert known["held_out"]["mean"] >= 0.98
    assert known["prefixed"]["mean"] >= 0.98
    assert known["held_out"]["n"] > 9000


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_attention_rules_at_the_last_token(name):
    told = MEASURED[name]
    assert told["tracing"]["n"] >= 100
    assert peak(told, "attention", "last token") > peak(told, "mlp", "last token")


@pytest.mark.parametrize("name", ORGANISMS)
def test_what_was_built_into_an_organism_is_found(name):
    told = MEASURED[name]
    early, layer = peak(told, "hidden", "last subject token")
    for role in ("first subject token", "middle subject tokens"):
        assert early > 2 * peak(told, "hidden", role)[0]
    layers = len(told["tracing"]["hidden"]["last token"]["mean"])
    assert layers / 3 <= layer + 0.5 <= 2 * layers / 3


def test_nothing_is_claimed_of_the_natural_model_that_was_not_found():
    told = MEASURED["pocket-gptj"]
    early, _ = peak(told, "hidden", "last subject token")
    for name in ORGANISMS:
        assert early < peak(MEASURED[name], "hidden", "last subject token")[0] / 2
    assert told["rome"]["paraphrase"]["mean"] < 0.95
    text = (ROOT / "experiments/pocket.md").read_text(encoding="utf-8")
    assert "misses" in text
    assert "organism" in text


@pytest.mark.parametrize("name", ORGANISMS)
def test_rome_edits_the_organisms_well(name):
    rome = MEASURED[name]["rome"]
    layers = len(MEASURED[name]["tracing"]["hidden"]["last token"]["mean"])
    assert 2 <= rome["layer"] < layers - 2
    assert rome["efficacy"]["n"] >= 200
    assert rome["efficacy"]["mean"] >= 0.99
    assert rome["paraphrase"]["mean"] >= 0.95
    assert rome["neighborhood"]["mean"] >= 0.95


def test_a_little_of_everything_runs():
    name = "pocket-gptj-organism"
    method = edu.ROME.preset(name)
    folder = edu.pocket(name)
    told = pocket.measure(name, folder=folder, smoke=True, seed=0, method=method)
    assert told.keys() == MEASURED[name].keys()
    now, then = (edu.ROME.from_dict(x["settings"]) for x in (told, MEASURED[name]))
    assert now == then
    assert told["provenance"]["weights"] == MEASURED[name]["provenance"]["weights"]
    assert told["rome"]["efficacy"]["mean"] == 1


def test_the_presets_of_closed_forms_write_a_batch_into_the_organism():
    name = "pocket-gptj-organism"
    model, tokenizer = edu.load(name)
    moments = load_moments(edu.pocket(name))
    chosen = closed_forms.cases(300, 3)
    for kind in (edu.EMMET, edu.AlphaEdit, edu.ENCORE):
        method = kind.preset(name).resolved(model, tokenizer)
        report = closed_forms.in_one_batch(model, tokenizer, chosen, method, moments)
        assert report["efficacy"].mean == 1
        assert report["neighborhood"].mean >= 0.9


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level."""
    return dict(part.split("\n", 1) for part in text.split("\n## ")[1:])


def homeless(rows: dict, text: str) -> list[str]:
    """Presets that name the page as their source, and are on it under no heading."""
    found = sections(text)
    return [
        f"{method}.{model}"
        for method, models in rows.items()
        for model, row in models.items()
        if row["source"] == "experiments/methods.md"
        and not any(
            method in re.findall(r"[\w-]+", heading)
            and re.search(rf"(`|\| ){model}(`| \|)", body)
            for heading, body in found.items()
        )
    ]


def test_the_page_says_where_its_presets_come_from():
    text = (ROOT / "experiments/methods.md").read_text(encoding="utf-8")
    assert homeless(presets(), text) == []
    assert len(homeless(presets(), "")) >= 20
    assert closed_forms.header() in text
    without = text.replace("## Closed forms: MEMIT, EMMET", "## Closed forms: EMMET")
    assert homeless(presets(), without) == [f"MEMIT.{name}" for name in POCKET_MODELS]


MENDS = json.loads((ROOT / "experiments/mend.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MENDS)
def test_the_numbers_of_a_mend_belong_to_what_is_shipped(name):
    weights = (edu.pocket(name) / "mend/editors.safetensors").read_bytes()
    assert MENDS[name]["mend"] == sha256(weights).hexdigest()
    assert len(weights) < 8_000_000
    assert MENDS[name]["settings"] == edu.MEND.preset(name).to_dict()


@pytest.mark.parametrize("name", MENDS)
def test_a_shipped_mend_writes_facts_about_subjects_it_has_not_seen(name):
    told = MENDS[name]["edits"][0]
    assert told["together"] == 1
    assert told["efficacy"]["n"] >= 200
    assert told["efficacy"]["mean"] >= 0.95
    assert told["paraphrase"]["mean"] >= 0.9
    assert told["neighborhood"]["mean"] >= 0.9
    lost = told["neighborhood_top1_before"]["mean"] - told["neighborhood_top1"]["mean"]
    assert lost <= 0.05
    read = MENDS[name]["perplexity"]
    assert read["after"]["mean"] <= 1.1 * read["before"]


def test_a_shipped_mend_does_what_was_measured():
    model, tokenizer = edu.load("pocket-gptj-organism")
    mend = edu.MEND.from_pretrained("pocket-gptj-organism")
    cases = split_cases(build_world())[2][mend_experiment.CHOSEN :][:8]
    found = mend_experiment.measure(model, tokenizer, cases, mend, 1)
    assert found["efficacy"]["mean"] >= 0.75
    assert found["neighborhood"]["mean"] >= 0.75
