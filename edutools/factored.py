"""Matrices kept as factors: a change of low rank, a second moment by its root."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Cholesky", "LowRank", "cholesky", "double", "weak_columns"]


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """A matrix kept as a product: left @ right.

    Args:
        left: one column per rank.
        right: one row per rank.

    Book: sec-rome-update

    >>> LowRank(torch.ones(2, 1), torch.ones(1, 3)).dense()
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]

    def __post_init__(self):
        if self.left.ndim != 2 or self.left.shape[1:] != self.right.shape[:1]:
            raise ValueError(
                "LowRank needs factors of shapes (d_out, rank) and (rank, d_in); got "
                f"{tuple(self.left.shape)} and {tuple(self.right.shape)}."
            )

    @classmethod
    def of(cls, matrix: Float[Tensor, "d_out d_in"]) -> "LowRank":
        """The same matrix, times an identity on its smaller side. Exact."""
        options = {"dtype": matrix.dtype, "device": matrix.device}
        rows, columns = matrix.shape
        if rows <= columns:
            return cls(torch.eye(rows, **options), matrix)
        return cls(matrix, torch.eye(columns, **options))

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The matrix itself."""
        return self.left @ self.right

    @property
    def rank(self) -> int:
        """Number of factors; the matrix has at most this rank."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[1]

    def norm(self) -> float:
        """Frobenius norm, from the two rank x rank Gram matrices."""
        left, right = self.left.double(), self.right.double()
        square = ((left.T @ left) * (right @ right.T)).sum()  # tr(LᵀL RRᵀ)
        return float(square.clamp(min=0).sqrt())

    def to(self, target: torch.dtype | torch.device | str) -> "LowRank":
        """The same in another dtype or on another device."""
        return LowRank(self.left.to(target), self.right.to(target))

    def equal(self, other: "LowRank") -> bool:
        """Whether both have the same factors, bit for bit."""
        return torch.equal(self.left, other.left) and torch.equal(
            self.right, other.right
        )

    def __add__(self, other: "LowRank") -> "LowRank":
        """The sum; the ranks add up."""
        if self.shape != other.shape:
            raise ValueError(
                f"Changes of shapes {self.shape} and {other.shape} cannot be added."
            )
        return LowRank(
            torch.cat([self.left, other.left.to(self.left)], dim=1),
            torch.cat([self.right, other.right.to(self.right)], dim=0),
        )

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"LowRank({rows} x {columns}, rank {self.rank}, {self.left.dtype})"


@dataclass(frozen=True, eq=False)
class Cholesky:
    """A positive definite matrix by its triangular factor: lower @ lowerᵀ.

    The closed forms accept one in place of C, so that C is factorised once and used
    for many facts.

    Book: sec-rome-update
    """

    lower: Float[Tensor, "d d"]

    def solve(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """The matrix's inverse times the columns."""
        return torch.cholesky_solve(columns, self.lower)

    def matrix(self) -> Float[Tensor, "d d"]:
        """The matrix itself."""
        return self.lower @ self.lower.T


def cholesky(matrix: Float[Tensor, "d d"], name: str = "C") -> Cholesky:
    """Factorise a second moment in float64.

    Args:
        matrix: symmetric and positive definite.
        name: what to call it in the message.

    Raises:
        ValueError: if it is not positive definite to working precision: it was
            measured on too few (different) tokens to have an inverse.

    Book: sec-rome-update

    >>> cholesky(torch.tensor([[4.0]])).lower
    tensor([[2.]], dtype=torch.float64)
    """
    matrix = double(matrix, name)
    lower, info = torch.linalg.cholesky_ex(matrix)
    weak = weak_columns(lower, matrix, len(matrix) * torch.finfo(matrix.dtype).eps)
    if int(info) or bool(weak.any()):
        column = int(info) - 1 if int(info) else int(weak.nonzero()[0])
        raise ValueError(
            f"{name} is not positive definite: direction {column} of {len(matrix)} "
            "is a combination of those before it, so it was measured on too few "
            f"different tokens. Use at least {len(matrix)}, better ten times as many."
        )
    return Cholesky(lower)


def weak_columns(
    lower: Float[Tensor, "d d"], matrix: Float[Tensor, "d d"], tolerance: float
) -> Bool[Tensor, " d"]:
    """Which columns of lower @ lowerᵀ combine those before them, up to rounding.

    The squared diagonal of `lower`, over that of the matrix, is the share of a column
    that the earlier ones do not explain. The scale of the columns drops out.

    Book: sec-emmet-closed-form
    """
    return ~(lower.diagonal() ** 2 > tolerance * matrix.diagonal())


def double(tensor: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
    """Return the tensor in float64.

    Raises:
        ValueError: if it holds a NaN or an infinity.

    Book: sec-rome-update
    """
    tensor = tensor.double()
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds a NaN or an infinity. Look where it was made.")
    return tensor
