"""A batch of facts by the cached factor of C, and by a dense system per batch.

``python -m benchmarks.solve`` times, on the same matrices and in one process, MEMIT's
closed form in three ways: by the factor of C, which is made once per layer and
timed apart (only an n x n system is left for each batch); by a d x d system for each
batch, as the formula stands in the paper, solved by LU as the released code does; and
the same by Cholesky, which is the fairer rival. The weight has a few rows only: what is
compared is the system, whose products with weight and residual all ways share.
"""

# ruff: noqa: N803 (the papers' symbols)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import arguments, keep, once, ratio, read, timed
from edutools.linear import cholesky
from edutools.solve import memit_update

SIZES = (2048, 4096, 8192, 16384)
ROWS = 64  # d_out


def problem(size: int, n: int, device: str, seed: int) -> tuple[torch.Tensor, ...]:
    """(W, K, V, C) in float64; C has eigenvalues from 1 to 1e-4 and is dense."""
    g = torch.Generator().manual_seed(seed)
    draw = {"generator": g, "dtype": torch.float64}
    C = torch.diag(torch.logspace(0, -4, size, dtype=torch.float64))
    for _ in range(2):  # reflections I - 2 vvᵀ turn the eigenvectors
        v = torch.nn.functional.normalize(torch.randn(size, **draw), dim=0)
        Cv = C @ v
        C -= 2 * torch.outer(Cv, v)
        C -= 2 * torch.outer(v, v @ C)
    C = (C + C.T) / 2
    W, K, V = (
        torch.randn(*shape, **draw) for shape in ((ROWS, size), (size, n), (ROWS, n))
    )
    return tuple(tensor.to(device) for tensor in (W, K, V, C))


def dense_lu(W, K, V, C, lam: float) -> torch.Tensor:
    """R Kᵀ (λC + KKᵀ)⁻¹ by a general solver."""
    solved = torch.linalg.solve(lam * C + K @ K.T, K)  # (d, n)
    return (V - W @ K) @ solved.T


def dense_cholesky(W, K, V, C, lam: float) -> torch.Tensor:
    """R Kᵀ (λC + KKᵀ)⁻¹ by a Cholesky factor of the sum."""
    factor = torch.linalg.cholesky(lam * C + K @ K.T)
    return (V - W @ K) @ torch.cholesky_solve(K, factor).T


def row(size: int, given) -> dict[str, Any]:
    """One size: seconds of each side, ratios, and how far the results are apart."""
    W, K, V, C = problem(size, given.facts, given.device, given.seed)
    spent, factor = once(lambda: cholesky(C), given.device)
    sides = {
        "cached factor": lambda: memit_update(W, K, V, factor, given.lam),
        "dense": lambda: dense_lu(W, K, V, C, given.lam),
        "dense cholesky": lambda: dense_cholesky(W, K, V, C, given.lam),
    }
    seconds = timed(sides, repeats=given.repeats, device=given.device)
    ours, theirs = sides["cached factor"]().dense(), sides["dense"]()
    return {
        "d_in": size,
        "d_out": ROWS,
        "facts": given.facts,
        "factor_seconds": spent,
        "seconds": seconds,
        "speedup": {
            name: ratio(seconds[name], seconds["cached factor"])
            for name in ("dense", "dense cholesky")
        },
        "difference": float((ours - theirs).norm() / theirs.norm()),
    }


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure the sizes, from the smallest on, and keep each row as it comes."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="d_in")
    parser.add_argument("--facts", type=int, default=256, help="in a batch, n")
    parser.add_argument("--lam", type=float, default=15_000.0)
    given = read(parser, argv)
    rows: list[dict[str, Any]] = []
    path = given.folder
    for size in given.sizes:
        rows.append(row(size, given))
        path = keep("solve", rows, given)
        told = rows[-1]["speedup"]["dense"]["of_medians"]
        print(f"d_in {size}: {told:.1f} times as fast as a dense system per batch")
    return path


if __name__ == "__main__":
    main()
