"""AlphaEdit and ENCORE: what their papers claim, for random sizes and numbers."""

import pytest
import torch
from closed_forms import TIGHT, lams, problems, rotation
from hypothesis import assume, given
from hypothesis import strategies as st

from edutools.corners import (
    Projector,
    alphaedit_update,
    encore_update,
    null_space_projector,
    spectrum,
)
from edutools.linear import cholesky
from edutools.solve import emmet_update, memit_update

NEAR = {"rtol": 1e-7, "atol": 1e-8}
norms = st.floats(1e-2, 1e3)


@st.composite
def protected(draw, past: int = 3):
    """(W, K, V, P, K0, K_p): P keeps what the old keys K0 do not span."""
    W, K, V, _ = draw(problems())
    d_in = len(K)
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    old, Kp = (
        torch.randn(d_in, size, generator=g).double()
        for size in (draw(st.integers(0, d_in - 1)), draw(st.integers(0, past)))
    )
    P = null_space_projector(old @ old.T / max(old.shape[1], 1), 1e-9)
    return W, K, V, P, old, Kp


def identity(M):
    return torch.eye(len(M), dtype=torch.float64)


def small_form(W, K, V, P, l2, Kp):
    """[R, 0] (ZᵀPZ + L₂I)⁻¹ ZᵀP with Z = [K, K_p]."""
    Z = torch.cat([K, Kp], 1)
    R = torch.cat([V - W @ K, torch.zeros(len(W), Kp.shape[1]).double()], 1)
    M = Z.T @ P @ Z + l2 * torch.eye(Z.shape[1]).double()
    return R @ torch.linalg.solve(M, Z.T @ P)


def code_form(W, K, V, P, l2, Kp):
    """Solve (P(KKᵀ + K_pK_pᵀ) + L₂I) X = PKRᵀ, and transpose."""
    M = P @ (K @ K.T + Kp @ Kp.T) + l2 * identity(P)
    return torch.linalg.solve(M, P @ K @ (V - W @ K).T).T


def paper_form(W, K, V, P, l2, Kp):
    """R KᵀP (K_pK_pᵀP + KKᵀP + L₂I)⁻¹."""
    M = Kp @ Kp.T @ P + K @ K.T @ P + l2 * identity(P)
    return torch.linalg.solve(M.T, P @ K @ (V - W @ K).T).T


@given(protected(), norms)
def test_three_ways_to_write_alphaedit_are_one(problem, l2):
    W, K, V, P, _, Kp = problem
    delta = alphaedit_update(W, K, V, P, l2, past=Kp).dense()
    size = {"rtol": 1e-10, "atol": 1e-10 * float(V.norm() / l2**0.5 + 1)}
    for form in (small_form, code_form, paper_form):
        torch.testing.assert_close(delta, form(W, K, V, P.matrix(), l2, Kp), **size)
    dense = alphaedit_update(W, K, V, P.matrix(), l2, past=Kp).dense()
    torch.testing.assert_close(dense, delta, **size)


@given(protected(), norms)
def test_alphaedit_leaves_old_keys_alone(problem, l2):
    """Exactly, however strong the edit; and what it writes is not nothing."""
    W, K, V, P, old, Kp = problem
    delta = alphaedit_update(W, K, V, P, l2, past=Kp).dense()
    assert float((delta @ old).norm()) <= 1e-10 * (1 + float(delta.norm() * old.norm()))
    assert P.rank == len(K) - old.shape[1]
    R = V - W @ K
    written = (delta @ K * R).sum()  # tr(Δ K Rᵀ)
    assert written > 0 or float(R.norm()) < 1e-9


@given(protected(), norms)
def test_alphaedit_is_the_best_fit_in_the_null_space(problem, l2):
    """Brute force: least squares for the free coordinates, old ones left out."""
    W, K, V, P, _, Kp = problem
    U = P.basis  # Δ = X Uᵀ
    ridge = l2**0.5 * torch.eye(P.rank).double()
    rows = torch.cat([U.T @ K, U.T @ Kp, ridge], 1)
    extra = Kp.shape[1] + P.rank
    wanted = torch.cat([V - W @ K, torch.zeros(len(W), extra).double()], 1)
    X = torch.linalg.lstsq(rows.T, wanted.T, driver="gelsd").solution.T
    delta = alphaedit_update(W, K, V, P, l2, past=Kp).dense()
    torch.testing.assert_close(delta, X @ U.T, **NEAR)


@given(protected(), norms)
def test_alphaedit_is_memit_in_the_coordinates_of_the_null_space(problem, l2):
    W, K, V, P, _, Kp = problem
    U = P.basis
    inside = U.T @ K
    assume(bool((inside.norm(dim=0) > 1e-6).all()))
    C = U.T @ Kp @ Kp.T @ U + l2 * torch.eye(P.rank).double()
    zero = torch.zeros(len(W), P.rank).double()
    memit = memit_update(zero, inside, V - W @ K, C, 1.0).dense() @ U.T
    delta = alphaedit_update(W, K, V, P, l2, past=Kp).dense()
    torch.testing.assert_close(delta, memit, **NEAR)


@given(problems())
def test_alphaedit_with_a_small_norm_writes_exactly_where_it_can(problem):
    """All directions free and L₂ → 0: EMMET with C = I."""
    W, K, V, C = problem
    P = Projector(identity(C))
    D = K.T @ K
    l2 = 1e-9 * float(torch.linalg.eigvalsh(D)[0])
    exact = emmet_update(W, K, V, identity(C)).dense()
    delta = alphaedit_update(W, K, V, P, l2).dense()
    torch.testing.assert_close(
        delta, exact, rtol=1e-5, atol=1e-5 * float(exact.norm() + 1)
    )


@given(problems(), norms, st.integers(0, 3))
def test_alphaedit_without_old_keys_is_encore_without_them(problem, norm, m):
    W, K, V, C = problem
    past = torch.randn(len(K), m, generator=torch.Generator().manual_seed(m)).double()
    one = alphaedit_update(W, K, V, Projector(identity(C)), norm, past=past)
    two = encore_update(W, K, V, C, 0.0, norm=norm, past=past)
    torch.testing.assert_close(one.dense(), two.dense(), **NEAR)


@given(problems(), lams, norms, st.integers(0, 4))
def test_encore_solves_its_normal_equation(problem, lam, norm, m):
    W, K, V, C = problem
    past = torch.randn(len(K), m, generator=torch.Generator().manual_seed(m)).double()
    delta = encore_update(W, K, V, C, lam, norm=norm, past=past).dense()
    A = lam * C + past @ past.T + K @ K.T + norm * identity(C)
    torch.testing.assert_close(delta @ A, (V - W @ K) @ K.T, rtol=1e-7, atol=1e-7)


@given(problems(), lams, norms, st.integers(0, 4))
def test_encore_is_the_best_fit_of_all_that_it_weighs(problem, lam, norm, m):
    """Brute force: √λ C^½, K_p and √λ_n I to be left alone, K to be written."""
    W, K, V, C = problem
    past = torch.randn(len(K), m, generator=torch.Generator().manual_seed(m)).double()
    values, vectors = torch.linalg.eigh(C)
    spared = [lam**0.5 * vectors * values.sqrt(), past, norm**0.5 * identity(C)]
    rows = torch.cat([*spared, K], 1)
    zero = torch.zeros(len(W), rows.shape[1] - K.shape[1]).double()
    wanted = torch.cat([zero, V - W @ K], 1)
    brute = torch.linalg.lstsq(rows.T, wanted.T).solution.T
    delta = encore_update(W, K, V, C, lam, norm=norm, past=past).dense()
    torch.testing.assert_close(delta, brute, rtol=1e-6, atol=1e-7)


@given(problems(), lams, norms)
def test_encore_is_memit_with_another_second_moment(problem, lam, norm):
    W, K, V, C = problem
    plain = memit_update(W, K, V, C, lam).dense()
    torch.testing.assert_close(encore_update(W, K, V, C, lam).dense(), plain, **NEAR)
    past = torch.ones(len(K), 2).double()
    more = C + past @ past.T / lam + norm / lam * identity(C)
    wanted = memit_update(W, K, V, more, lam).dense()
    for given_C in (C, cholesky(C)):
        delta = encore_update(W, K, V, given_C, lam, norm=norm, past=past)
        torch.testing.assert_close(delta.dense(), wanted, **NEAR)
        assert delta.rank == K.shape[1]


@given(problems(), lams, norms)
def test_an_earlier_edit_is_disturbed_less_when_its_key_is_remembered(
    problem, lam, norm
):
    W, K, V, C = problem
    past = K[:, :1] + torch.ones(len(K), 1).double()
    P = Projector(identity(C))
    for update in (
        lambda p: encore_update(W, K, V, C, lam, norm=norm, past=p),
        lambda p: alphaedit_update(W, K, V, P, norm, past=p),
    ):
        forgotten = (update(None).dense() @ past).norm()
        assert (update(past).dense() @ past).norm() <= forgotten * (1 + 1e-9)
        torch.testing.assert_close(
            update(past[:, :0]).dense(), update(None).dense(), **TIGHT
        )


@given(protected(), norms)
def test_only_the_gram_matrix_of_earlier_keys_counts(problem, l2):
    """So more earlier keys than dimensions cost no more than as many."""
    W, K, V, P, _, _ = problem
    g = torch.Generator().manual_seed(0)
    many = torch.randn(len(K), 3 * len(K), generator=g).double()
    C = identity(K @ K.T)
    turned = many @ rotation(many.shape[1])
    for update in (
        lambda p: alphaedit_update(W, K, V, P, l2, past=p),
        lambda p: encore_update(W, K, V, C, 1.0, past=p),
    ):
        torch.testing.assert_close(update(many).dense(), update(turned).dense(), **NEAR)
    brute = code_form(W, K, V, P.matrix(), l2, many)
    delta = alphaedit_update(W, K, V, P, l2, past=many)
    torch.testing.assert_close(delta.dense(), brute, **NEAR)


@given(protected(), norms, st.randoms(use_true_random=False))
def test_neither_order_nor_rotation_matters(problem, norm, random):
    W, K, V, P, old, Kp = problem
    order = list(range(K.shape[1]))
    random.shuffle(order)
    Q = rotation(len(K))
    C = identity(P.matrix()) + old @ old.T
    for update in (
        lambda W, K, V, P, C, Kp: alphaedit_update(W, K, V, P, norm, past=Kp),
        lambda W, K, V, P, C, Kp: encore_update(W, K, V, C, 2.0, norm=norm, past=Kp),
    ):
        delta = update(W, K, V, P, C, Kp).dense()
        shuffled = update(W, K[:, order], V[:, order], P, C, Kp.flip(1)).dense()
        torch.testing.assert_close(shuffled, delta, **NEAR)
        turned = Projector(Q @ P.basis)
        moved = update(W @ Q.T, Q @ K, V, turned, Q @ C @ Q.T, Q @ Kp).dense()
        torch.testing.assert_close(moved, delta @ Q.T, **NEAR)


@given(problems(), st.floats(1e-3, 1e3))
def test_a_relative_threshold_does_not_see_the_scale_of_C(problem, scale):
    *_, C = problem
    one = null_space_projector(C, 0.9, scale="mean")
    two = null_space_projector(scale * C, 0.9, scale="mean")
    torch.testing.assert_close(one.matrix(), two.matrix(), **NEAR)
    mean = float(C.diagonal().mean())
    three = null_space_projector(C, 0.9 * mean)
    torch.testing.assert_close(one.matrix(), three.matrix(), **NEAR)
    P = one.matrix()
    torch.testing.assert_close(P @ P, P, **NEAR)
    torch.testing.assert_close(P @ C, C @ P, **NEAR)
    torch.testing.assert_close(one.project(C), P @ C, **NEAR)
    assert one.rank == torch.linalg.matrix_rank(P)
    assert float(torch.linalg.eigvalsh(P @ C @ P)[-1]) < 0.9 * mean


def test_a_spectrum_serves_as_C():
    C = torch.diag(torch.tensor([2.0, 0.5, 0.01]).double())
    found = null_space_projector(spectrum(C), 0.6)
    assert repr(found) == "Projector(rank 2 of 3)"
    torch.testing.assert_close(
        found.matrix(), torch.diag(torch.tensor([0.0, 1.0, 1.0]).double())
    )


def test_more_facts_than_dimensions_are_fitted_in_the_mean():
    g = torch.Generator().manual_seed(0)
    W, K, V = (torch.randn(*s, generator=g).double() for s in ((3, 4), (4, 9), (3, 9)))
    P = Projector(torch.eye(4).double()[:, :2])
    none = torch.zeros(4, 0).double()
    delta = alphaedit_update(W, K, V, P, 0.5)
    assert delta.rank <= 4
    torch.testing.assert_close(
        delta.dense(), code_form(W, K, V, P.matrix(), 0.5, none), **TIGHT
    )


def example():
    g = torch.Generator().manual_seed(1)
    W, K, V = (torch.randn(*s, generator=g).double() for s in ((4, 6), (6, 3), (4, 3)))
    return W, K, V


def test_where_nothing_is_free_nothing_is_written():
    C = torch.diag(torch.tensor([0.5, 2.0, 8.0]))
    message = r"eigenvalues of C go from 0\.5 to 8 .*below the threshold 0\.02"
    with pytest.raises(ValueError, match=message):
        null_space_projector(C, 0.02)
    with pytest.raises(ValueError, match=r"from 0\.143 to 2\.29 \(scale='mean'\)"):
        null_space_projector(C, 0.02, scale="mean")
    for P in (torch.zeros(6, 6), Projector(torch.zeros(6, 0))):
        with pytest.raises(ValueError, match="P is zero, so no direction is left"):
            alphaedit_update(*example(), P, 1.0)


def test_senseless_numbers_are_refused():
    P = Projector(torch.eye(6).double())
    with pytest.raises(ValueError, match="scale is 'relative'; choose one of 'absol"):
        null_space_projector(torch.eye(2), 2.0, scale="relative")
    for l2 in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="l2 must be > 0"):
            alphaedit_update(*example(), P, l2)
    for lam, norm in ((-1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="lam and norm must be >= 0; got lam="):
            encore_update(*example(), torch.eye(6), lam, norm=norm)
    with pytest.raises(ValueError, match=r"norm \* I is not positive definite"):
        encore_update(*example(), torch.eye(6), 0.0)
    nan = torch.full((6, 1), float("nan"))
    with pytest.raises(ValueError, match="past holds a NaN"):
        alphaedit_update(*example(), P, 1.0, past=nan)
    with pytest.raises(ValueError, match="C holds a NaN"):
        spectrum(nan @ nan.T)


def test_a_norm_makes_up_for_too_few_tokens():
    old = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    W, K, V = example()
    delta = encore_update(W, K, V, old @ old.T, 1.0, norm=0.1).dense()
    A = old @ old.T + K @ K.T + 0.1 * torch.eye(6).double()
    torch.testing.assert_close(delta @ A, (V - W @ K) @ K.T, **TIGHT)
