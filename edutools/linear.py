"""Symmetric positive definite systems by their Cholesky factors.

A factor stays where it was made and columns travel to it, so a large factor is never
moved twice. Columns are solved in blocks: beside the factor, the columns and the
solution at most 12 d x BLOCK numbers are held.
"""

# ruff: noqa: N803, N806 (matrices are capitals)

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edutools.accuracy import PROBES, inverse_norm, relative_residual
from edutools.precision import chosen_precision, double, home

__all__ = [
    "BLOCK",
    "Cholesky",
    "Shifted",
    "cholesky",
    "weak_columns",
]

BLOCK = 1024  # columns that are solved at a time
ROUNDS = 40  # of refinement, at most


@dataclass(frozen=True, eq=False)
class Shifted:
    """A symmetric matrix as total / count + shift·I, without a copy of the total.

    Book: sec-rome-update
    """

    total: Float[Tensor, "d d"]
    count: float = 1.0
    shift: float = 0.0

    def times(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """The matrix times the columns, which come back to where they were."""
        product = self.total @ columns.to(self.total.device) / self.count
        return product.to(columns.device) + self.shift * columns

    def dense(self) -> Float[Tensor, "d d"]:
        """The matrix itself; the total, if it is that."""
        if self.count == 1 and self.shift == 0:
            return self.total
        matrix = self.total / self.count
        matrix.diagonal().add_(self.shift)
        return matrix

    def to(self, device: torch.device) -> "Shifted":
        """The same on another device."""
        return Shifted(self.total.to(device), self.count, self.shift)

    @cached_property
    def norm(self) -> float:
        """The 1-norm, for a shift that is not negative."""
        sums = torch.linalg.vector_norm(self.total, 1, dim=0)
        return float(sums.max()) / self.count + self.shift


@dataclass(frozen=True, eq=False)
class Cholesky:
    """A positive definite matrix by its triangular factor: lower @ lowerᵀ.

    The closed forms accept one in place of C, so that C is factorised once and used
    for many facts.

    Args:
        lower: the factor. If it is in float32, it is that of the matrix scaled to a
            diagonal of ones, and solutions are refined.
        source: the matrix; without it, it is computed from the factor.

    Book: sec-rome-update
    """

    lower: Float[Tensor, "d d"]
    source: Shifted | None = None

    @property
    def precision(self) -> str:
        """'float64', or 'refined' if the factor is in float32."""
        return "float64" if self.lower.dtype == torch.float64 else "refined"

    def solve(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """The matrix's inverse times the columns, where they are.

        Raises:
            RuntimeError: if a factor in float32 is not good enough to be refined.
        """
        if columns.shape[1] <= BLOCK:
            return self._solve(columns)
        found = torch.empty_like(columns)
        for first in range(0, columns.shape[1], BLOCK):
            part = slice(first, first + BLOCK)
            found[:, part] = self._solve(columns[:, part])
        return found

    @property
    def shift(self) -> float:
        """What was added to the diagonal before the matrix was factorised."""
        return 0.0 if self.source is None else self.source.shift

    def matrix(self) -> Float[Tensor, "d d"]:
        """The matrix itself."""
        return self._source.dense()

    @cached_property
    def condition(self) -> float:
        """|C| |C⁻¹| in the 1-norm, estimated once, see `accuracy.inverse_norm`."""
        found = self._source.norm * inverse_norm(self.solve, self._ones)
        return max(found, 1.0)  # which it is, but for rounding

    def residual(
        self, solution: Float[Tensor, "d n"], columns: Float[Tensor, "d n"]
    ) -> float:
        """|C X - B| / |B| of a solution X for columns B, see `accuracy`."""
        return relative_residual(self._source.times, solution, columns)

    @cached_property
    def _source(self) -> Shifted:
        return self.source or Shifted(self.lower @ self.lower.T)

    @cached_property
    def _scale(self) -> Float[Tensor, "d 1"]:
        source = self._source
        diagonal = source.total.diagonal() / source.count + source.shift
        return diagonal.to(home(self.lower.device)).rsqrt()[:, None]

    @property
    def _ones(self) -> Float[Tensor, "d 1"]:
        place = home(self.lower.device)
        return torch.ones(len(self.lower), 1, dtype=torch.float64, device=place)

    def _solve(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        if self.precision == "refined":
            return self._refined(columns.to(home(self.lower.device))).to(columns)
        return _twice(self.lower, columns.to(self.lower.device)).to(columns.device)

    def _refined(self, B: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """Add corrections in float32 as long as one halves a residual in float64.

        All in the scale S in which the diagonal is one: SCS Y = SB, X = SY.
        """
        S = self._scale
        B = S * B
        Y, R = torch.zeros_like(B), B  # (d, n)
        halved = True
        for _ in range(ROUNDS):
            Z = Y + self._corrected(R)  # (d, n)
            Q = B - S * self._source.times(S * Z)  # (d, n)
            old, new = R.norm(dim=0), Q.norm(dim=0)  # (n,)
            Y, R = torch.where(new < old, Z, Y), torch.where(new < old, Q, R)
            halved = bool((new < old / 2).any())
            if not halved:
                break
        eps = torch.finfo(torch.float64).eps * len(B) ** 0.5
        size = Y.abs().sum(0) + B.abs().amax(0)  # (n,); no entry of SCS exceeds 1
        if halved or bool((R.abs().amax(0) > eps * size).any()):
            raise RuntimeError(
                "A float32 factor cannot be refined to float64: the matrix of size "
                f"{len(B)} is too ill-conditioned. Use precision='float64'."
            )
        return S * Y

    def _corrected(self, R: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """(LLᵀ)⁻¹ R in float32, for columns of any size."""
        size = R.abs().amax(0).clamp(min=torch.finfo(R.dtype).tiny)  # (n,)
        low = (R / size).to(self.lower.dtype).to(self.lower.device)  # (d, n)
        return _twice(self.lower, low).to(R.device).to(R.dtype) * size


def cholesky(
    matrix: Float[Tensor, "d d"] | Shifted,
    name: str = "C",
    *,
    device: torch.device | str | None = None,
    precision: str = "auto",
) -> Cholesky:
    """Factorise a second moment, in float64 or as good as that.

    Args:
        matrix: symmetric and positive definite.
        name: what to call it in the message.
        device: where the factor is made and stays; that of the matrix if not given.
        precision: 'float64'; 'refined' for a factor in float32, by which solutions are
            refined to the residual that float64 has; 'auto' chooses by the device, see
            `chosen_precision`. A matrix too ill-conditioned for float32 (condition
            above about 1e7 when its diagonal is scaled to ones) and a device without
            float64 are served by float64 on the CPU.

    Raises:
        ValueError: if it is not positive definite to working precision: it was
            measured on too few (different) tokens to have an inverse.

    Book: sec-rome-update

    >>> cholesky(torch.tensor([[4.0]])).lower
    tensor([[2.]], dtype=torch.float64)
    """
    given = matrix if isinstance(matrix, Shifted) else Shifted(matrix)
    source = Shifted(double(given.total, name), given.count, given.shift)
    place = torch.device(device if device is not None else given.total.device)
    if chosen_precision(place, precision) == "refined":
        found = _low(source.to(home(place)), place)
        if found is not None:
            return found
        place = torch.device("cpu")
    return Cholesky(_lower(source.to(home(place)).dense(), name), source)


def _twice(L: Float[Tensor, "d d"], B: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """(LLᵀ)⁻¹ B. Unlike `torch.cholesky_solve` it makes no copy of the factor."""
    half = torch.linalg.solve_triangular(L, B, upper=False)
    return torch.linalg.solve_triangular(L.T, half, upper=True)


def _lower(matrix: Float[Tensor, "d d"], name: str) -> Float[Tensor, "d d"]:
    """The factor in float64; that of a diagonal matrix without a factorisation."""
    diagonal = matrix.diagonal()
    if bool((diagonal > 0).all()) and int(matrix.count_nonzero()) == len(matrix):
        return torch.diag(diagonal.sqrt())
    lower, info = torch.linalg.cholesky_ex(matrix)
    weak = weak_columns(lower, matrix, len(matrix) * torch.finfo(matrix.dtype).eps)
    if int(info) or bool(weak.any()):
        column = int(info) - 1 if int(info) else int(weak.nonzero()[0])
        raise ValueError(
            f"{name} is not positive definite: direction {column} of {len(matrix)} "
            "is a combination of those before it, so it was measured on too few "
            f"different tokens. Use at least {len(matrix)}, better ten times as many."
        )
    return lower


def _low(source: Shifted, device: torch.device) -> Cholesky | None:
    """A factor in float32 that can be refined, or None if there is none."""
    matrix = source.dense()
    if not bool((matrix.diagonal() > 0).all()):
        return None
    scale = matrix.diagonal().rsqrt()
    low = (scale[:, None] * matrix * scale[None, :]).to(torch.float32).to(device)
    lower, info = torch.linalg.cholesky_ex(low)
    if int(info):
        return None
    found = Cholesky(lower, source)
    g = torch.Generator().manual_seed(0)
    probe = torch.randn(len(matrix), PROBES, generator=g, dtype=torch.float64)
    try:  # one vector in all directions finds the worst of them
        found.solve(probe.to(matrix.device))
    except RuntimeError:
        return None
    return found


def weak_columns(
    lower: Float[Tensor, "d d"], matrix: Float[Tensor, "d d"], tolerance: float
) -> Bool[Tensor, " d"]:
    """Which columns of lower @ lowerᵀ combine those before them, up to rounding.

    The squared diagonal of `lower`, over that of the matrix, is the share of a column
    that the earlier ones do not explain. The scale of the columns drops out.

    Book: sec-emmet-closed-form
    """
    return ~(lower.diagonal() ** 2 > tolerance * matrix.diagonal())
