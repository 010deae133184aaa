"""How well a model predicts ordinary text, and how much an edit costs it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import of_kind, several
from edutools.metrics import bootstrap
from edutools.prompts import token_ids
from edutools.report import Row
from edutools.rows import following
from edutools.scoring import score_rows

__all__ = ["Perplexity", "drawdown", "perplexity"]


@dataclass(frozen=True, eq=False)
class Perplexity:
    r"""How well texts are predicted; one number per text is kept.

    .. math:: \mathrm{PPL} = \exp \frac{\sum_i \mathrm{nll}_i}{\sum_i t_i}

    Attributes:
        nll: −log P of each text, in nats, summed over its predicted tokens.
        tokens: how many tokens t of each text were predicted; the first one only
            follows something where the tokenizer sets a mark in front of texts.

    Book: sec-evaluation-perplexity
    """

    nll: Float[Tensor, " n"]
    tokens: Int[Tensor, " n"]

    @property
    def value(self) -> float:
        """The perplexity: the number of words among which the model wavers, >= 1."""
        return self.row().mean

    def row(self) -> Row:
        """The perplexity with its 95 % interval, resampling texts."""
        return _row("perplexity", self)

    def __repr__(self) -> str:
        return f"Perplexity({self.value:.4g}, texts={len(self.nll)})"


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
) -> Perplexity:
    """Measure how well a model, edited or not, predicts texts.

    Texts weigh as much as they have tokens and are cut off at the model's context.

    Args:
        model: is not changed.
        tokenizer: the model's.
        texts: ordinary text, not about what is edited.
        batch_size: texts per forward pass; changes memory and speed only.

    Raises:
        TypeError: if `texts` is a single text.
        ValueError: if there is no text.

    Book: sec-evaluation-perplexity
    """
    texts = several("texts", texts, str)
    if not texts:
        raise ValueError("Got no texts; perplexity needs at least one.")
    limit = getattr(model.config, "max_position_embeddings", None)
    rows = [row[:limit] for row in token_ids(tokenizer, texts)]
    long = [i for i, row in enumerate(rows) if len(row) > 1]
    nll, tokens = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
    if long:
        starts, rest = [rows[i][:1] for i in long], [rows[i][1:] for i in long]
        laid_out = following(tokenizer, starts, rest)
        scores = score_rows(model, laid_out, batch_size=batch_size)
        nll[long], tokens[long] = -scores.joint, scores.tokens
    return Perplexity(nll, tokens)


def drawdown(before: Perplexity, after: Perplexity) -> Row:
    """What an edit costs: the perplexity after it minus that before it.

    The interval resamples texts, each with both its numbers, so it is narrow where the
    edit moves all texts alike. Lower is better; 0 is no cost.

    Raises:
        ValueError: if the two were not measured on the same texts.

    Source: Mitchell et al. 2022 (MEND), section 4.
    Book: sec-evaluation-perplexity
    """
    for name, found in {"before": before, "after": after}.items():
        of_kind(name, found, Perplexity, "perplexity measures")
    if not torch.equal(before.tokens, after.tokens):
        raise ValueError(
            f"drawdown compares perplexities of the same texts; got "
            f"{len(before.tokens)} texts of {int(before.tokens.sum())} tokens before "
            f"and {len(after.tokens)} of {int(after.tokens.sum())} after."
        )
    return _row("perplexity_drawdown", after, before)


def _row(metric: str, found: Perplexity, base: Perplexity | None = None) -> Row:
    """Perplexity, less that of the base if there is one, with its interval."""
    n, lost = int((found.tokens > 0).sum()), found.nll.double()
    if n == 0:
        note = "no text has a token that follows another"
        nothing = (math.nan, math.nan, math.nan)
        return Row(metric, *nothing, 0, "perplexity", note)
    # Without a base nothing is taken off: exp(-inf) = 0.
    less = torch.full_like(lost, -torch.inf) if base is None else base.nll.double()
    table = torch.stack([lost, less, found.tokens.double()], 1)[found.tokens > 0]

    def of_means(means: Tensor) -> Tensor:
        nll, base_nll, tokens = means.unbind(1)
        return (nll / tokens).exp() - (base_nll / tokens).exp()

    mean = float(of_means(table.mean(0, keepdim=True)))
    low, high = bootstrap(table, of_means) if n > 1 else (math.nan, math.nan)
    return Row(metric, mean, low, high, n, "perplexity")
