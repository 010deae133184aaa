"""Keys that are alike, and what helps: what was measured, and how."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

import edutools as edu
from edutools.keyvalue import beginning
from edutools.linear import cholesky
from edutools.solve import emmet_update
from experiments import stabilize
from experiments.alike import KINDS, Alike
from experiments.compared import closed_forms, norm
from experiments.cures import CURES, Place, condition, pinv_update, system
from experiments.study import Bank, Setup

RESULTS = Path(stabilize.__file__).parent / "results"
MODELS = ("pocket-gptj-organism", "pocket-llama")


@cache
def rows(model: str) -> list[dict]:
    path = RESULTS / f"stabilize-{model}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def unit(row: dict) -> tuple:
    return row["kind"], row["n"], row["seed"], row.get("cure")


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup.of("pocket-gptj-organism")


@pytest.fixture(scope="module")
def draws(setup) -> Alike:
    return Alike.of(setup)


def test_pairs_are_of_their_kind(draws):
    for kind in KINDS[1:]:
        cases = draws.batch(kind, 200, 3)
        assert len(cases) == 200
        for one, other in zip(cases[::2], cases[1::2], strict=True):
            a, b = one.fact, other.fact
            assert a.subject == b.subject
            assert (a.text == b.text) == (kind == "two targets")
            assert (beginning(a) == beginning(b)) == (kind != "two wordings")
            if kind == "two targets":
                assert len({a.target, b.target, a.truth}) == 3
        assert len({case.fact.subject for case in cases}) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_batches_are_in_larger_ones_and_leave_others_alone(draws, kind):
    large = draws.batch(kind, 64, 1)
    assert draws.batch(kind, 16, 1) == large[:16]
    assert draws.batch(kind, 16, 2) != large[:16]
    untouched = {case.fact.subject for case in draws.setup.others(1)}
    assert untouched.isdisjoint(case.fact.subject for case in large)


def random(*shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def test_the_pseudo_inverse_is_the_inverse_or_writes_the_mean():
    W, K, V, X = random(3, 8), random(8, 4), random(3, 4), random(8, 20)
    C = cholesky(X @ X.T)
    exact, found = emmet_update(W, K, V, C), pinv_update(W, K, V, C)
    torch.testing.assert_close(found.dense(), exact.dense())
    twice = pinv_update(W, K[:, [0, 1, 1]], V[:, :3], C)
    mean = torch.stack([V[:, 0], V[:, 1:3].mean(1)], 1)
    torch.testing.assert_close((W + twice.dense()) @ K[:, :2], mean)
    least = emmet_update(W, K[:, :2], mean, C)
    torch.testing.assert_close(twice.dense(), least.dense())


def test_a_condition_is_that_of_what_is_solved():
    D = torch.diag(torch.tensor([4.0, 0.04], dtype=torch.float64))
    assert condition(D) == pytest.approx(2)
    assert condition(D, 0.36) == pytest.approx(torch.tensor(10.9).log10().item())
    singular = torch.diag(torch.tensor([4.0, 0.04, 1e-13], dtype=torch.float64))
    assert condition(singular) is None
    assert condition(singular, pinv=True) == pytest.approx(2)
    assert condition(singular, 0.4) == pytest.approx(torch.tensor(11.0).log10().item())
    K, C = random(8, 3), random(8, 20)
    C = C @ C.T
    torch.testing.assert_close(
        system(K, cholesky(C)), K.T @ torch.linalg.solve(C, K), check_dtype=True
    )


def test_the_edits_of_the_study_are_those_of_the_package(setup, draws):
    method = closed_forms(setup)["EMMET"]
    assert isinstance(method, edu.EMMET)
    moments = setup.moments(method.layers)
    (layer,), of = method.layers, (setup.model, setup.tokenizer)
    place = Place(setup, method, Bank(), {})
    facts = [case.fact for case in draws.batch("one key", 4, 0)]
    for cure, chosen, part in (
        ("ridge 10", edu.EMMET(layers=(layer,), search=method.search, ridge=10.0), 4),
        (
            "merged, ridge 10",
            edu.MEMITMerge(layers=(layer,), search=method.search, lam=10.0),
            4,
        ),
        ("nothing", method, 1),
    ):
        found, _ = place.cured(facts[:part], cure, moments[layer])
        wanted = edu.edit(*of, facts[:part], method=chosen, moments=moments)
        assert norm(found) == pytest.approx(norm(wanted), rel=1e-3)
    with pytest.raises(ValueError, match="cannot both"):
        place.cured(facts, "nothing", moments[layer])
    with pytest.raises(ValueError, match="cannot both"):
        edu.edit(*of, facts, method=method, moments=moments)


@pytest.mark.parametrize("model", MODELS)
def test_all_was_measured(model):
    found = [unit(row) for row in rows(model)]
    assert len(set(found)) == len(found)
    for seed in range(5):
        mine = {(kind, n, cure) for kind, n, at, cure in found if at == seed}
        for kind in KINDS[:2]:
            for n in stabilize.SIZES[1:]:
                assert (kind, n, None) in mine
        for kind in stabilize.TWICE:
            for cure in CURES:
                assert (kind, stabilize.BATCH, cure) in mine


@pytest.mark.parametrize("model", MODELS)
def test_what_is_singular_is_refused_unless_it_is_cured(model):
    for row in rows(model):
        twice = row["kind"] in stabilize.TWICE
        assert row["singular"] == (twice or row["n"] > 600)
        assert ("log10_condition" in row) != row["singular"]
        if "cure" in row:
            plain = twice and row["cure"] == "nothing"
            merged = row["cure"].startswith("merged") and row["kind"] == "two targets"
            assert ("refused" in row) == (plain or merged)


def agree(row: dict, then: dict) -> None:
    assert row.keys() == then.keys()
    for name, value in row.items():
        if name in ("norm", "residual"):
            assert value == pytest.approx(then[name], rel=2e-2, abs=1e-5), name
        elif name.startswith("log10"):
            assert value == pytest.approx(then[name], abs=0.05), name
        elif isinstance(value, float) and name != "seconds":
            assert value == pytest.approx(then[name], abs=1e-3), name
        elif name not in ("seconds", "refused"):  # whose pair or direction may vary
            assert value == then[name], name


def again(tmp_path: Path, *options: str) -> list[dict]:
    out = tmp_path / "stabilize.json"
    given = ["--model", "pocket-llama", "--seeds", "1", *options]
    stabilize.main([*given, "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))["rows"]


def test_conditions_are_those_of_the_study(tmp_path):
    known = {unit(row): row for row in rows("pocket-llama")}
    found = again(tmp_path, "--limit", "16", "--unit", "cure=null")
    assert len(found) == 9
    for row in found:
        agree(row, known[unit(row)])


def test_an_edit_gives_the_numbers_of_the_study(tmp_path):
    known = {unit(row): row for row in rows("pocket-llama")}
    cures = [f"cure={cure}" for cure in ("nothing", "ridge 10", "pinv")]
    only = [part for cure in cures for part in ("--unit", cure)]
    found = again(tmp_path, "--unit", "kind=one key", *only)
    assert len(found) == 3
    for row in found:
        agree(row, known[unit(row)])
