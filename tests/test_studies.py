"""Studies go on after a kill, take other data and models, give what is published."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import edutools as edu
from edutools import cli
from edutools.corpus import counterfact_records
from edutools.facts import ZsreCase
from edutools.pocket import POCKET_MODELS
from edutools.studies import points, student, studies, study_rows, summary
from edutools.world import build_world
from experiments import (
    batch_size,
    distribution,
    drawing,
    figures,
    lam,
    sequential,
    setup,
    table,
)
from experiments import study as running
from experiments.study import RESULTS, Setup, arguments, study

MODEL = "pocket-gptj-organism"
FOUR = {
    "batch_size": batch_size,
    "lam": lam,
    "distribution": distribution,
    "sequential": sequential,
}
SMOKE = {  # a little of each study, of units that the whole study has, too
    "batch_size": ["--limit", "4", "--unit", "n=4"],
    "lam": ["--unit", "lam=100"],
    "distribution": ["--limit", "1", "--unit", "method=MEMIT"],
    "sequential": ["--limit", "4", "--unit", "method=ROME", "--unit", "method=ENCORE"],
}
FEW = ["--unit", "method=MEMIT", "--unit", "method=ROME", "--unit", "method=MEND"]


# rows and their means


def rows_of(*values, **more):
    return [{"seed": i, "x": v} | more for i, v in enumerate(values)]


def test_the_interval_is_students():
    (found,) = summary(rows_of(1.0, 2.0, 3.0, 4.0, 5.0), by=[], value="x")
    assert found["mean"] == 3.0
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half))
    assert found["seeds"] == 5
    known = {1: 12.7062047, 2: 4.3026527, 9: 2.2621572, 30: 2.0422725}
    assert {n: student(n) for n in known} == pytest.approx(known)


def test_the_interval_holds_the_mean_in_95_percent_of_all_draws():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 3, generator=draw, dtype=torch.float64)
    found = [summary(rows_of(*x.tolist()), by=[], value="x")[0] for x in values]
    inside = sum(row["low"] <= 0 <= row["high"] for row in found) / len(found)
    assert inside == pytest.approx(0.95, abs=0.012)


def test_an_interval_of_equal_values_has_no_width():
    value = 0.1 + 0.2
    (found,) = summary(rows_of(value, value, value), by=[], value="x")
    assert found == {"mean": value, "low": value, "high": value, "seeds": 3}
    (infinite,) = summary(rows_of(math.inf, math.inf), by=[], value="x")
    assert infinite["mean"] == math.inf


def test_one_seed_has_no_interval():
    (found,) = summary(rows_of(0.5), by=[], value="x")
    assert (found["mean"], found["seeds"]) == (0.5, 1)
    assert math.isnan(found["low"])


def test_groups_keep_their_order_and_refused_rows_do_not_count():
    rows = rows_of(1.0, 3.0, n=4) + rows_of(5.0, None, math.nan, n=1)
    rows += [{"seed": 0, "n": 16, "refused": "too many"}]
    found = summary(rows, by=["n"], value="x")
    assert [(row["n"], row["mean"], row["seeds"]) for row in found] == [
        (4, 2.0, 2),
        (1, 5.0, 1),
    ]


def test_rows_that_cannot_be_told_apart_are_refused():
    rows = rows_of(1.0, n=1) + rows_of(2.0, n=4)
    with pytest.raises(ValueError, match="Two rows of seed 0 stand in the group"):
        summary(rows, by=[], value="x")
    with pytest.raises(LookupError, match="No row has a value 'y'"):
        summary(rows, by=["n"], value="y")
    with pytest.raises(LookupError, match="A row has no 'method'; it has seed, x, n"):
        summary(rows, by=["method"], value="x")


def test_results_are_read_and_what_is_missing_is_said(tmp_path):
    (tmp_path / "lam-pocket-llama.json").write_text('{"rows": [{"seed": 0}]}')
    assert study_rows("lam", "llama", folder=tmp_path) == [{"seed": 0}]
    with pytest.raises(FileNotFoundError, match=r"'lm' on 'pocket-llama'\. Did you"):
        study_rows("lm", "llama", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="There are: none"):
        study_rows("lam", folder=tmp_path / "nowhere")
    (tmp_path / "x-pocket-llama.json").write_text('{"rows": 5}')
    with pytest.raises(ValueError, match=r"x-pocket-llama\.json holds no rows"):
        study_rows("x", "llama", folder=tmp_path)


def test_the_results_stand_beside_the_package():
    assert studies() in (RESULTS, None)


# resuming


class Killed(BaseException):
    """Ends a study in the middle, as a signal does."""


@pytest.fixture(scope="module")
def world_setup() -> Setup:
    return Setup.of(MODEL)


UNITS = [{"n": n, "seed": seed} for seed in range(2) for n in (1, 4, 16)]


def told(tmp_path, *more):
    return arguments("x").parse_args(["--out", str(tmp_path / "x.json"), *more])


def kept(path: Path) -> list[dict]:
    """Rows without their seconds."""
    rows = json.loads(path.read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def counting(fail_at=None):
    calls = []

    def measure(unit):
        calls.append(unit)
        if len(calls) == fail_at:
            raise Killed
        return {"value": unit["n"] / 3 + unit["seed"]}

    return calls, measure


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_killed_study_goes_on(tmp_path, world_setup, cut):
    _, whole = counting()
    (tmp_path / "a").mkdir()
    study("x", told(tmp_path / "a"), world_setup, UNITS, whole)
    _, dies = counting(fail_at=4)
    with pytest.raises(Killed):
        study("x", told(tmp_path), world_setup, UNITS, dies)
    assert not (tmp_path / "x.json").exists()
    partial = tmp_path / "x.partial.jsonl"
    text = partial.read_text()
    partial.write_text(text[: len(text) - cut])  # killed while it wrote a line
    done = 3 if cut <= 1 else 2
    _, dies = counting(fail_at=2)
    with pytest.raises(Killed):  # twice
        study("x", told(tmp_path), world_setup, UNITS, dies)
    calls, rest = counting()
    study("x", told(tmp_path), world_setup, UNITS, rest)
    assert calls == UNITS[done + 1 :]
    assert kept(tmp_path / "x.json") == kept(tmp_path / "a" / "x.json")
    assert not partial.exists()


def test_a_partial_file_of_other_weights_or_cases_is_refused(tmp_path, world_setup):
    _, dies = counting(fail_at=2)
    with pytest.raises(Killed):
        study("x", told(tmp_path), world_setup, UNITS, dies)
    _, measure = counting()
    other = replace(world_setup, cases=world_setup.cases[:-1])
    with pytest.raises(ValueError, match="other weights, cases or versions"):
        study("x", told(tmp_path), other, UNITS, measure)
    weight = world_setup.model.transformer.h[3].mlp.fc_out.weight
    before = weight.data[2, 5].clone()
    weight.data[2, 5] += 1.0
    try:
        with pytest.raises(ValueError, match="other weights, cases or versions"):
            study("x", told(tmp_path), world_setup, UNITS, measure)
    finally:
        weight.data[2, 5] = before
    study("x", told(tmp_path), world_setup, UNITS, measure)


def test_a_row_tells_how_long_it_took(tmp_path, world_setup):
    _, measure = counting()
    rows = study("x", told(tmp_path), world_setup, UNITS[:2], measure)
    assert all(row["seconds"] >= 0 for row in rows)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["settings"]["seeds"] == 5
    assert len(found["provenance"]["weights"]) == 64


def test_a_part_of_a_study_does_not_replace_published_results(
    tmp_path, world_setup, monkeypatch
):
    monkeypatch.setattr(running, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(running, "TRIALS", tmp_path / "trials")
    _, measure = counting()
    for more in (["--limit", "2"], ["--seeds", "2"], ["--unit", "n=1"], []):
        given = arguments("x").parse_args(["--model", "gptj-organism", *more])
        study("x", given, world_setup, UNITS, measure)
        place = "trials" if more else "results"
        assert (tmp_path / place / f"x-{MODEL}.json").is_file()
        assert (tmp_path / "results").exists() == (not more)


def test_units_can_be_chosen(tmp_path, world_setup):
    _, measure = counting()
    wanted = ["--unit", "n=4", "--unit", "n=1", "--unit", "seed=1"]
    rows = study("x", told(tmp_path, *wanted), world_setup, UNITS, measure)
    assert [(row["n"], row["seed"]) for row in rows] == [(1, 1), (4, 1)]
    with pytest.raises(ValueError, match="units have n, seed"):
        study("x", told(tmp_path, "--unit", "m=4"), world_setup, UNITS, measure)
    with pytest.raises(ValueError, match=r"Nothing is left .*n 1, 4, 16"):
        study("x", told(tmp_path, "--unit", "n=5"), world_setup, UNITS, measure)


@pytest.mark.parametrize("wrong", [["--limit", "0"], ["--seeds", "-1"]])
def test_numbers_of_draws_and_facts_are_positive(wrong, capsys):
    with pytest.raises(SystemExit):
        arguments("x").parse_args(wrong)
    assert "is less than 1" in capsys.readouterr().err


# cases of one's own, and other models


def test_draws_are_nested_and_others_are_not_written(world_setup):
    few, many = world_setup.draw(4, 1), world_setup.draw(world_setup.most, 1)
    assert many[:4] == few
    others = {case.fact for case in world_setup.others(1)}
    assert len(others) == setup.UNTOUCHED
    assert not others & {case.fact for case in many}
    assert world_setup.draw(4, 2) != few
    with pytest.raises(ValueError, match=r"beside 200 that are not written"):
        world_setup.draw(world_setup.most + 1, 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file of ten records in each schema, made from the world."""
    folder = tmp_path_factory.mktemp("data")
    records = counterfact_records(build_world())[:12]
    questions = [
        {
            "src": f"{record['requested_rewrite']['prompt'].replace('{}', subject)}?",
            "rephrase": record["paraphrase_prompts"][0],
            "answers": [record["requested_rewrite"]["target_new"]["str"]],
            "loc": f"nq question: {record['neighborhood_prompts'][0]}",
            "loc_ans": record["requested_rewrite"]["target_true"]["str"],
            "subject": subject,
        }
        for record in records
        for subject in [record["requested_rewrite"]["subject"]]
    ]
    found = {"counterfact": records, "zsre": questions}
    for name, what in found.items():
        (folder / f"{name}.json").write_text(json.dumps(what))
    return {name: folder / f"{name}.json" for name in found}


def test_few_cases_of_ones_own(files):
    found = Setup.of(MODEL, files["counterfact"])
    assert len(found.cases) == 12
    assert (found.left, found.most) == (2, 10)
    assert found.questions == {}


def test_questions_of_zsre_keep_what_must_not_change(files):
    found = Setup.of(MODEL, files["zsre"])
    case = found.cases[0]
    assert isinstance(found.questions[case.fact], ZsreCase)
    scores = running.scores(found, found.cases, seed=0)
    assert {"efficacy", "paraphrase", "specificity", "score"} <= set(scores)
    assert "neighborhood" not in scores
    prompt, answer = running.known(found, [case])[0]
    assert (prompt, answer) == running.known(found, found.cases)[0]
    assert prompt.endswith("?")
    assert not prompt.startswith("nq question")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON, or is cut off"),
        ("[]", "neither schema. Its first record has the keys none"),
        ('[{"subject": "x"}]', r"has the keys \['subject'\]; wanted is a list of rec"),
        ('[{"src": "Who?"}]', "none that can be read"),
        ('[{"requested_rewrite": {}}]', "none that can be read"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Setup.of(MODEL, path)
    with pytest.raises(FileNotFoundError, match="No file"):
        Setup.of(MODEL, tmp_path / "gone.json")


def test_what_is_wrong_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lam.py", "--data", str(tmp_path / "gone.json")])
    with pytest.raises(SystemExit, match=r"^lam: No file .*gone\.json"):
        running.command(lam.main)


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """The organism in a folder of another name, without what lies beside it."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(
        edu.pocket(MODEL),
        folder,
        ignore=shutil.ignore_patterns("moment-*", "mend"),
    )
    return folder


def test_a_model_of_ones_own_is_told_what_to_give(copied, files, capsys):
    with pytest.raises(ValueError, match=r"settings for 'mine'\. Give --preset NAME"):
        Setup.of(str(copied), files["counterfact"])
    with pytest.raises(ValueError, match=r"has not learned .* Give --data"):
        Setup.of(str(copied), preset="gpt-j-6b")
    found = Setup.of(str(copied), files["counterfact"], preset="gpt-j-6b")
    with pytest.raises(ValueError, match=r"layers \[5\] .* missing.*--moments FOLD"):
        found.moments([5])
    assert not found.has("MEND")
    assert not found.has("ENCORE")
    said = capsys.readouterr().err
    assert "MEND is left out: train it and give --mend FOLDER" in said
    assert "ENCORE is left out: it has no settings for 'gpt-j-6b'" in said
    assert found.has("FT-L")


def test_a_model_of_ones_own_with_moments_and_texts(copied, files, tmp_path):
    place, texts = edu.pocket(MODEL), tmp_path / "texts.txt"
    texts.write_text("".join(f"The {word} is here.\n" for word in "abcdefgh"))
    options = {"preset": MODEL, "moments": place, "texts": str(texts)}
    found = Setup.of(str(copied), files["counterfact"], **options)
    assert found.name == MODEL
    assert len(found.texts) == 8
    assert list(found.moments([5])) == [5]
    texts.write_text("one\n")
    with pytest.raises(ValueError, match="holds 1 texts; --texts needs several"):
        Setup.of(str(copied), files["counterfact"], **options)


# every study, a little


@pytest.fixture(scope="module")
def run(world_setup, tmp_path_factory):
    """Runs a study and gives its rows; the pocket model is loaded once."""
    folder = tmp_path_factory.mktemp("runs")
    known: dict[str, Setup] = {}

    def run(name: str, *more: str) -> list[dict]:
        out = folder / f"{name}-{len(list(folder.iterdir()))}.json"
        given = Setup.given

        def once(asked):
            key = f"{asked.model} {asked.data}"
            if key not in known:
                ours = asked.model == MODEL and asked.data is None
                known[key] = world_setup if ours else given(asked)
            return known[key]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Setup, "given", once)
            if "--data" in more:  # fewer texts behind second moments will do
                patch.setattr(setup, "BEHIND", 600)
            FOUR[name].main(["--seeds", "1", *more, "--out", str(out)])
        return json.loads(out.read_text())["rows"]

    return run


def identity(row: dict) -> tuple:
    """What a row was measured of: values that are not numbers measured.

    A point along the way of edits in turn depends on the edits so far, and not on how
    many were to come.
    """
    names = ("method", "distribution", "lam", "batch", "seed", "edits")
    names += () if "edits" in row else ("n",)
    return tuple((name, row[name]) for name in names if name in row)


def flat(rows: list[dict]) -> dict[tuple, dict]:
    return {identity(row): row for row in (points(rows) or rows)}


def numbers(row: dict) -> dict[str, float]:
    known = {name for name, _ in identity(row)} | {"n", "seconds", "stopped"}
    return {k: v for k, v in row.items() if k not in known and isinstance(v, float)}


def agree(found: dict, published: dict) -> None:
    assert numbers(found).keys() == numbers(published).keys()
    for name, value in numbers(published).items():
        free = name in ("norm", "perplexity", "generation_entropy")
        how = {"rel": 0.02} if free else {"abs": 1e-3}
        assert found[name] == pytest.approx(value, **how), (identity(found), name)


@pytest.mark.parametrize("name", FOUR)
def test_a_little_of_a_study_gives_the_published_numbers(name, run):
    found = flat(run(name, *SMOKE[name]))
    assert found
    path = RESULTS / f"{name}-{MODEL}.json"
    if not path.is_file():
        pytest.skip("not measured yet")
    published = flat(json.loads(path.read_text())["rows"])
    assert found.keys() <= published.keys()
    for key, row in found.items():
        agree(row, published[key])


@pytest.mark.parametrize("schema", ["counterfact", "zsre"])
@pytest.mark.parametrize("name", FOUR)
def test_a_study_runs_on_cases_of_ones_own(name, schema, run, files):
    more = [*FEW, "--limit", "2", "--data", str(files[schema])]
    more += ["--unit", "lam=0.01"] if name == "lam" else []
    more += ["--unit", "batch=1"] if name == "sequential" else []
    more += ["--unit", "distribution=sqrt"] if name == "distribution" else []
    found = flat(run(name, *more))
    assert found
    third = {"counterfact": "neighborhood", "zsre": "specificity"}[schema]
    for row in found.values():
        assert {"efficacy", "paraphrase", third, "perplexity"} <= set(row)
        least = 0.4 if schema == "counterfact" and row["method"] != "MEND" else 0
        assert least <= row["efficacy"] <= 1


# the page


def test_the_page_shows_what_was_measured():
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.renewed(text) == text, "run python -m experiments.table"
    named = {path.name.rsplit("-pocket", 1)[0] for path in RESULTS.glob("*.json")}
    assert named <= set(table.STUDIES)
    assert set(figures.DRAWN) == set(table.STUDIES)


def test_the_plans_are_what_the_command_prints():
    text = "\n".join(table.of_plans())
    blocks = re.findall(r"```console\n\$ edutools (plan .*)\n([^`]*)```", text)
    assert len(blocks) == 6
    command, printed = blocks[1]
    done = CliRunner().invoke(cli.app, command.split())
    assert done.output == printed


def test_a_page_of_some_results(tmp_path):
    for name in FOUR:
        rows = json.dumps(
            {"rows": drawable(name), "provenance": {"commit": "0123456789"}}
        )
        (tmp_path / f"{name}-pocket-llama.json").write_text(rows)
    text = "\n".join(table.of_studies(tmp_path))
    assert text.count(": 2 seeds, time not recorded; commit `0123456`") == 4
    assert "| MEMIT | 0.500 ± 0.000 | 0.500 ± 0.000 |" in text
    assert text.count(": not measured") == len(table.STUDIES) - 4


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"mean": 0.5, "high": 0.75}, "0.500 ± 0.250"),
        ({"mean": 12.0, "high": math.nan}, "12.0"),
        ({"mean": 2e5, "high": 3e5}, "2e+05"),
        (None, ""),
    ],
)
def test_numbers_of_the_page(row, shown):
    assert table.number(row) == shown


# figures


def drawable(name: str) -> list[dict]:
    """Rows as of a study, with two seeds and made-up numbers."""
    values = {value: 0.5 for value in drawing.NAMES}
    rows = []
    for seed in range(2):
        for method in ("MEMIT", "EMMET", "ROME, two keys"):
            for n in (1, 16):
                row = {"method": method, "n": n, "seed": seed} | values
                row |= {"norm": 10.0**n, "efficacy": seed / 2}
                more = {
                    "lam": {"lam": 10.0**n, "n": 32},
                    "distribution": {"distribution": "even"},
                }
                rows.append(row | more.get(name, {}))
    if name == "sequential":
        return [
            {"method": "ROME", "batch": batch, "n": 4, "seed": seed}
            | {"points": [{"edits": e} | values for e in (batch, 200)]}
            for seed in range(2)
            for batch in (1, 16, 100)
        ]
    if name == "batch_size":
        rows.append({"method": "EMMET", "n": 64, "seed": 0, "refused": "x"})
    return rows


@pytest.mark.parametrize("name", FOUR)
def test_figures_are_drawn_and_say_of_what(name, tmp_path):
    for model in POCKET_MODELS[1:]:
        told = json.dumps({"rows": drawable(name)})
        (tmp_path / f"{name}-{model}.json").write_text(told)
    paths = figures.draw(name, tmp_path, tmp_path / "pictures")
    assert paths
    for path in paths:
        picture = Image.open(path)
        assert picture.text[drawing.MARK] == figures.digest(name, tmp_path)
        assert picture.width <= 1000
        assert path.stat().st_size < 100_000
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert figures.draw(name, tmp_path / "nowhere", tmp_path) == []


def test_a_method_has_one_colour():
    colors = [drawing.style(name)["color"] for name in drawing.ORDER]
    assert len(set(colors)) == len(colors)
    plain, varied = drawing.style("ROME"), drawing.style("ROME, two keys")
    assert varied == plain | {"linestyle": "--"}


@pytest.mark.parametrize("name", figures.DRAWN)
def test_the_pictures_show_the_published_results(name):
    drawn = [
        path
        for path in figures.PICTURES.glob("*.png")
        if re.match(rf"{name}([-_]|\.png)", path.name)
    ]
    assert bool(drawn) == bool(figures.files(name))
    for path in drawn:
        shown = Image.open(path).text[drawing.MARK]
        assert shown == figures.digest(name), "run python -m experiments.figures"
