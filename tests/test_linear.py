"""Factors: precision, refinement, condition, residuals, blocks, what is kept."""

import json
from dataclasses import replace

import pytest
import torch
from closed_forms import TIGHT, lams, problems, rotation
from hypothesis import given
from hypothesis import strategies as st

import edutools as edu
from edutools import linear
from edutools.accuracy import inverse_norm, relative_residual
from edutools.contexts import BARE
from edutools.corners import alphaedit_update, encore_update, null_space_projector
from edutools.keyvalue import ValueSearch
from edutools.linear import Cholesky, Shifted, cholesky
from edutools.precision import chosen_precision, double, home
from edutools.prepared import Prepared
from edutools.secondmoment import SecondMoment
from edutools.solve import emmet_update, memit_update, rome_update, rome_updates
from edutools.testing import TINY_FACTS, taught_model, tiny_tokenizer

CPU = torch.device("cpu")


def spd(size: int, condition: float, seed: int = 0):
    """Eigenvalues from 1 down to 1/condition; directions at random."""
    end = -torch.log10(torch.tensor(condition)).item()
    values = torch.logspace(0, end, size, dtype=torch.float64)
    Q = rotation(size, seed)
    C = Q * values @ Q.T
    return (C + C.T) / 2


def draw(*shape: int, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# which precision


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((8, 0), None, "float64"),
        ((9, 0), None, "float64"),
        ((8, 6), None, "refined"),
        ((8, 9), None, "refined"),
        ((12, 0), None, "refined"),
        ((9, 4), "6.2", "float64"),
        ((9, 4), None, "refined"),
        ((11, 0), "6.2", "refined"),
    ],
)
def test_a_gpu_is_known_by_its_capability(monkeypatch, capability, hip, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert chosen_precision("cuda:1") == expected
    assert chosen_precision("cuda:1", "float64") == "float64"
    assert home("cuda:1") == torch.device("cuda:1")


def test_devices_without_float64_have_their_home_on_the_cpu():
    assert chosen_precision("mps") == "refined"
    assert (home("mps"), home("cpu")) == (CPU, CPU)
    assert chosen_precision("cpu") == "float64"


@pytest.mark.parametrize("wrong", ["double", "", None, 64])
def test_an_unknown_precision_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match="precision"):
        chosen_precision("cpu", wrong)


# refinement


@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e5, 1e6])
def test_refined_solutions_are_as_good_as_those_of_float64(condition):
    C, B = spd(48, condition), draw(48, 7)
    low, high = cholesky(C, precision="refined"), cholesky(C)
    assert (low.lower.dtype, low.precision) == (torch.float32, "refined")
    assert (high.lower.dtype, high.precision) == (torch.float64, "float64")
    single = torch.cholesky_solve(B.float(), torch.linalg.cholesky(C.float()))
    first = relative_residual(lambda X: C @ X, single.double(), B)
    left, exact = low.residual(low.solve(B), B), high.residual(high.solve(B), B)
    assert left < 3 * exact + 1e-15
    assert left < 1e-6 * first
    assert torch.equal(low.matrix(), C)


def test_refinement_does_not_mind_scale():
    """The diagonal is scaled to ones, so only the condition after that counts."""
    C, B = spd(32, 1e3), draw(32, 3)
    size = torch.logspace(-8, 8, 32, dtype=torch.float64)
    scaled = size[:, None] * C * size[None, :] * 1e-60
    low = cholesky(scaled, precision="refined")
    assert low.precision == "refined"
    exact = torch.linalg.solve(C, B / size[:, None] * 1e60) / size[:, None]
    torch.testing.assert_close(low.solve(B) / exact, torch.ones_like(B), **TIGHT)


@pytest.mark.parametrize("condition", [1e9, 1e12])
def test_what_float32_cannot_refine_is_done_in_float64(condition):
    C, B = spd(48, condition), draw(48, 2)
    served = cholesky(C, precision="refined")
    assert served.precision == "float64"
    assert torch.equal(served.solve(B), cholesky(C).solve(B))


def test_what_has_no_factor_is_refused_in_either_precision():
    old = draw(6, 4)
    for precision in ("float64", "refined"):
        with pytest.raises(ValueError, match="C is not positive definite"):
            cholesky(old @ old.T, precision=precision)
        with pytest.raises(ValueError, match="C is not positive definite"):
            cholesky(-torch.eye(2), precision=precision)


def test_a_factor_of_another_matrix_cannot_be_refined():
    wrong = Cholesky(torch.eye(6), Shifted(spd(6, 1e4)))
    with pytest.raises(
        RuntimeError, match=r"float32 factor cannot be refined.* size 6"
    ):
        wrong.solve(draw(6, 2))


@given(problems(), lams)
def test_closed_forms_agree_in_both_precisions(problem, lam):
    W, K, V, C = problem
    low = cholesky(C, precision="refined")
    for update in (emmet_update, lambda *args: memit_update(*args, lam)):
        found, exact = update(W, K, V, low), update(W, K, V, C)
        torch.testing.assert_close(found.dense(), exact.dense(), rtol=1e-6, atol=1e-7)
        assert found.solved.precision == low.precision
        assert max(found.solved.residual.values()) < 1e-10


# condition and residual


@given(problems(), st.floats(1e-6, 1e6))
def test_the_condition_is_estimated_from_below_and_closely(problem, scale):
    *_, C = problem
    exact = float(torch.linalg.cond(C, 1))
    for precision in ("float64", "refined"):
        found = cholesky(scale * C, precision=precision).condition
        assert exact / 3 <= found <= exact * (1 + 1e-6)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_the_condition_of_a_larger_matrix(condition):
    C = spd(200, condition)
    found = cholesky(C).condition
    assert condition / 20 < found <= float(torch.linalg.cond(C, 1)) * 1.001
    assert cholesky(torch.eye(5)).condition == 1


def test_the_norm_of_an_inverse_by_hand():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    found = inverse_norm(lambda x: torch.linalg.solve(A, x), torch.ones(2, 1).double())
    assert found == pytest.approx(float(torch.linalg.inv(A).abs().sum(0).max()))


@pytest.mark.parametrize("n", [1, 4, 5, 60])
def test_a_residual_tells_an_error_of_its_size(n):
    C, B = spd(30, 10.0), draw(30, n)
    X = torch.linalg.solve(C, B)
    assert relative_residual(lambda Y: C @ Y, X, B) < 1e-13
    wrong = X + 1e-4 * draw(30, n, seed=3)
    exact = float((C @ wrong - B).norm() / B.norm())
    found = relative_residual(lambda Y: C @ Y, wrong, B)
    assert exact / 2 < found < exact * 2
    if n <= 4:
        assert found == pytest.approx(exact)
    assert relative_residual(lambda Y: C @ Y, 0 * X, 0 * B) == 0


def test_updates_tell_condition_and_residual_of_their_systems():
    W, K, V, C = draw(3, 12), draw(12, 5, seed=2), draw(3, 5, seed=3), spd(12, 100.0)
    D = K.T @ torch.linalg.solve(C, K)
    by_facts = (
        float(torch.linalg.cond(D, 1)),
        float(torch.linalg.cond(D + 9 * torch.eye(5), 1)),
    )
    told = emmet_update(W, K, V, C).solved, memit_update(W, K, V, C, 9.0).solved
    for solved, exact in zip(told, by_facts, strict=True):
        assert set(solved.condition) == set(solved.residual) == {"C", "facts"}
        assert exact / 3 <= solved.condition["facts"] <= exact * 1.001
        assert solved.condition["C"] == cholesky(C).condition
        assert 0 < max(solved.residual.values()) < 1e-13
    rome = rome_update(W, K[:, 0], V[:, 0], C).solved
    assert set(rome.condition) == {"C"}
    P = null_space_projector(C, 0.5)
    assert set(alphaedit_update(W, K, V, P, 1.0).solved.residual) == {"facts"}
    many = memit_update(W, draw(12, 20), draw(3, 20), C, 9.0)
    assert set(many.solved.condition) == {"facts"}
    assert many.to(torch.float32).solved is many.solved


def test_a_spoilt_solution_shows_in_the_residual(monkeypatch):
    W, K, V, C = draw(3, 12), draw(12, 5, seed=2), draw(3, 5, seed=3), spd(12, 100.0)
    solve = Cholesky.solve
    monkeypatch.setattr(Cholesky, "solve", lambda self, B: solve(self, B) * (1 + 1e-5))
    found = memit_update(W, K, V, C, 9.0).solved.residual
    assert found["C"] == pytest.approx(1e-5, rel=1e-3)
    assert found["facts"] < 1e-12  # it is the system that was made of the solution


# forms, blocks, many columns


@given(problems(), lams)
def test_single_updates_of_many_facts_are_those_of_each(problem, lam):
    W, K, V, C = problem
    for i, delta in enumerate(rome_updates(W, K, V, C)):
        alone = rome_update(W, K[:, i], V[:, i], C)
        torch.testing.assert_close(delta.dense(), alone.dense(), **TIGHT)
        assert delta.rank == 1


@pytest.mark.parametrize("precision", ["float64", "refined"])
def test_columns_are_solved_in_blocks(monkeypatch, precision):
    C, B = spd(10, 100.0), draw(10, 23)
    factor = cholesky(C, precision=precision)
    whole, widths = factor.solve(B), []
    solve = Cholesky._solve
    monkeypatch.setattr(linear, "BLOCK", 8)
    monkeypatch.setattr(
        Cholesky, "_solve", lambda self, X: widths.append(X.shape[1]) or solve(self, X)
    )
    torch.testing.assert_close(factor.solve(B), whole, **TIGHT)
    assert widths == [8, 8, 7]


def sizes(monkeypatch) -> list[int]:
    """The sizes of all systems that are factorised from here on."""
    found = []
    factorise = torch.linalg.cholesky_ex
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda A: found.append(len(A)) or factorise(A)
    )
    return found


@pytest.mark.parametrize(("n", "size"), [(1, 1), (5, 5), (11, 11), (12, 12), (30, 12)])
def test_the_smaller_system_is_solved(monkeypatch, n, size):
    W, K, V = draw(3, 12), draw(12, n, seed=2), draw(3, n, seed=3)
    factor = cholesky(spd(12, 100.0))
    seen = sizes(monkeypatch)
    memit = memit_update(W, K, V, factor, 2.0)
    ridge = emmet_update(W, K, V, factor, 2.0)
    assert seen == [size, size]
    torch.testing.assert_close(memit.dense(), ridge.dense(), **TIGHT)


@given(problems(), lams, st.integers(0, 3), st.sampled_from([0.0, 0.5]))
def test_encore_by_a_factor_is_encore(problem, lam, m, norm):
    W, K, V, C = problem
    past = draw(len(K), m) if m else None
    exact = encore_update(W, K, V, C, lam, norm=norm, past=past).dense()
    moment = SecondMoment(8 * C, 8)
    for shift in (norm / lam, 0.0, 7.0):  # the one that fits, and others
        given = moment.prepared.factor(shift)
        found = encore_update(W, K, V, given, lam, norm=norm, past=past)
        torch.testing.assert_close(found.dense(), exact, rtol=1e-6, atol=1e-7)


# what is computed once


def test_a_moment_is_factorised_once_per_precision_and_shift(monkeypatch):
    moment = SecondMoment(3 * spd(8, 10.0), 3)
    seen = sizes(monkeypatch)
    factors = [
        moment.factor,
        moment.on("cpu").factor,
        moment.on("cpu").on(CPU, "float64").factor,
        moment.remember(draw(8, 2)).factor,
        moment.remember(draw(8, 2)).on("cpu").factor,
    ]
    assert all(factor is factors[0] for factor in factors)
    assert seen == [8]
    low = moment.on("cpu", "refined")
    assert low.factor is moment.on("cpu", "refined").factor
    assert (low.factor.precision, seen) == ("refined", [8, 8])
    shifted = moment.prepared.factor(0.5)
    assert shifted is moment.prepared.factor(0.5)
    torch.testing.assert_close(shifted.matrix(), moment.value + 0.5 * torch.eye(8))
    assert len(seen) == 3
    assert moment.spectrum is moment.on("cpu").spectrum
    assert moment.merge(moment).factor is not moment.factor


def test_a_diagonal_matrix_needs_no_factorisation(monkeypatch):
    seen = sizes(monkeypatch)
    factor = cholesky(torch.diag(torch.tensor([4.0, 9.0])).double())
    assert (factor.lower.diagonal().tolist(), seen) == ([2.0, 3.0], [])
    with pytest.raises(ValueError, match="not positive definite"):
        cholesky(torch.diag(torch.tensor([1.0, 0.0])))


def test_a_factor_stays_where_it_is(monkeypatch):
    """Columns travel; nothing as large as the factor is copied."""
    factor = Prepared(spd(40, 10.0), 1, "C").factor()
    _ = factor.condition
    moved = []
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, *a, **k: moved.append(x.shape) or to(x, *a, **k)
    )
    memit_update(draw(2, 40), draw(40, 3), draw(2, 3), factor, 1.0)
    assert moved  # the columns
    assert factor.lower.shape not in moved


def test_double_names_what_is_not_finite():
    assert double(torch.ones(2), "x").dtype == torch.float64
    with pytest.raises(ValueError, match="x holds a NaN"):
        double(torch.tensor([float("nan")]), "x")


# the way through `edit`

SEARCH = ValueSearch(steps=1, contexts=BARE)
METHODS = {
    "ROME": edu.ROME(layer=1, search=replace(SEARCH, site="mlp", clamp=4.0)),
    "MEMIT": edu.MEMIT(layers=(0, 1), lam=0.1, search=SEARCH),
    "EMMET": edu.EMMET(layers=(1,), search=SEARCH),
    "MEMITMerge": edu.MEMITMerge(layers=(1,), lam=0.1, search=SEARCH),
    "AlphaEdit": edu.AlphaEdit(layers=(1,), threshold=0.5, scale="mean", search=SEARCH),
    "ENCORE": edu.ENCORE(layers=(1,), lam=0.1, norm=0.01, search=SEARCH),
}


@pytest.fixture(scope="module")
def taught():
    model, tokenizer = taught_model("llama"), tiny_tokenizer("llama")
    texts = [f"{fact.text} {fact.target}" for fact in TINY_FACTS] * 3
    moments = edu.second_moment(model, tokenizer, texts, layers=[0, 1], progress=False)
    return model, tokenizer, moments


@pytest.mark.parametrize("name", METHODS)
def test_edits_factorise_each_moment_once_and_tell_how_well(taught, monkeypatch, name):
    model, tokenizer, measured = taught
    moments = {layer: replace(moment) for layer, moment in measured.items()}
    method, facts = METHODS[name], TINY_FACTS[:1]
    seen, decomposed = sizes(monkeypatch), []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda A: decomposed.append(len(A)) or eigh(A)
    )
    edits = [
        edu.edit(model, tokenizer, facts, method=method, moments=moments)
        for _ in range(3)
    ]
    layers = len(method.edited())
    assert seen.count(24) + len(decomposed) == layers
    assert decomposed == ([24] if name == "AlphaEdit" else [])
    assert set(seen) <= {1, 24}
    for change in edits:
        assert set(change.info["solved"]) == set(change.deltas)
        for told in change.info["solved"].values():
            assert told["precision"] == "float64"
            systems = {"ROME": {"C"}, "AlphaEdit": {"facts"}}.get(name, {"C", "facts"})
            assert set(told["condition"]) == set(told["residual"]) == systems
            assert all(kappa >= 1 for kappa in told["condition"].values())
            assert all(0 <= left < 1e-9 for left in told["residual"].values())
        assert json.loads(json.dumps(change.info["solved"])) == change.info["solved"]


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "ENCORE"])
def test_an_edit_can_be_refined(taught, monkeypatch, name):
    model, tokenizer, moments = taught
    options = {"method": METHODS[name], "moments": moments}
    exact = edu.edit(model, tokenizer, TINY_FACTS[:1], **options)
    low = edu.edit(model, tokenizer, TINY_FACTS[:1], precision="refined", **options)
    for place, delta in low.deltas.items():
        torch.testing.assert_close(
            delta.dense(), exact.deltas[place].dense(), rtol=1e-4, atol=1e-6
        )
        told = low.info["solved"][place]
        scaled = moments[1].value.diagonal().rsqrt()
        scaled = scaled[:, None] * moments[1].value * scaled
        if float(torch.linalg.cond(scaled)) < 1e5:
            assert told["precision"] == "refined"
    with pytest.raises(ValueError, match="precision is 'half'; choose one of"):
        edu.edit(model, tokenizer, TINY_FACTS[:1], precision="half", **options)


def test_the_identity_needs_no_factorisation(taught, monkeypatch):
    model, tokenizer, _ = taught
    seen = sizes(monkeypatch)
    method = replace(METHODS["MEMIT"], covariance="identity")
    change = edu.edit(model, tokenizer, TINY_FACTS[:1], method=method)
    assert 24 not in seen
    conditions = [told["condition"]["C"] for told in change.info["solved"].values()]
    assert conditions == pytest.approx([1, 1])
