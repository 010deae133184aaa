r"""MEND's editor networks: from the gradient of a weight to the change that is wanted.

The gradient of a linear map's weight is a sum of outer products, one per token:
what the map read (u) and how the loss changes with what it wrote (d). An editor
transforms these two vectors, never the matrix.

Axes: tokens · d_in, d_out sizes of the edited map · size of what a network transforms ·
rank.
"""

# ruff: noqa: N806 (the paper's symbols)

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Editor", "LowRankStack", "RunningNorm"]

Mode = int | Int[Tensor, " tokens"]


class RunningNorm(nn.Module):
    """Zero mean and unit deviation per coordinate, as measured over all seen tokens.

    Args:
        size: number of coordinates.

    Source: Mitchell et al. 2022 (MEND), section 3.2; unbiased deviation, as released.
    Book: sec-mend-editor

    >>> norm = RunningNorm(1)
    >>> norm.observe(torch.tensor([[1.0], [3.0]]))
    >>> norm(torch.tensor([[2.0]]))
    tensor([[0.]])
    """

    count: Float[Tensor, ""]
    mean: Float[Tensor, " size"]
    squares: Float[Tensor, " size"]

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("squares", torch.zeros(size))  # Σ (x - mean)²

    @torch.no_grad()
    def observe(self, x: Float[Tensor, "tokens size"]) -> None:
        """Let mean and deviation take these vectors into account, too."""
        if not len(x):
            return
        n, total = len(x), self.count + len(x)
        shift = x.mean(0) - self.mean
        spread = ((x - x.mean(0)) ** 2).sum(0)
        self.squares += spread + shift**2 * self.count * n / total
        self.mean += shift * n / total
        self.count.fill_(total)

    @property
    def deviation(self) -> Float[Tensor, " size"]:
        """Standard deviation per coordinate; one before two tokens have been seen."""
        if self.count < 2:
            return torch.ones_like(self.mean)
        return (self.squares / (self.count - 1)).sqrt()

    def forward(self, x: Float[Tensor, "tokens size"]) -> Float[Tensor, "tokens size"]:
        """The normalised vectors."""
        return (x - self.mean) / (self.deviation + 1e-7)


class LowRankStack(nn.Module):
    r"""Residual blocks of low rank; each edited weight scales and shifts them its way.

    .. math:: h \leftarrow h + \sigma\,(s \odot (U V h + b) + o)

    U starts at zero, so that the stack starts as the identity. σ cuts off below zero
    and lets gradients through at zero, where all coordinates begin.

    Args:
        size: of the vectors.
        rank: of U V.
        modes: how many weights share the stack, each with its own s and o.
        blocks: how many blocks follow one another.
        generator: draws V.

    Source: Mitchell et al. 2022 (MEND), eq. 4; the bias b in every block, as released.
    Book: sec-mend-editor
    """

    def __init__(
        self,
        size: int,
        rank: int,
        *,
        modes: int,
        blocks: int,
        generator: torch.Generator,
    ):
        super().__init__()
        self.U = _parameters(blocks, lambda: torch.zeros(size, rank))
        self.V = _parameters(
            blocks, lambda: torch.randn(rank, size, generator=generator) / size**0.5
        )
        self.bias = _parameters(blocks, lambda: torch.zeros(size))
        self.scale = _parameters(blocks, lambda: torch.ones(modes, size))
        self.shift = _parameters(blocks, lambda: torch.zeros(modes, size))

    def forward(
        self, x: Float[Tensor, "tokens size"], mode: Mode
    ) -> Float[Tensor, "tokens size"]:
        """Transform vectors of the weight with this number, or each with its own."""
        h = x
        for U, V, b, s, o in zip(
            self.U, self.V, self.bias, self.scale, self.shift, strict=True
        ):
            mixed = (h @ V.T) @ U.T + b  # (tokens, size)
            s, o = _of(s, mode), _of(o, mode)
            h = h + (s * mixed + o).clamp(min=0)  # (tokens, size)
        return h


class Editor(nn.Module):
    r"""Transforms (u, d) of every weight of one shape into (ũ, d̃).

    Args:
        d_in: length of u.
        d_out: length of d.
        rank: of the networks.
        modes: how many weights share this editor.
        blocks: residual blocks per network.
        combine: one network for u and d together, rather than one for each.
        normalize: bring both to zero mean and unit deviation first.
        generator: draws the starting weights.

    Source: Mitchell et al. 2022 (MEND), section 3.2.
    Book: sec-mend-editor
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        rank: int,
        modes: int,
        blocks: int = 2,
        combine: bool = True,
        normalize: bool = True,
        generator: torch.Generator,
    ):
        super().__init__()
        self.sizes, self.normalize = (d_in, d_out), normalize
        self.norms = nn.ModuleList(RunningNorm(size) for size in self.sizes)
        parts = [d_in + d_out] if combine else [d_in, d_out]
        self.stacks = nn.ModuleList(
            LowRankStack(size, rank, modes=modes, blocks=blocks, generator=generator)
            for size in parts
        )

    def observe(
        self, u: Float[Tensor, "tokens d_in"], d: Float[Tensor, "tokens d_out"]
    ) -> None:
        """Let the running mean and deviation take these tokens into account."""
        for norm, x in zip(self.norms, (u, d), strict=True):
            assert isinstance(norm, RunningNorm)
            norm.observe(x)

    def forward(
        self,
        u: Float[Tensor, "tokens d_in"],
        d: Float[Tensor, "tokens d_out"],
        mode: Mode,
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """ũ and d̃ of the weight with this number, or of each token's own."""
        pair = [u, d]
        if self.normalize:
            pair = [norm(x) for norm, x in zip(self.norms, pair, strict=True)]
        if len(self.stacks) == 1:
            both = self.stacks[0](torch.cat(pair, -1), mode)  # (tokens, d_in + d_out)
            new_u, new_d = both.split(self.sizes, -1)
            return new_u, new_d
        return self.stacks[0](pair[0], mode), self.stacks[1](pair[1], mode)


def _parameters(count: int, make) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(make()) for _ in range(count))


def _of(rows: Float[Tensor, "modes size"], mode: Mode) -> Float[Tensor, "... size"]:
    return rows[mode] if isinstance(mode, int) else rows.index_select(0, mode)
