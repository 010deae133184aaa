"""How well a system was solved: its condition, and what is left of its sides."""

# ruff: noqa: N806 (matrices are capitals)

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["inverse_norm", "mixed", "relative_residual"]

PROBES = 4  # combinations of columns by which a residual is estimated


def inverse_norm(
    solve: Callable[[Float[Tensor, "d 1"]], Float[Tensor, "d 1"]],
    ones: Float[Tensor, "d 1"],
) -> float:
    """Estimate the 1-norm of a symmetric matrix's inverse from a few solutions.

    Never too large, and rarely less than a third of it.

    Args:
        solve: the inverse times a column.
        ones: a column of ones, of the size and on the device that `solve` takes.

    Source: Hager 1984 and Higham 1988, as LAPACK's `xLACON`.
    Book: sec-rome-update

    >>> A = torch.diag(torch.tensor([4.0, 0.5]))
    >>> inverse_norm(lambda x: torch.linalg.solve(A, x), torch.ones(2, 1))
    2.0
    """
    d = len(ones)
    x, best = ones / d, 0.0
    for _ in range(5):
        y = solve(x)  # (d, 1)
        size = float(y.abs().sum())
        if size <= best:
            break
        best = size
        z = solve(torch.where(y < 0, -ones, ones)).abs()  # (d, 1)
        x = torch.zeros_like(ones).index_fill_(0, z.argmax(), 1.0)
    steps = torch.arange(d, device=ones.device)[:, None]
    hard = ones * (1 + steps / max(d - 1, 1)) * (1 - 2 * (steps % 2))  # (d, 1)
    return max(best, 2 * float(solve(hard).abs().sum()) / (3 * d) if d > 1 else best)


def mixed(*sides: Float[Tensor, "rows n"]) -> list[Float[Tensor, "rows m"]]:
    """The same few random combinations of the columns of each; few columns as they are.

    Book: sec-rome-update
    """
    n = sides[0].shape[1]
    if n <= PROBES:
        return list(sides)
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(n, PROBES, generator=g, dtype=torch.float64)
    return [side @ mix.to(side.device) for side in sides]


def relative_residual(
    times: Callable[[Float[Tensor, "d m"]], Float[Tensor, "d m"]],
    solution: Float[Tensor, "d n"],
    columns: Float[Tensor, "d n"],
) -> float:
    """|A X - B| / |B| in float64, Frobenius norms; of many columns estimated from four.

    The four are random combinations of the columns (the same in every run), so that
    the residual costs next to nothing compared with the solution.

    Args:
        times: A times some columns.
        solution: X.
        columns: B.

    Book: sec-rome-update
    """
    X, B = mixed(solution, columns)
    size = float(B.norm())
    return float((times(X) - B).norm()) / size if size > 0 else float(X.norm())
