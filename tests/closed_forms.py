"""Random problems for the closed forms, shared by their tests."""

import torch
from hypothesis import strategies as st

TIGHT = {"rtol": 1e-8, "atol": 1e-9}

lams = st.floats(1e-3, 1e4)


@st.composite
def problems(draw, max_facts: int | None = None):
    """(W, K, V, C): random, with more dimensions than facts."""
    d_out, d_in = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    n = draw(st.integers(1, min(d_in - 1, max_facts or d_in)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    W, K, V, old = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((d_out, d_in), (d_in, n), (d_out, n), (d_in, 8 * d_in))
    )
    mix = torch.randn(d_in, d_in, generator=g, dtype=torch.float64)
    old = (mix + 2 * d_in**0.5 * torch.eye(d_in)) @ old  # correlated, not singular
    return W, K, V, old @ old.T / old.shape[1]


def rotation(size: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=g).double()).Q
