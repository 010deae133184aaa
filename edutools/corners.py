"""Closed forms beside `solve`: old keys in a null space, earlier edits, a norm.

MEMIT weighs old keys by their second moment C. AlphaEdit does not touch them at all: it
writes in those directions only in which they have (nearly) no share. ENCORE weighs old
keys, the keys of earlier edits and the size of the change. As in `solve`, a key is a
column, a weight W is (d_out, d_in), and all arithmetic is in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.factored import (
    LowRank,
    Solved,
    Spectrum,
    double,
    halves,
    inputs,
    spectrum,
)
from edutools.linear import Cholesky, cholesky
from edutools.solve import memit_update

__all__ = [
    "SCALES",
    "Projector",
    "Spectrum",
    "alphaedit_update",
    "encore_update",
    "null_space_projector",
    "spectrum",
]

SCALES = ("absolute", "mean")


@dataclass(frozen=True, eq=False, repr=False)
class Projector:
    """P = U Uᵀ, by an orthonormal basis U of the directions that it keeps.

    Book: sec-alphaedit

    >>> P = Projector(torch.tensor([[1.0], [0.0]]))
    >>> P.project(torch.tensor([[3.0], [4.0]]))
    tensor([[3.],
            [0.]])
    """

    basis: Float[Tensor, "d rank"]

    @property
    def rank(self) -> int:
        """How many directions are kept, and free to be written."""
        return self.basis.shape[1]

    def project(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """The kept part of each column."""
        return self.basis @ (self.basis.T @ columns)

    def matrix(self) -> Float[Tensor, "d d"]:
        """P itself."""
        return self.basis @ self.basis.T

    def __repr__(self) -> str:
        return f"Projector(rank {self.rank} of {len(self.basis)})"


def null_space_projector(
    C: Float[Tensor, "d d"] | Spectrum,
    threshold: float,
    *,
    scale: str = "absolute",
) -> Projector:
    r"""The projector on the directions in which old keys have nearly no share.

    .. math:: P = \hat U \hat U^\top, \qquad
        \hat U = (u_i)_{\lambda_i < \text{threshold}}, \qquad C u_i = \lambda_i u_i

    An eigenvalue is the mean square of old keys in its direction, so it has the unit of
    a squared key. A threshold in that unit belongs to one model: keys twice as long
    have eigenvalues four times as large.

    Args:
        C: second moment of old keys per token, or its `spectrum`.
        threshold: eigenvalues below it count as zero.
        scale: the unit of the threshold. 'absolute': the squared unit of the keys
            (released code, 2e-2). 'mean': the mean eigenvalue tr(C)/d; the result is
            then the same for all multiples of C.

    Returns:
        P, whose `rank` says how many directions are free.

    Raises:
        ValueError: if no eigenvalue is below the threshold, so that nothing could be
            written, or scale is unknown.

    Source: Fang et al. 2025 (AlphaEdit); 'mean' is ours.
    Book: sec-alphaedit

    >>> null_space_projector(torch.diag(torch.tensor([3.0, 1.0, 0.01])), 0.02)
    Projector(rank 1 of 3)
    """
    if scale not in SCALES:
        raise ValueError(
            f"scale is {scale!r}; choose one of {', '.join(map(repr, SCALES))}."
        )
    found = C if isinstance(C, Spectrum) else spectrum(C)
    unit = float(found.values.mean()) if scale == "mean" else 1.0
    free = int((found.values < threshold * unit).sum())
    if not free:
        low, high = (float(found.values[i]) / unit for i in (0, -1))
        raise ValueError(
            "No direction is left to be written: the eigenvalues of C go from "
            f"{low:.3g} to {high:.3g} (scale={scale!r}) and none is below the "
            f"threshold {threshold:g}. Choose a larger threshold."
        )
    return Projector(found.vectors[:, :free])  # the first; no copy


def alphaedit_update(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    P: Float[Tensor, "d_in d_in"] | Projector,
    l2: float,
    *,
    past: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    r"""The change of W that best maps K to V and acts in the null space of P only.

    .. math:: \Delta = R K^\top P\, (K_p K_p^\top P + K K^\top P + L_2 I)^{-1}
        = [0, R]\, (Z^\top P Z + L_2 I)^{-1} Z^\top P, \qquad Z = [K_p, K]

    Minimises |(W + Δ)K - V|² + |Δ K_p|² + L₂ |Δ|² among all Δ = Δ P. Old keys are
    protected exactly, Δ k = 0 for P k = 0, and new ones are written softly: the mirror
    image of `emmet_update`. In the coordinates of the null space it is `memit_update`
    with λ = 1 and K_p K_pᵀ + L₂ I in place of C.

    Args:
        W: the weight to be changed, as (output, input).
        K: new keys, one column per fact.
        V: wanted outputs, one column per fact.
        P: projector on the directions that may change, of rank at least one.
        l2: weight of the size of Δ; > 0, in squared units of a key.
        past: keys of earlier edits, one column each, that Δ shall leave alone.

    Returns:
        Δ, factored, of rank at most n, d_out and d_in.

    Raises:
        ValueError: if P is zero, l2 is not positive, or shapes disagree.

    Source: Fang et al. 2025 (AlphaEdit); the paper has L₂ = 1, the released code 10.
    Book: sec-alphaedit

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> P = Projector(I[:, :1])
    >>> alphaedit_update(0 * I, K=I + 1, V=3 * I, P=P, l2=1.0).dense()
    tensor([[1.0000, 0.0000],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be > 0; got {l2}.")
    W, K, V = inputs(W, K, V)
    R, Z = V - W @ K, _joined(past, K)  # residual  (d_out, n), [K_p, K]  (d_in, m + n)
    PZ = _project(P, Z)  # (d_in, m + n)
    M = _plus(Z.T @ PZ, l2)  # ZᵀPZ + L₂I  (m + n, m + n)
    delta = _small(R, M, PZ, "ZᵀPZ + l2 I")
    if K.shape[1] < min(W.shape):
        return delta
    return LowRank.of(delta.dense(), delta.solved)


def encore_update(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    C: Float[Tensor, "d_in d_in"] | Cholesky,
    lam: float,
    *,
    norm: float = 0.0,
    past: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    r"""The change of W that best maps K to V, sparing old keys, earlier ones and size.

    .. math::
        \Delta = R K^\top (\lambda_p C + K_p K_p^\top + K K^\top + \lambda_n I)^{-1}

    Minimises |(W + Δ)K - V|² + λ_p tr(Δ C Δᵀ) + |Δ K_p|² + λ_n |Δ|². It is
    `memit_update` with C' = λ_p C + K_p K_pᵀ + λ_n I and λ = 1; without past keys and
    norm it is plain MEMIT; without C it is `alphaedit_update` with P = I and L₂ = λ_n.

    Args:
        W: the weight to be changed, as (output, input).
        K: new keys, one column per fact.
        V: wanted outputs, one column per fact.
        C: second moment of old keys per token, without λ; or its factor. That of
            C + (λ_n / λ_p) I leaves an n x n system (m + n with past keys).
        lam: λ_p, how many old tokens weigh as much as one new fact; ≥ 0.
        norm: λ_n, the weight of the size of Δ; ≥ 0, in squared units of a key.
        past: keys of earlier edits, one column each; each weighs as much as a new one.

    Returns:
        Δ, factored, of rank at most n and d_in.

    Raises:
        ValueError: if lam or norm is negative, C' is not positive definite, or shapes
            disagree.

    Source: Gupta et al. 2025 (ENCORE).
    Book: sec-encore

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> encore_update(0 * I, K=I[:, :1], V=3 * I[:, :1], C=I, lam=1.0, norm=1.0).dense()
    tensor([[1.0000, 0.0000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    if not (lam >= 0 and norm >= 0):
        raise ValueError(f"lam and norm must be >= 0; got lam={lam}, norm={norm}.")
    W, K, V = inputs(W, K, V)
    R, Z = V - W @ K, _joined(past, K)  # residual  (d_out, n), [K_p, K]  (d_in, m + n)
    few = lam > 0 and Z.shape[1] < len(Z)
    if few and isinstance(C, Cholesky) and C.shift == norm / lam:
        U = C.solve(Z)  # (C + λ_n/λ_p I)⁻¹ Z  (d_in, m + n)
        M = _plus(Z.T @ U, lam)  # (m + n, m + n)
        before = Solved.of("C", C, U, Z)
        return _small(R, M, U, "ZᵀC⁻¹Z + lam I", before=before)
    shift = C.shift if isinstance(C, Cholesky) else 0.0
    C = (C.matrix() if isinstance(C, Cholesky) else double(C, "C")).to(K.device)
    A = _plus(lam * C, norm - lam * shift)
    if past is not None:
        Kp = _few(past).to(A)  # (d_in, m)
        A = A + Kp @ Kp.T  # λ_p C + K_p K_pᵀ + λ_n I  (d_in, d_in)
    return memit_update(W, K, V, cholesky(A, "lam * C + Kp Kpᵀ + norm * I"), 1.0)


def _joined(
    past: Float[Tensor, "d_in m"] | None, K: Float[Tensor, "d_in n"]
) -> Float[Tensor, "d_in all"]:
    """[K_p, K]."""
    return K if past is None else torch.cat([_few(past).to(K), K], dim=1)


def _plus(M: Float[Tensor, "N N"], ridge: float) -> Float[Tensor, "N N"]:
    """M + ridge I, symmetric to the last bit."""
    M = (M + M.T) / 2
    M.diagonal().add_(ridge)
    return M


def _small(
    R: Float[Tensor, "d_out n"],
    M: Float[Tensor, "N N"],
    U: Float[Tensor, "d_in N"],
    name: str,
    *,
    before: Solved | None = None,
) -> LowRank:
    """[0, R] M⁻¹ Uᵀ, in float64; [0, R] L⁻ᵀ is zero before its last n columns."""
    L = cholesky(M, name, precision="float64").lower
    return halves(R, M, L, U, before=before)


def _project(
    P: Float[Tensor, "d d"] | Projector, columns: Float[Tensor, "d n"]
) -> Float[Tensor, "d n"]:
    """P times the columns, unless P is zero."""
    matrix = double(P.basis if isinstance(P, Projector) else P, "P").to(columns.device)
    if not bool(matrix.any()):
        raise ValueError(
            "P is zero, so no direction is left to be written. Make it with "
            "null_space_projector and a larger threshold."
        )
    if isinstance(P, Projector):
        return matrix @ (matrix.T @ columns)  # U Uᵀ columns
    return matrix @ columns


def _few(past: Float[Tensor, "d_in m"]) -> Float[Tensor, "d_in few"]:
    """At most d_in columns with the same K_p K_pᵀ, which is all that counts."""
    past = double(past, "past")
    if past.shape[1] <= past.shape[0]:
        return past
    return torch.linalg.qr(past.T, mode="r").R.T  # K_pᵀ = QR  (d_in, d_in)
