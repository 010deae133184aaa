"""Which texts are alike, in the eyes of the model itself.

Axes: n texts · others texts to compare with · batch · tokens · d_model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, n_layers
from edutools.checks import number, several
from edutools.hooks import capture, evaluating
from edutools.prompts import encode
from edutools.scoring import run

__all__ = ["embed", "similarity"]


def embed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layer: int | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "n d_model"]:
    """The mean state of each text after a block.

    Args:
        model: is not changed.
        tokenizer: the model's.
        texts: to be compared.
        layer: at which block; the middle one by default.
        batch_size: texts per pass; changes memory and speed only.

    Returns:
        One row per text, in float64.

    Raises:
        ValueError: if the block does not exist or a text is too long.

    Book: sec-context-methods
    """
    at = n_layers(model) // 2 if layer is None else check_layer(model, layer)
    name = architecture_of(model).block(at)
    number("batch_size", batch_size, int, least=1)
    texts = several("texts", texts, str)
    if not texts:
        raise ValueError("Got no texts; embed needs at least one.")
    batch = encode(tokenizer, texts)
    order = batch.lengths.argsort(stable=True)
    means = []
    with (
        evaluating(model),
        torch.no_grad(),
        capture(model, name, stop=True) as seen,
    ):
        for part in order.split(batch_size):
            width = int(batch.lengths[part].max())
            mask = batch.mask[part, :width]
            run(seen, model, batch.ids[part, :width], mask)
            counts = mask[..., None].to(seen[name].device)  # (batch, tokens, 1)
            h = seen[name].double()  # (batch, tokens, d_model)
            means.append((h * counts).sum(1) / counts.sum(1))
    return torch.cat(means)[order.argsort().to(means[0].device)]


def similarity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    others: Sequence[str],
    *,
    layer: int | None = None,
) -> Float[Tensor, "n others"]:
    r"""How alike texts are: the cosine of their mean states.

    .. math:: s_{ij} = \cos(\bar h_i - \mu,\; \bar h_j - \mu)

    μ is the mean over the other texts. Without it all texts look alike, because the
    states of a language model share a large common part.

    Args:
        model: is not changed.
        tokenizer: the model's.
        texts: to be compared with each of the others.
        others: at least two.
        layer: after which block; the middle one by default.

    Returns:
        Cosines, in float64 on the CPU.

    Raises:
        ValueError: if there are no texts or fewer than two others, the block does not
            exist, or a text is too long.

    Book: sec-context-methods
    """
    if not texts or len(others) < 2:
        raise ValueError(
            f"similarity needs a text and two others; got {len(texts)} and "
            f"{len(others)}. Give more."
        )
    h = embed(model, tokenizer, [*texts, *others], layer=layer).cpu()
    h = functional.normalize(h - h[len(texts) :].mean(0), dim=1)  # (n + others, d)
    return h[: len(texts)] @ h[len(texts) :].T
