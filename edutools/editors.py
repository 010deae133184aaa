"""MEND's editors for all weights of a model that it edits, and their learned rates.

Axes: n rows, one per text · tokens · d_in, d_out sizes of an edited map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, cat, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.editornet import Editor
from edutools.factors import Factors
from edutools.solve import LowRank

__all__ = ["OPTIONS", "Editors", "mlp_maps"]

Shape = tuple[int, int]
OPTIONS = ("rank", "blocks", "alpha", "combine", "shared", "normalize", "tokens")
TOKENS = ("all", "subject")


def mlp_maps(model: PreTrainedModel, layer: int) -> list[str]:
    """Names of all linear maps in the MLP of a layer, in the model's order.

    Raises:
        ValueError: if there is no such layer.

    Book: sec-mend-training
    """
    place = architecture_of(model).mlp(check_layer(model, layer))
    inside = submodule(model, place).named_modules()
    maps = [name for name, part in inside if isinstance(part, (nn.Linear, Conv1D))]
    return [f"{place}.{name}" for name in maps]


class Editors(nn.Module):
    r"""Which change of the weights follows from the gradient of an edit.

    .. math:: \tilde W = W - \alpha_W \sum_t \tilde d_t\, \tilde u_t^\top

    Weights of equal shape share a network. Untrained, the networks are the identity:
    if they do not normalise either, the change is a step of gradient descent with the
    rates α.

    Args:
        shapes: (d_out, d_in) of each weight, by the name of its map.
        rank: of the networks.
        blocks: residual blocks per network.
        alpha: the rate α that each weight begins with.
        combine: one network for u and d together, rather than one for each.
        shared: one editor per shape, rather than one per weight.
        normalize: bring u and d to zero mean and unit deviation first.
        tokens: which ones count: 'all', or the last one of the 'subject' only.
        seed: of the starting weights.

    Raises:
        ValueError: if there is no weight, or a number is not positive.

    Source: Mitchell et al. 2022 (MEND), section 3. The released code adds α times the
        change and starts with a positive α, a step uphill; here it is subtracted.
    Book: sec-mend-editor
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        *,
        rank: int,
        blocks: int = 2,
        alpha: float = 1e-4,
        combine: bool = True,
        shared: bool = True,
        normalize: bool = True,
        tokens: str = "all",
        seed: int = 0,
    ):
        super().__init__()
        if tokens not in TOKENS:
            raise ValueError(f"tokens is {tokens!r}; choose 'all' or 'subject'.")
        self.tokens = tokens
        if not shapes or rank < 1 or blocks < 1:
            raise ValueError(
                "Editors need at least one weight, rank >= 1 and blocks >= 1; got "
                f"{len(shapes)} weights, rank={rank}, blocks={blocks}."
            )
        self.shapes = dict(shapes)
        self.groups: list[list[str]] = [[name] for name in shapes]
        if shared:
            of_shape = {shape: [] for shape in shapes.values()}
            for name, shape in shapes.items():
                of_shape[shape].append(name)
            self.groups = list(of_shape.values())
        generator = torch.Generator().manual_seed(seed)
        self.editors = nn.ModuleList(
            Editor(
                d_in=self.shapes[group[0]][1],
                d_out=self.shapes[group[0]][0],
                rank=rank,
                modes=len(group),
                blocks=blocks,
                combine=combine,
                normalize=normalize,
                generator=generator,
            )
            for group in self.groups
        )
        self.alpha = nn.Parameter(torch.full((len(self.shapes),), alpha))

    @classmethod
    def of(cls, model: PreTrainedModel, layers: tuple[int, ...], **options: Any):
        """Editors for all linear maps in the MLPs of these layers of a model.

        Raises:
            ValueError: if a layer does not exist, or as the constructor does.
        """
        names = [name for layer in layers for name in mlp_maps(model, layer)]
        weights = {name: oriented(submodule(model, name)) for name in names}
        shapes = {n: (w.shape[0], w.shape[1]) for n, w in weights.items()}
        return cls(shapes, **options)

    def beside(self, model: PreTrainedModel) -> "Editors":
        """These editors, moved to the device of the first weight that they edit.

        Gradients of weights on other devices come to them, and the changes go back.
        """
        return self.to(oriented(submodule(model, self.names[0])).device)

    @property
    def names(self) -> list[str]:
        """The edited maps, in the order of `alpha`."""
        return list(self.shapes)

    def rate(self, name: str) -> Float[Tensor, ""]:
        """The learned rate α of a weight."""
        return self.alpha[self.names.index(name)]

    def observe(self, factors: Mapping[str, Factors]) -> None:
        """Let the running means and deviations take these gradients into account."""
        for editor, names in zip(self.editors, self.groups, strict=True):
            assert isinstance(editor, Editor)
            found = [factors[name] for name in names if name in factors]
            if found:
                editor.observe(*self._tokens(found))

    def transform(self, factors: Mapping[str, Factors]) -> dict[str, Factors]:
        """ũ and d̃ of each weight; zero at tokens that do not contribute.

        Weights that share an editor go through it together.
        """
        changed: dict[str, Factors] = {}
        for editor, names in zip(self.editors, self.groups, strict=True):
            of = {mode: name for mode, name in enumerate(names) if name in factors}
            if not of:
                continue
            found = [factors[name].to(self.alpha.device) for name in of.values()]
            counts = torch.tensor([int(one.keep.sum()) for one in found])
            modes = torch.tensor(list(of)).repeat_interleave(counts)  # (tokens,)
            new = editor(*self._tokens(found), modes.to(self.alpha.device))
            parts = (part.split(counts.tolist()) for part in new)
            for name, one, u, d in zip(of.values(), found, *parts, strict=True):
                changed[name] = one.holding(u, d)
        unknown = sorted(set(factors) - set(changed))
        if unknown:
            raise LookupError(
                f"No editor for {unknown[0]!r}. Known: {', '.join(self.names)}."
            )
        return {name: changed[name] for name in factors}

    @torch.no_grad()
    def change(self, name: str, factors: Factors) -> LowRank:
        """The change of one weight, summed over rows and tokens."""
        new = self.transform({name: factors})[name]
        keep = factors.to(self.alpha.device).keep
        left = -self.rate(name) * new.d[keep].T  # (d_out, kept)
        right = new.u[keep]  # (kept, d_in)
        small = len(right) <= min(left.shape[0], right.shape[1])
        return LowRank(left, right) if small else LowRank.of(left @ right)

    def _tokens(self, found: Sequence[Factors]) -> tuple[Tensor, Tensor]:
        """u and d of all tokens that contribute, one weight after the other."""
        found = [one.to(self.alpha.device) for one in found]
        return cat([x.u[x.keep] for x in found]), cat([x.d[x.keep] for x in found])
