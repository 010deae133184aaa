"""The benchmarks run, at sizes that say nothing of speed, and keep what they should."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import (
    build,
    figure,
    full_size,
    harness,
    limit,
    models,
    moments,
    search,
    solve,
    table,
    trace,
)

SPREAD = {"median", "min", "max", "q1", "q3", "n", "values"}
SURROUNDINGS = {
    "device",
    "cpu",
    "cores",
    "threads",
    "system",
    "versions",
    "cuda",
    "commit",
    "clean",
    "time",
}


def kept(path: Path) -> dict:
    """A result, after a look at what every result must tell."""
    told = json.loads(path.read_text(encoding="utf-8"))
    assert set(told) == {"benchmark", "settings", "surroundings", "rows"}
    assert set(told["surroundings"]) == SURROUNDINGS
    assert len(told["surroundings"]["commit"]) == 40
    assert {"torch", "python", "edutools"} <= set(told["surroundings"]["versions"])
    assert path.stem.startswith(told["benchmark"])
    assert told["rows"]
    return told


def where(folder: Path) -> list[str]:
    return ["--folder", str(folder)]


def test_sides_take_turns_and_neither_is_always_first():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    told = harness.timed(sides, repeats=3, before=lambda: calls.append("-"))
    assert "".join(calls) == "-b-a" + "-a-b" + "-b-a" + "-a-b"
    assert {name: len(side["values"]) for name, side in told.items()} == {
        "a": 3,
        "b": 3,
    }
    assert told["a"]["peak_bytes"] is None


def test_spread_and_ratio():
    slow, fast = harness.spread([4.0, 8.0, 6.0]), harness.spread([1.0, 2.0, 3.0])
    assert set(slow) == SPREAD
    assert (slow["median"], slow["min"], slow["max"], slow["n"]) == (6.0, 4.0, 8.0, 3)
    assert (slow["q1"], slow["q3"]) == (5.0, 7.0)
    told = harness.ratio(slow, fast)
    assert told["of_medians"] == 3.0
    assert told["values"] == [4.0, 4.0, 2.0]
    assert harness.spread([2.0])["q1"] == 2.0


def test_what_is_kept_has_five_repeats_at_least(tmp_path, capsys):
    parser = harness.arguments("x")
    with pytest.raises(SystemExit):
        harness.read(parser, ["--repeats", "4"])
    assert "too few for numbers that are kept" in capsys.readouterr().err
    trial = harness.read(parser, ["--repeats", "1", *where(tmp_path)])
    assert trial.repeats == 1
    assert harness.read(parser, []).repeats == 5


def test_a_result_is_replaced_in_one_step(tmp_path):
    given = harness.read(harness.arguments("x"), where(tmp_path))
    path = harness.keep("x", [{"seconds": 1.0}], given)
    with pytest.raises(ValueError, match="JSON"):
        harness.keep("x", [{"seconds": math.nan}], given)
    assert kept(path)["rows"] == [{"seconds": 1.0}]
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]


def test_solve(tmp_path, capsys):
    path = solve.main(
        ["--sizes", "24", "32", "--facts", "5", "--repeats", "2", *where(tmp_path)]
    )
    told = kept(path)
    assert [row["d_in"] for row in told["rows"]] == [24, 32]
    for row in told["rows"]:
        sides = {"cached factor", "dense", "dense cholesky"}
        assert set(row["seconds"]) == sides
        assert SPREAD < set(row["seconds"]["dense"])
        assert row["difference"] < 1e-9
        assert row["factor_seconds"] > 0
        fast, slow = (row["seconds"][x]["median"] for x in ("cached factor", "dense"))
        assert row["speedup"]["dense"]["of_medians"] == pytest.approx(slow / fast)
    assert "d_in 24" in capsys.readouterr().out


TINY = ("--size", "tiny", "--dtype", "float32")


@pytest.mark.parametrize("model", ["gptj-6b", "llama2-7b"])
def test_full_size(tmp_path, capsys, model):
    assert full_size.main(["--model", model, *TINY, *where(tmp_path)]) == 0
    rows = kept(next(tmp_path.iterdir()))["rows"]
    done = [(row["phase"], row.get("method")) for row in rows]
    for method in ("MEMIT", "EMMET"):
        parts = ("editing", "value search", "keys and solve")
        assert {(part, method) for part in parts} <= set(done)
    assert {("editing", "ROME"), ("training", "MEND"), ("editing", "MEND")} <= set(done)
    assert all(row["seconds"] > 0 for row in rows if "seconds" in row)
    assert [row["whole"] for row in rows if "whole" in row] == [True, True]
    assert "same bits: True" in capsys.readouterr().out


def test_full_size_says_when_time_is_over(tmp_path, capsys):
    late = ["--model", "gptj-6b", *TINY, "--deadline", "0", *where(tmp_path)]
    assert full_size.main(late) == full_size.LATE
    (row,) = kept(next(tmp_path.iterdir()))["rows"]
    assert row["note"].startswith("not begun: 0 of 0 s were over")
    assert "stopped: building not begun" in capsys.readouterr().out


def test_a_digest_sees_every_bit():
    options = {"device": "cpu", "dtype": torch.bfloat16, "seed": 0}
    model = models.build("gptj-6b", "tiny", **options)
    before = models.digest(model)
    assert models.digest(models.build("gptj-6b", "tiny", **options)) == before
    weight = model.transformer.h[3].mlp.fc_out.weight
    weight.view(torch.int16)[2, 5] ^= 1  # the last bit of one number
    assert models.digest(model) != before


def test_limit(tmp_path, capsys):
    few = ["--facts", "3", "--steps", "2", "--tokens", "600", "--square", "64"]
    path = limit.main([*TINY, *few, "--repeats", "1", *where(tmp_path)])
    products, *works = kept(path)["rows"]
    assert set(products["rates"]) == {"bfloat16", "float32"}
    assert [row["work"] for row in works] == ["value search", "second moments"]
    for row in works:
        assert row["flops"] > 0
        assert row["rate"] == pytest.approx(row["flops"] / row["seconds"]["median"])
        shares = {k: x for k, x in row["breakdown"].items() if k != "profiled"}
        assert sum(shares.values()) == pytest.approx(1, abs=0.05)
    assert "of the rate of products" in capsys.readouterr().out


def test_moments(tmp_path, capsys):
    small = ["--tokens", "200", "--batch-tokens", "100", "--layers", "1", "2"]
    model = ["--model", "gptj-6b", "--size", "tiny"]
    path = moments.main([*small, *model, "--repeats", "1", *where(tmp_path)])
    (row,) = kept(path)["rows"]
    sides = {"one pass", "layer by layer, stopped", "layer by layer, whole"}
    assert set(row["seconds"]) == sides
    assert set(row["speedup"]) == sides - {"one pass"}
    assert (row["tokens"], row["layers"], row["of"]) == (200, [1, 2], 10)
    assert row["difference"] < 1e-6
    assert "tokens per second" in capsys.readouterr().out


FEW = ("--model", "gptj-6b", "--size", "tiny", "--repeats", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Results of the benchmarks that compare two ways, each run once."""
    folder = tmp_path_factory.mktemp("made")
    few, sizes = [*FEW, *where(folder)], ["--sizes", "1", "3", "--steps", "4"]
    return {
        "search": search.main([*few, *sizes]),
        "trace": trace.main([*few, "--facts", "1", "--samples", "2"]),
    }


def test_search(made):
    assert made["search"].name == "search_gpt-j-6b.json"
    rows = kept(made["search"])["rows"]
    assert [row["facts"] for row in rows] == [1, 3]
    for row in rows:
        assert row["taken"]["together"] == row["taken"]["one by one"]
        assert len(row["taken"]["together"]) == row["facts"]
        assert row["difference"] <= search.APART
        fast, slow = (row["seconds"][x]["median"] for x in ("together", "one by one"))
        assert row["speedup"]["of_medians"] == pytest.approx(slow / fast)


@pytest.mark.parametrize(
    "other",
    [{"kl": 50.0}, {"weight_decay": 0.6}, {"steps": 2}, {"clamp": 0.7}],
    ids=str,
)
def test_a_search_of_something_else_is_noticed(tmp_path, monkeypatch, other):
    loop = search.one_by_one

    def wrong(*args):
        *same, settings = args
        return loop(*same, replace(settings, **other))

    monkeypatch.setattr(search, "one_by_one", wrong)
    with pytest.raises(RuntimeError, match="find different values for '"):
        search.main([*FEW, "--sizes", "1", "--steps", "3", *where(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_trace(made):
    assert made["trace"].name == "trace_gpt-j-6b.json"
    hidden, mlp, attention = kept(made["trace"])["rows"]
    assert (hidden["kind"], hidden["window"]) == ("hidden", 1)
    assert (mlp["kind"], mlp["window"]) == ("mlp", 3)
    assert (attention["kind"], attention["window"]) == ("attention", 3)
    for row in (hidden, mlp, attention):
        assert row["cells"] % row["of"] == 0
        assert row["difference"] <= trace.APART


def test_a_trace_of_something_else_is_noticed(tmp_path, monkeypatch):
    table_of = trace.by_cell

    def wrong(model, tokenizer, traced):
        return table_of(model, tokenizer, replace(traced, noise=2 * traced.noise))

    monkeypatch.setattr(trace, "by_cell", wrong)
    monkeypatch.setattr(trace, "APART", 1e-9)  # random weights hardly hear the noise
    with pytest.raises(RuntimeError, match="give different tables for 'hidden'"):
        trace.main([*FEW, "--facts", "1", "--samples", "2", *where(tmp_path)])


MAKEFILE = """book: setup
\t@mkdir -p _build/html/book && touch _build/html/book/one.html
\t@[ "$(VENV)" = "$$VENV" ] && [ "$$PYTHONPATH" = "$$PWD" ]
setup:
\t@false
"""


def test_build_installs_nothing(tmp_path, monkeypatch, capsys):
    project = tmp_path / "project"
    project.mkdir()
    (project / "Makefile").write_text(MAKEFILE)
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    monkeypatch.setattr(build, "ROOT", project)
    path = build.main(where(tmp_path / "kept"))
    (row,) = kept(path)["rows"]
    assert (row["goal"], row["pages"], row["seconds"]["n"]) == ("book", 1, 1)
    assert "make book: 0.0 minutes" in capsys.readouterr().out
    with pytest.raises(subprocess.CalledProcessError):
        build.main(["--goal", "setup-not-there", *where(tmp_path / "kept")])


def test_the_real_book_is_made_without_setting_up(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKELEVEL", "1")  # as in `make test`
    environment = build.surrounding(tmp_path, tmp_path, tmp_path)
    command = ["make", "-n", "-o", "setup", "book", "VENV=there"]
    done = subprocess.run(
        command, cwd=harness.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "there/bin/python -m scripts.build_book --from fresh"


@pytest.fixture(scope="module")
def results(tmp_path_factory, made) -> Path:
    """A result under every name that the page knows."""
    folder, more = (tmp_path_factory.mktemp(name) for name in ("results", "more"))
    given = harness.read(harness.arguments("x"), where(more))
    part = {"phase": "editing", "method": "ROME", "seconds": 2.0, "units": 1}
    part |= {"unit": "fact", "peak_bytes": 2 * 10**9, "model": "gpt-j-6b"}
    rows = [part, {"phase": "undone", "note": "same bits: True"}]
    few = ["--facts", "2", "--steps", "2", "--tokens", "200", "--square", "32"]
    once = ["--repeats", "1", *where(more)]
    text = ["--tokens", "200", "--layers", "1", "2", "--batch-tokens", "100"]
    spent = harness.spread([60.0])
    found = made | {
        "solve": solve.main(["--sizes", "24", "32", "--facts", "5", *once]),
        "moments": moments.main([*text, *FEW[:4], *once]),
        "limit": limit.main([*TINY, *few, *once]),
        "full_size": harness.keep("full_size_x", rows, given),
        "build": harness.keep(
            "build", [{"goal": "book", "pages": 9, "seconds": spent}], given
        ),
    }
    for section in table.SECTIONS:
        for name in section.results:
            (kind,) = [kind for kind in found if name.startswith(kind)]
            told = json.loads(found[kind].read_text())
            told["surroundings"] |= {"device": "A GPU"} if "cuda" in name else {}
            (folder / f"{name}.json").write_text(json.dumps(told))
    return folder


def test_a_page_of_all_results(results):
    text = table.block(results)
    assert table.NOTHING not in text
    assert "`make book`: 1.0 minutes for 9 pages (n = 1)." in text
    assert "| editing | ROME | 2 s | 1 × fact | 2.0 GB |" in text
    assert "undone: same bits: True." in text
    row = json.loads((results / "search.json").read_text())["rows"][1]
    cells = [table.seconds(side) for side in row["seconds"].values()]
    assert f"| 3 | {' | '.join(cells)} | {table.times(row['speedup'])} |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    ends = [line for line in tables if set(line) == {"|", "-"}]
    assert len(ends) == sum(len(s.results) for s in table.SECTIONS) - 1  # but build


def test_a_page_without_a_result(results, tmp_path):
    for path in results.glob("[!s]*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = table.block(tmp_path)
    assert text.count(f": {table.NOTHING}.") == 5  # three searches, two solves
    assert "```{figure}" in text
    assert "```{figure}" not in table.block(tmp_path / "nowhere")


def test_numbers_keep_three_digits():
    told = [table.short(x) for x in (0.001234, 1.0, 12.345, 1234.5)]
    assert told == ["0.00123", "1", "12.3", "1,234"]
    assert table.seconds(harness.spread([1.0, 2.0, 4.0])) == "2 s (1.5 to 3)"


def test_a_picture_of_all_results(results, tmp_path):
    out = figure.draw(results, tmp_path / "all.png")
    assert Image.open(out).text[figure.MARK] == figure.digest(results)
    (tmp_path / "x.json").write_text("{}")
    assert figure.digest(tmp_path) != figure.digest(results)


def test_no_picture_of_nothing(tmp_path):
    out = tmp_path / "old.png"
    out.touch()
    assert figure.draw(tmp_path, out) is None
    assert not out.exists()


def test_a_benchmark_that_nobody_draws_is_named():
    with pytest.raises(LookupError, match="no drawing of 'other'"):
        figure.panel(None, {"benchmark": "other"})


def test_the_page_shows_what_was_measured():
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.renewed(text) == text, "run python -m benchmarks.figure"
    named = {f"{name}.json" for s in table.SECTIONS for name in s.results}
    assert {path.name for path in harness.RESULTS.glob("*.json")} <= named


def test_the_picture_shows_what_was_measured():
    if not any(harness.RESULTS.glob("*.json")):
        assert not table.PICTURE.exists()
        return
    drawn = Image.open(table.PICTURE).text[figure.MARK]
    assert drawn == figure.digest(), "run python -m benchmarks.figure"


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.json")), ids=str)
def test_published_results_are_whole(path):
    told = kept(path)
    least = build.KEPT if told["benchmark"] == "build" else harness.LEAST
    assert told["settings"]["repeats"] >= least
