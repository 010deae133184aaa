"""The closed forms: which change of a weight maps keys to values. Knows no model.

A key is a column, a weight W is (d_out, d_in), and C is the second moment E[k kᵀ] of
old keys. Systems are solved by Cholesky factors, never by inverses, and in float64;
only the factor of C may be in float32 and refined, see `precision`. ROME, EMMET and
MEMIT are one family: with the residual R = V - W K,

    Δ = R (KᵀC⁻¹K + λI)⁻¹ KᵀC⁻¹

is MEMIT for λ > 0, EMMET for λ = 0, and ROME for λ = 0 and one key. `corners` has its
neighbours: old keys in a null space, earlier edits, a norm.

With the factor of C at hand, n facts need O(n d_in²) operations and, beside W, C and
its factor, memory for 4 n (d_in + d_out) + 4 n² + 12 d_in BLOCK numbers (`linear`).
From n = d_in on the d_in x d_in form takes over: 4 d_in² in place of 4 n².
"""

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.factored import LowRank, Solved, halves, inputs
from edutools.linear import Cholesky, cholesky, weak_columns
from edutools.precision import double

__all__ = [
    "Cholesky",
    "CollidingKeys",
    "LowRank",
    "cholesky",
    "emmet_update",
    "inputs",
    "memit_update",
    "rome_update",
    "rome_updates",
]


class CollidingKeys(ValueError):  # noqa: N818
    """Two keys so alike that they cannot be given different values.

    Args:
        message: what was given, wanted, and to be done.
        pair: the two columns of K.
        cosine: the cosine of the angle between them.

    Book: sec-emmet-closed-form
    """

    def __init__(self, message: str, pair: tuple[int, int], cosine: float):
        super().__init__(message)
        self.pair = pair
        self.cosine = cosine


def rome_update(
    W: Float[Tensor, "d_out d_in"],
    k: Float[Tensor, " d_in"],
    v: Float[Tensor, " d_out"],
    C: Float[Tensor, "d_in d_in"] | Cholesky,
) -> LowRank:
    r"""The change of W that maps k to v exactly and disturbs old keys least.

    .. math:: \Delta = \frac{(v - W k)\,(C^{-1} k)^\top}{k^\top C^{-1} k}

    Minimises tr(Δ C Δᵀ), the mean squared disturbance of old keys, subject to
    (W + Δ) k = v.

    Args:
        W: the weight to be changed, as (output, input).
        k: the key, in units of the layer's input.
        v: the wanted output.
        C: second moment of old keys, or its factor from `cholesky`.

    Returns:
        Δ, of rank one. Its scale does not depend on the scale of C.

    Raises:
        ValueError: if C is not positive definite, the key is zero, or shapes disagree.

    Source: Meng et al. 2022 (ROME), eq. 2. The released code takes two different keys
        above and below the bar; here it is one.
    Book: sec-rome-update

    >>> delta = rome_update(torch.zeros(1, 2), torch.tensor([2.0, 0.0]),
    ...     torch.tensor([6.0]), torch.eye(2))
    >>> delta.dense()
    tensor([[3., 0.]], dtype=torch.float64)
    """
    (delta,) = rome_updates(W, k[:, None], v[:, None], C)
    return delta


def rome_updates(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    C: Float[Tensor, "d_in d_in"] | Cholesky,
) -> list[LowRank]:
    """For each column the change that writes it alone, as `rome_update` does.

    Args:
        W: the weight to be changed, as (output, input).
        K: the keys, one column each.
        V: the wanted outputs.
        C: second moment of old keys, or its factor from `cholesky`.

    Raises:
        ValueError: as `rome_update` does.

    Book: sec-rome-update
    """
    W, K, V = inputs(W, K, V)
    C = _factor(C, K)
    U = C.solve(K)  # C⁻¹k  (d_in, n)
    Lambda = (V - W @ K) / (U * K).sum(0)  # residual / kᵀC⁻¹k  (d_out, n)
    told = Solved.of("C", C, U, K)
    columns = zip(Lambda.T, U.T, strict=True)
    return [LowRank(a[:, None], u[None, :], told) for a, u in columns]


def memit_update(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    C: Float[Tensor, "d_in d_in"] | Cholesky,
    lam: float,
) -> LowRank:
    r"""The change of W that best maps the columns of K to those of V, gently.

    .. math:: \Delta = R K^\top (\lambda C + K K^\top)^{-1}, \qquad R = V - W K

    Minimises |(W + Δ)K - V|² + λ tr(Δ C Δᵀ). The fit is approximate: a larger λ
    protects old keys more and writes less. For λ → 0 it tends to `emmet_update`. With
    fewer facts than dimensions the equal form with an n x n system is solved,
    R (KᵀC⁻¹K + λI)⁻¹ KᵀC⁻¹, which is `emmet_update` with ridge λ.

    One fact is `rome_update` times q / (λ + q), with q = kᵀC⁻¹k. Facts with the same
    key share it: as λ → 0 each gets the mean of their values. C multiplied by c is λ
    multiplied by c.

    Args:
        W: the weight to be changed, as (output, input).
        K: new keys, one column per fact, in units of the layer's input.
        V: wanted outputs, one column per fact.
        C: second moment of old keys per token, without λ; or its factor.
        lam: how many old tokens weigh as much as one new fact; > 0, no unit.

    Returns:
        Δ, factored, of rank at most n and d_in. Satisfies Δ (λC + KKᵀ) = R Kᵀ.

    Raises:
        ValueError: if lam is not positive, C is not positive definite, or shapes
            disagree.

    Source: Meng et al. 2023 (MEMIT), eqs. 14 and 15, with C₀ = λ C.
    Book: sec-memit-closed-form

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> memit_update(0 * I, K=I[:, :1], V=3 * I[:, :1], C=I, lam=1.0).dense()
    tensor([[1.5000, 0.0000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    if not lam > 0:
        raise ValueError(f"lam must be > 0; got {lam}. For an exact fit: emmet_update.")
    W, K, V = inputs(W, K, V)
    R = V - W @ K  # residual  (d_out, n)
    if K.shape[1] < K.shape[0]:
        return _dual(R, K, _factor(C, K), lam)
    return _primal(R, K, C, lam)


def _primal(
    R: Float[Tensor, "d_out n"],
    K: Float[Tensor, "d_in n"],
    C: Float[Tensor, "d_in d_in"] | Cholesky,
    lam: float,
) -> LowRank:
    """R Kᵀ (λC + KKᵀ)⁻¹ by a d_in x d_in system, which many facts need."""
    given = isinstance(C, Cholesky)
    matrix = (C.matrix() if given else double(C, "C")).to(K.device)
    matrix = lam * matrix + K @ K.T  # (d_in, d_in)
    precision = C.precision if given else "auto"
    A = cholesky(matrix, "lam * C + K Kᵀ", precision=precision)
    B = K @ R.T  # (d_in, d_out)
    X = A.solve(B)  # Δᵀ  (d_in, d_out)
    return LowRank.of(X.T, Solved.of("facts", A, X, B))


def emmet_update(
    W: Float[Tensor, "d_out d_in"],
    K: Float[Tensor, "d_in n"],
    V: Float[Tensor, "d_out n"],
    C: Float[Tensor, "d_in d_in"] | Cholesky,
    ridge: float = 0.0,
) -> LowRank:
    r"""The change of W that maps every column of K to that of V, disturbing least.

    .. math:: \Delta = R D^{-1} K^\top C^{-1}, \qquad D = K^\top C^{-1} K + \alpha I

    Without the ridge α it minimises tr(Δ C Δᵀ) subject to (W + Δ) K = V. With a ridge
    the fit is no longer exact: it is `memit_update` with λ = α, whatever the name; with
    w·C in place of C it is that with λ = α·w. The exact fit disturbs old keys by
    tr(R D⁻¹ Rᵀ) and exists only if the keys are linearly independent.

    Args:
        W: the weight to be changed, as (output, input).
        K: new keys, one column per fact, linearly independent.
        V: wanted outputs, one column per fact.
        C: second moment of old keys per token, or its factor.
        ridge: α ≥ 0, no unit.

    Returns:
        Δ, factored, of rank at most n. One fact and no ridge: `rome_update`.

    Raises:
        CollidingKeys: if D is singular to working precision; names the two keys.
        ValueError: if there are more facts than dimensions and no ridge, C is not
            positive definite, the ridge is negative, or shapes disagree.

    Source: Gupta et al. 2024 (EMMET), closed form under the equality constraint.
    Book: sec-emmet-closed-form

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> emmet_update(0 * I, K=I[:, :1], V=3 * I[:, :1], C=I).dense()
    tensor([[3., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    if not ridge >= 0:
        raise ValueError(f"ridge must be >= 0; got {ridge}.")
    W, K, V = inputs(W, K, V)
    d_in, n = K.shape
    if n > d_in and ridge == 0:
        raise ValueError(
            f"{n} facts cannot all be written exactly where keys have size {d_in}. "
            "Write fewer, or use memit_update."
        )
    if n >= d_in and ridge > 0:
        return _primal(V - W @ K, K, C, ridge)
    return _dual(V - W @ K, K, _factor(C, K), ridge)


def _dual(
    R: Float[Tensor, "d_out n"],
    K: Float[Tensor, "d_in n"],
    C: Cholesky,
    ridge: float,
) -> LowRank:
    """R D⁻¹ KᵀC⁻¹ with D = KᵀC⁻¹K + ridge I = LLᵀ, always in float64."""
    U = C.solve(K)  # C⁻¹K  (d_in, n)
    D = K.T @ U  # KᵀC⁻¹K  (n, n)
    D = (D + D.T) / 2 + ridge * torch.eye(len(D), dtype=D.dtype, device=D.device)
    L, info = torch.linalg.cholesky_ex(D)  # (n, n)
    if int(info) or bool(weak_columns(L, D, 1e-11).any()):
        raise _collision(K, D)
    return halves(R, D, L, U, before=Solved.of("C", C, U, K))  # R L⁻ᵀ, L⁻¹KᵀC⁻¹


def _collision(K: Float[Tensor, "d_in n"], D: Float[Tensor, "n n"]) -> CollidingKeys:
    """The message for a singular D: the two keys most alike in the metric of C⁻¹."""
    scale = D.diagonal().clamp(min=torch.finfo(D.dtype).tiny).rsqrt()
    alike = (scale[:, None] * D * scale[None, :]).abs().fill_diagonal_(-1)
    first, second = sorted(divmod(int(alike.argmax()), len(D)))
    pair = K[:, [first, second]]
    cosine = float(torch.nn.functional.cosine_similarity(pair[:, 0], pair[:, 1], dim=0))
    return CollidingKeys(
        f"Keys {first} and {second} (cosine {cosine:.4f}) cannot both be given their "
        "own value: the keys are linearly dependent to working precision. Drop one, or "
        "use memit_update with a larger lam.",
        (first, second),
        cosine,
    )


def _factor(C: Float[Tensor, "d d"] | Cholesky, K: Float[Tensor, "d n"]) -> Cholesky:
    """The factor of C: the one that is given, or one made where the keys are."""
    return C if isinstance(C, Cholesky) else cholesky(C, device=K.device)
