"""The benchmarks run, at sizes that say nothing of speed, and keep what they should."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import full_size, harness, limit, models, moments, solve

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


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.json")), ids=str)
def test_published_results_are_whole(path):
    told = kept(path)
    assert told["settings"]["repeats"] >= harness.LEAST
