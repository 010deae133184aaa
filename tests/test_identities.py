"""The family of closed forms: what holds between its members, for random numbers."""

import pytest
import torch
from closed_forms import lams, problems
from hypothesis import assume, given
from hypothesis import strategies as st

from edutools.solve import CollidingKeys, emmet_update, memit_update, rome_update

NEAR = {"rtol": 1e-6, "atol": 1e-7}


def cost(delta, C):
    """The mean squared disturbance of old keys, tr(Δ C Δᵀ)."""
    return float(torch.trace(delta @ C @ delta.T))


@given(problems(max_facts=1))
def test_rome_solves_its_kkt_system(problem):
    """Stationarity Δ C = Λ kᵀ and Δ k = v - W k, solved by brute force."""
    W, K, V, C = problem
    zero = torch.zeros(1, 1).double()
    kkt = torch.cat([torch.cat([C, K], 1), torch.cat([K.T, zero], 1)], 0)
    right = torch.cat([torch.zeros(len(K), len(W)).double(), (V - W @ K).T], 0)
    brute = torch.linalg.solve(kkt, right)[: len(K)].T
    delta = rome_update(W, K[:, 0], V[:, 0], C).dense()
    torch.testing.assert_close(delta, brute, **NEAR)


@given(problems(), lams)
def test_memit_is_the_minimum_of_its_objective(problem, lam):
    """Brute force over all entries of Δ at once: one equation, written out."""
    W, K, V, C = problem
    eye = torch.eye(len(W)).double()
    hessian = torch.kron(eye, lam * C + K @ K.T)  # of vec(Δ), row by row
    gradient = ((V - W @ K) @ K.T).flatten()
    brute = torch.linalg.solve(hessian, gradient).view_as(W)
    delta = memit_update(W, K, V, C, lam).dense()
    torch.testing.assert_close(delta, brute, **NEAR)


@given(problems())
def test_what_exact_writing_costs(problem):
    """tr(Δ C Δᵀ) = tr(R D⁻¹ Rᵀ): dear where keys are alike, in the metric of C⁻¹."""
    W, K, V, C = problem
    R, D = V - W @ K, K.T @ torch.linalg.solve(C, K)
    wanted = float(torch.trace(R @ torch.linalg.solve(D, R.T)))
    assert cost(emmet_update(W, K, V, C).dense(), C) == pytest.approx(wanted, rel=1e-6)


@given(problems(), lams, st.floats(1.1, 100))
def test_a_larger_lam_spares_old_keys_and_writes_less(problem, lam, more):
    W, K, V, C = problem
    R = V - W @ K
    assume(float(R.norm()) > 1e-3)
    low, high = (memit_update(W, K, V, C, x).dense() for x in (lam, lam * more))
    assert cost(high, C) < cost(low, C)
    assert (high @ K - R).norm() > (low @ K - R).norm()


@given(problems(), st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_conflicting_values_of_one_key_are_averaged(problem, times):
    """MEMIT for λ → 0: EMMET of the different keys with their mean values."""
    W, K, V, C = problem
    n = K.shape[1]
    owner = torch.arange(n).repeat_interleave(torch.tensor(times[:n]))
    g = torch.Generator().manual_seed(n)
    wanted = V[:, owner] + torch.randn(len(W), len(owner), generator=g).double()
    share = torch.nn.functional.one_hot(owner, n).double()
    mean = wanted @ share / share.sum(0)
    exact = emmet_update(W, K, mean, C).dense()
    D = K.T @ torch.linalg.solve(C, K)
    lam = 1e-8 * float(torch.linalg.eigvalsh(D)[0])
    delta = memit_update(W, K[:, owner], wanted, C, lam).dense()
    size = 1e-5 * float(exact.norm() + 1)
    torch.testing.assert_close(delta, exact, rtol=1e-5, atol=size)


@given(problems(max_facts=1), lams, st.integers(2, 6))
def test_a_fact_given_several_times_counts_several_times(problem, lam, times):
    """The same key c times with mean value v: MEMIT of v once, with λ / c."""
    W, K, V, C = problem
    g = torch.Generator().manual_seed(times)
    wanted = V + torch.randn(len(W), times, generator=g).double()
    many = memit_update(W, K.repeat(1, times), wanted, C, lam).dense()
    once = memit_update(W, K, wanted.mean(1, keepdim=True), C, lam / times).dense()
    torch.testing.assert_close(many, once, **NEAR)


@given(problems(), st.integers(0, 3))
def test_exact_writing_needs_independent_keys(problem, more):
    """As many facts as the keys have dimensions of their own, and not one more."""
    W, K, V, C = problem
    n = K.shape[1]
    g = torch.Generator().manual_seed(more)
    mixed = K @ torch.randn(n, more, generator=g).double()
    keys = torch.cat([K, mixed], 1)
    values = torch.cat([V, torch.randn(len(W), more, generator=g).double()], 1)
    if more == 0:
        delta = emmet_update(W, keys, values, C).dense()
        torch.testing.assert_close((W + delta) @ keys, values, rtol=1e-6, atol=1e-6)
    else:
        with pytest.raises((CollidingKeys, ValueError), match="cannot"):
            emmet_update(W, keys, values, C)
    memit_update(W, keys, values, C, 1.0)


@given(problems(), lams)
def test_a_rotation_of_value_space_carries_through(problem, lam):
    W, K, V, C = problem
    g = torch.Generator().manual_seed(len(W))
    Q = torch.linalg.qr(torch.randn(len(W), len(W), generator=g).double()).Q
    for update in (emmet_update, lambda *args: memit_update(*args, lam)):
        turned = update(Q @ W, K, Q @ V, C).dense()
        torch.testing.assert_close(turned, Q @ update(W, K, V, C).dense(), **NEAR)
