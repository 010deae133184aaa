"""Matrices kept as factors: changes of low rank, and what they are solved with."""

# ruff: noqa: N803, N806 (the papers' symbols)

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.accuracy import mixed
from edutools.linear import Cholesky, Shifted
from edutools.precision import double

__all__ = [
    "LowRank",
    "Solved",
    "Spectrum",
    "double",
    "halves",
    "inputs",
    "spectrum",
]


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """A matrix kept as a product: left @ right.

    Args:
        left: one column per rank.
        right: one row per rank.
        solved: how well it was computed, if a closed form has computed it.

    Book: sec-rome-update

    >>> LowRank(torch.ones(2, 1), torch.ones(1, 3)).dense()
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "rank d_in"]
    solved: "Solved | None" = None

    def __post_init__(self):
        if self.left.ndim != 2 or self.left.shape[1:] != self.right.shape[:1]:
            raise ValueError(
                "LowRank needs factors of shapes (d_out, rank) and (rank, d_in); got "
                f"{tuple(self.left.shape)} and {tuple(self.right.shape)}."
            )

    @classmethod
    def of(
        cls, matrix: Float[Tensor, "d_out d_in"], solved: "Solved | None" = None
    ) -> "LowRank":
        """The same matrix, times an identity on its smaller side. Exact."""
        options = {"dtype": matrix.dtype, "device": matrix.device}
        rows, columns = matrix.shape
        if rows <= columns:
            return cls(torch.eye(rows, **options), matrix, solved)
        return cls(matrix, torch.eye(columns, **options), solved)

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
        return LowRank(self.left.to(target), self.right.to(target), self.solved)

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


@dataclass(frozen=True, kw_only=True)
class Solved:
    """How well the systems behind a change were solved.

    Attributes:
        precision: of the factor of C: 'float64' or 'refined'.
        condition: condition number of each system in the 1-norm, estimated, by name:
            'C', and 'facts' for the n x n (or d_in x d_in) system of the new facts.
        residual: what is left of each, |A X - B| / |B|, by the same names.

    Book: sec-rome-update
    """

    precision: str
    condition: Mapping[str, float]
    residual: Mapping[str, float]

    @classmethod
    def of(
        cls,
        name: str,
        system: Cholesky,
        X: Float[Tensor, "d n"],
        B: Float[Tensor, "d n"],
    ) -> "Solved":
        """What there is to say of one system with solution X for columns B."""
        condition, residual = system.condition, system.residual(X, B)
        return cls(
            precision=system.precision,
            condition={name: condition},
            residual={name: residual},
        )

    def __or__(self, other: "Solved") -> "Solved":
        """Both systems; the precision is that of the first."""
        return Solved(
            precision=self.precision,
            condition={**self.condition, **other.condition},
            residual={**self.residual, **other.residual},
        )


def halves(
    R: Float[Tensor, "d_out n"],
    M: Float[Tensor, "N N"],
    L: Float[Tensor, "N N"],
    U: Float[Tensor, "d_in N"],
    *,
    before: Solved | None = None,
) -> LowRank:
    """[0, R] M⁻¹ Uᵀ with M = LLᵀ.

    Each factor gets one L⁻¹, so that both stay of moderate size, even if M is nearly
    singular, and survive being stored in float32.

    Args:
        R: residuals of the last n columns; those before have none.
        M: the system.
        L: its Cholesky factor.
        U: one column per row of M.
        before: what is known of the system that gave U.

    Book: sec-emmet-closed-form
    """
    n = R.shape[1]
    left = torch.linalg.solve_triangular(L[-n:, -n:], R.T, upper=False)  # (n, d_out)
    right = torch.linalg.solve_triangular(L, U.T, upper=False)[-n:]  # (n, d_in)
    Y, B = (_below(side, len(M)) for side in mixed(left, R.T))  # (N, few)
    X = torch.linalg.solve_triangular(L.T, Y, upper=True)  # M X = B  (N, few)
    solved = Solved.of("facts", Cholesky(L, Shifted(M)), X, B)
    return LowRank(left.T, right, before | solved if before else solved)


def _below(rows: Float[Tensor, "n few"], size: int) -> Float[Tensor, "size few"]:
    """The rows under as many rows of zeros as are missing."""
    return torch.cat([rows.new_zeros(size - len(rows), rows.shape[1]), rows])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A second moment by its eigenvalues, in ascending order, and its eigenvectors.

    Accepted in place of C by `null_space_projector`, so that C is decomposed once.

    Book: sec-alphaedit
    """

    values: Float[Tensor, " d"]
    vectors: Float[Tensor, "d d"]


def spectrum(matrix: Float[Tensor, "d d"], name: str = "C") -> Spectrum:
    """Decompose a second moment in float64.

    Args:
        matrix: symmetric.
        name: what to call it in the message.

    Raises:
        ValueError: if it holds a NaN or an infinity.

    Book: sec-alphaedit

    >>> spectrum(torch.diag(torch.tensor([3.0, 1.0]))).values
    tensor([1., 3.], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(double(matrix, name))
    return Spectrum(values, vectors)


def inputs(
    W: Float[Tensor, "..."], K: Float[Tensor, "..."], V: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """W, K and V in float64, after a look at their shapes and values.

    Raises:
        ValueError: if shapes disagree, a key is zero, or a number is not finite.

    Book: sec-rome-update
    """
    d_out, d_in = W.shape
    n = K.shape[1]
    if K.shape[0] != d_in or V.shape != (d_out, n):
        raise ValueError(
            f"A weight of shape {(d_out, d_in)} maps keys {(d_in, 'n')} to values "
            f"{(d_out, 'n')}; got keys {tuple(K.shape)} and values {tuple(V.shape)}."
        )
    K = double(K, "K")
    zero = (K == 0).all(dim=0)
    if bool(zero.any()):
        raise ValueError(
            f"Key {int(zero.nonzero()[0])} is zero, so no weight can map it to a value."
        )
    return double(W, "W"), K, double(V, "V")
