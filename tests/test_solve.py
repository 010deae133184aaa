"""What the papers claim of the closed forms, for random sizes and numbers."""

import pytest
import torch
from closed_forms import TIGHT, lams, problems, rotation
from hypothesis import given
from hypothesis import strategies as st

from edutools.linear import weak_columns
from edutools.solve import (
    CollidingKeys,
    LowRank,
    cholesky,
    emmet_update,
    memit_update,
    rome_update,
)


@given(problems(max_facts=1))
def test_rome_writes_v_and_has_rank_one(problem):
    W, K, V, C = problem
    delta = rome_update(W, K[:, 0], V[:, 0], C)
    torch.testing.assert_close((W + delta.dense()) @ K, V, **TIGHT)
    assert delta.rank == 1
    assert torch.linalg.matrix_rank(delta.dense()) <= 1


@given(problems())
def test_emmet_writes_every_value(problem):
    W, K, V, C = problem
    delta = emmet_update(W, K, V, C).dense()
    torch.testing.assert_close((W + delta) @ K, V, rtol=1e-6, atol=1e-6)


@given(problems())
def test_emmet_is_stationary_among_all_that_write(problem):
    """tr(Δ C Eᵀ) = 0 for every E that does not touch the new keys."""
    W, K, V, C = problem
    delta = emmet_update(W, K, V, C).dense()
    Q = torch.linalg.qr(K).Q
    E = torch.randn_like(W)
    E = E - E @ Q @ Q.T
    torch.testing.assert_close(E @ K, torch.zeros_like(V), atol=1e-9, rtol=0)
    size = delta.norm() * C.norm() * E.norm() + 1e-300
    assert abs(torch.trace(delta @ C @ E.T)) < 1e-9 * size
    cost = torch.trace(delta @ C @ delta.T)
    assert torch.trace((delta + E) @ C @ (delta + E).T) >= cost * (1 - 1e-9)


@given(problems())
def test_emmet_solves_the_full_kkt_system(problem):
    """The block system of minimiser and multipliers, solved by brute force."""
    W, K, V, C = problem
    d_in, n = K.shape
    zero = torch.zeros(n, n, dtype=torch.float64)
    kkt = torch.cat([torch.cat([C, K], 1), torch.cat([K.T, zero], 1)], 0)
    right = torch.cat([torch.zeros(d_in, len(W)).double(), (V - W @ K).T], 0)
    brute = torch.linalg.solve(kkt, right)[:d_in].T
    delta = emmet_update(W, K, V, C).dense()
    torch.testing.assert_close(delta, brute, rtol=1e-6, atol=1e-7)


@given(problems(), lams)
def test_memit_solves_its_normal_equation(problem, lam):
    W, K, V, C = problem
    delta = memit_update(W, K, V, C, lam).dense()
    right = (V - W @ K) @ K.T
    torch.testing.assert_close(delta @ (lam * C + K @ K.T), right, rtol=1e-7, atol=1e-7)


@given(problems(), lams)
def test_memit_is_the_least_squares_fit_of_old_and_new_keys(problem, lam):
    """Brute force: stack √λ C^½ (to be left alone) and K (to be written)."""
    W, K, V, C = problem
    values, vectors = torch.linalg.eigh(C)
    old = lam**0.5 * vectors * values.sqrt()  # old @ oldᵀ = λC  (d_in, d_in)
    keys = torch.cat([old, K], dim=1)
    wanted = torch.cat([torch.zeros(len(W), len(old)).double(), V - W @ K], dim=1)
    brute = torch.linalg.lstsq(keys.T, wanted.T).solution.T
    delta = memit_update(W, K, V, C, lam).dense()
    torch.testing.assert_close(delta, brute, rtol=1e-6, atol=1e-7)


@given(problems(), lams)
def test_emmet_with_a_ridge_is_memit(problem, lam):
    W, K, V, C = problem
    ridge = emmet_update(W, K, V, C, ridge=lam).dense()
    torch.testing.assert_close(ridge, memit_update(W, K, V, C, lam).dense(), **TIGHT)
    weight = 3.0  # on C: λ = weight · ridge
    weighted = emmet_update(W, K, V, weight * C, ridge=lam).dense()
    memit = memit_update(W, K, V, C, weight * lam).dense()
    torch.testing.assert_close(weighted, memit, **TIGHT)


@given(problems())
def test_memit_tends_to_emmet_and_to_nothing(problem):
    W, K, V, C = problem
    emmet = emmet_update(W, K, V, C).dense()
    D = K.T @ torch.linalg.solve(C, K)
    small = 1e-7 * float(torch.linalg.eigvalsh(D)[0])
    near = memit_update(W, K, V, C, small).dense()
    torch.testing.assert_close(near, emmet, rtol=1e-5, atol=1e-5 * float(emmet.norm()))
    large = 1e9 * float(D.diagonal().max())
    assert memit_update(W, K, V, C, large).norm() < 1e-6 * (V - W @ K).norm() + 1e-12


@given(problems(max_facts=1), lams)
def test_one_fact_is_rome_and_memit_shrinks_it(problem, lam):
    W, K, V, C = problem
    rome = rome_update(W, K[:, 0], V[:, 0], C).dense()
    torch.testing.assert_close(emmet_update(W, K, V, C).dense(), rome, **TIGHT)
    q = float(K[:, 0] @ torch.linalg.solve(C, K[:, 0]))
    memit = memit_update(W, K, V, C, lam).dense()
    torch.testing.assert_close(memit, q / (lam + q) * rome, **TIGHT)


@given(problems(), lams, st.randoms(use_true_random=False))
def test_the_order_of_facts_does_not_matter(problem, lam, random):
    W, K, V, C = problem
    order = list(range(K.shape[1]))
    random.shuffle(order)
    for update in (emmet_update, lambda *args: memit_update(*args, lam)):
        first = update(W, K, V, C).dense()
        second = update(W, K[:, order], V[:, order], C).dense()
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


@given(problems(), lams)
def test_a_rotation_of_key_space_carries_through(problem, lam):
    W, K, V, C = problem
    Q = rotation(len(K))
    turned = (W @ Q.T, Q @ K, V, Q @ C @ Q.T)
    for update in (emmet_update, lambda *args: memit_update(*args, lam)):
        expected = update(W, K, V, C).dense() @ Q.T
        torch.testing.assert_close(
            update(*turned).dense(), expected, rtol=1e-6, atol=1e-7
        )


@given(problems(), lams, st.floats(1e-3, 1e3))
def test_the_scale_of_C_drops_out_or_moves_into_lam(problem, lam, scale):
    W, K, V, C = problem
    exact = emmet_update(W, K, V, C).dense()
    scaled = emmet_update(W, K, V, scale * C).dense()
    torch.testing.assert_close(scaled, exact, rtol=1e-6, atol=1e-7)
    memit = memit_update(W, K, V, scale * C, lam).dense()
    moved = memit_update(W, K, V, C, scale * lam).dense()
    torch.testing.assert_close(memit, moved, **TIGHT)


@given(problems(), lams)
def test_a_factor_serves_as_C(problem, lam):
    W, K, V, C = problem
    factor = cholesky(C)
    for update in (emmet_update, lambda *args: memit_update(*args, lam)):
        assert update(W, K, V, factor).equal(update(W, K, V, C))
    rome = rome_update(W, K[:, 0], V[:, 0], factor)
    assert rome.equal(rome_update(W, K[:, 0], V[:, 0], C))


@given(st.integers(0, 10**6), st.integers(0, 5), lams)
def test_memit_takes_more_facts_than_dimensions(seed, extra, lam):
    g = torch.Generator().manual_seed(seed)
    W, K, V = (
        torch.randn(*shape, generator=g).double()
        for shape in ((3, 4), (4, 4 + extra), (3, 4 + extra))
    )
    C = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    for given_C in (C, cholesky(C)):
        delta = memit_update(W, K, V, given_C, lam)
        left = delta.dense() @ (lam * C + K @ K.T)
        torch.testing.assert_close(left, (V - W @ K) @ K.T, rtol=1e-8, atol=1e-8)
        assert delta.rank <= 4


def test_duplicate_keys_get_the_mean_of_their_residuals_from_memit():
    g = torch.Generator().manual_seed(0)
    W, k, V = (torch.randn(*s, generator=g).double() for s in ((3, 6), (6, 1), (3, 2)))
    C = torch.eye(6).double()
    both = memit_update(W, k.repeat(1, 2), V, C, 1e-9).dense()
    mean = rome_update(W, k[:, 0], V.mean(dim=1), C).dense()
    torch.testing.assert_close(both, mean, rtol=1e-6, atol=1e-7)


def example(n: int = 3, d_in: int = 6):
    g = torch.Generator().manual_seed(1)
    W, K, V = (
        torch.randn(*s, generator=g).double() for s in ((4, d_in), (d_in, n), (4, n))
    )
    return W, K, V, torch.eye(d_in).double()


@pytest.mark.parametrize("nearness", [0.0, 1e-9, 3e-6])
def test_colliding_keys_are_named_with_their_cosine(nearness):
    W, K, V, C = example()
    K[:, 2] = -2 * K[:, 0]
    K[0, 2] += nearness
    with pytest.raises(
        CollidingKeys, match=r"Keys 0 and 2 \(cosine -1\.0000\)"
    ) as error:
        emmet_update(W, K, V, C)
    assert error.value.pair == (0, 2)
    assert error.value.cosine == pytest.approx(-1)
    assert "memit_update" in str(error.value)


def test_keys_that_are_only_near_are_still_written():
    W, K, V, C = example()
    K[:, 2] = K[:, 0] + 1e-4 * torch.eye(6).double()[0]
    delta = emmet_update(W, K, V, C)
    torch.testing.assert_close((W + delta.dense()) @ K, V, rtol=1e-5, atol=1e-5)
    kept = delta.to(torch.float32).dense().double()
    torch.testing.assert_close((W + kept) @ K, V, rtol=5e-3, atol=5e-3)


def test_more_facts_than_dimensions_cannot_be_exact():
    with pytest.raises(ValueError, match=r"7 facts cannot all .* keys have size 6"):
        emmet_update(*example(n=7))
    W, K, V, C = example(n=7)
    ridge = emmet_update(W, K, V, C, ridge=2.0).dense()
    torch.testing.assert_close(ridge, memit_update(W, K, V, C, 2.0).dense(), **TIGHT)


def test_too_few_tokens_are_recognised():
    W, K, V, _ = example()
    old = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    C = old @ old.T / 4
    for update in (emmet_update, lambda *args: memit_update(*args, 1.0)):
        with pytest.raises(ValueError, match=r"C is not positive definite.*at least 6"):
            update(W, K, V, C)
    with pytest.raises(ValueError, match="C is not positive definite"):
        rome_update(W, K[:, 0], V[:, 0], C)
    with pytest.raises(ValueError, match="not positive definite"):
        cholesky(torch.diag(torch.tensor([1.0, 0.0, 2.0])))


@given(problems(), st.floats(1e-9, 1e9))
def test_weak_columns_do_not_depend_on_scale(problem, scale):
    *_, C = problem
    size = torch.logspace(0, 6, len(C), dtype=torch.float64) * scale
    C = size[:, None] * C * size[None, :]
    assert not weak_columns(torch.linalg.cholesky(C), C, 1e-12).any()
    cholesky(C)


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
def test_lam_must_be_positive(lam):
    with pytest.raises(ValueError, match="lam must be > 0"):
        memit_update(*example(), lam)


@pytest.mark.parametrize("ridge", [-1.0, float("nan")])
def test_the_ridge_must_not_be_negative(ridge):
    with pytest.raises(ValueError, match="ridge must be >= 0"):
        emmet_update(*example(), ridge)


@pytest.mark.parametrize("index", range(4))
def test_a_nan_is_reported_by_name(index):
    problem = list(example())
    problem[index][0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{'WKVC'[index]} holds a NaN"):
        emmet_update(*problem)


def test_a_zero_key_is_reported():
    W, K, V, C = example()
    K[:, 1] = 0
    with pytest.raises(ValueError, match="Key 1 is zero"):
        emmet_update(W, K, V, C)


def test_a_transposed_argument_is_reported_by_shape():
    W, K, V, C = example()
    with pytest.raises((ValueError, TypeError)):
        emmet_update(W, K.T, V, C)


def test_float32_inputs_are_solved_in_float64():
    W, K, V, C = (tensor.float() for tensor in example())
    delta = emmet_update(W, K, V, C)
    assert delta.left.dtype == torch.float64
    torch.testing.assert_close(
        (W.double() + delta.dense()) @ K.double(), V.double(), **TIGHT
    )


def test_low_rank_behaves_like_its_matrix():
    g = torch.Generator().manual_seed(0)
    a, b = (
        LowRank(torch.randn(4, r, generator=g), torch.randn(r, 5, generator=g))
        for r in (1, 3)
    )
    torch.testing.assert_close((a + b).dense(), a.dense() + b.dense())
    assert (a + b).rank == 4
    assert (a + b).norm() == pytest.approx(float((a + b).dense().norm()), rel=1e-5)
    assert a.shape == (4, 5)
    assert a.equal(LowRank(a.left.clone(), a.right.clone()))
    assert not a.equal(LowRank(a.left + 1, a.right))
    assert repr(b) == "LowRank(4 x 5, rank 3, torch.float32)"
    assert a.to(torch.float64).dense().dtype == torch.float64


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_any_matrix_is_low_rank_exactly(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LowRank.of(matrix).dense(), matrix)
    assert LowRank.of(matrix).rank == min(shape)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises((ValueError, TypeError)):
        LowRank(torch.zeros(3, 2), torch.zeros(1, 4))
    one = LowRank(torch.zeros(3, 1), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\) cannot be added"):
        one + LowRank(torch.zeros(4, 1), torch.zeros(1, 3))
