"""How probable a model finds given answers: what search and evaluation measure.

Axes: n answers · batch rows · tokens positions · vocab words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, n_layers, submodule
from edutools.checks import number, several
from edutools.hooks import Seen, capture, evaluating
from edutools.loaded import input_device, not_nan, readable
from edutools.rows import AnswerRows, answer_rows

__all__ = [
    "Scores",
    "answer_log_probs",
    "answer_logits",
    "final_logits",
    "last_states",
    "run",
    "score",
    "score_rows",
]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of answers, in nats, under teacher forcing.

    Attributes:
        joint: log P[answer | prompt], the sum over the answer's tokens.
        tokens: how many tokens each answer has.
        hits: for each answer, whether each of its tokens is the model's first choice.
        first: the ids of these first choices, given the answer's tokens before.

    Book: sec-evaluation-conventions
    """

    joint: Float[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    hits: tuple[tuple[bool, ...], ...]
    first: tuple[tuple[int, ...], ...] = ()

    @property
    def per_token(self) -> Float[Tensor, " n"]:
        """The mean log-probability of the answer's tokens, in nats."""
        return self.joint / self.tokens

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Whether every token of the answer is the model's first choice."""
        return torch.tensor([all(hit) for hit in self.hits], dtype=torch.bool)

    def __repr__(self) -> str:
        return f"Scores(n={len(self.hits)}, correct={int(self.correct.sum())})"


def final_logits(
    model: PreTrainedModel, hidden: Float[Tensor, "... d_model"]
) -> Float[Tensor, "... vocab"]:
    """Read states after the last block as next-token scores: final norm, then head."""
    place = architecture_of(model)
    return submodule(model, place.head)(submodule(model, place.final_norm)(hidden))


def last_states(
    model: PreTrainedModel, ids: Int[Tensor, "n tokens"], mask: Int[Tensor, "n tokens"]
) -> Float[Tensor, "n tokens d_model"]:
    """Run the blocks without the head; the states after the last of them."""
    name = architecture_of(model).block(n_layers(model) - 1)
    with capture(model, name, stop=True) as seen:
        run(seen, model, ids, mask)
    return seen[name]


def answer_logits(
    model: PreTrainedModel, rows: AnswerRows
) -> Float[Tensor, "n answer vocab"]:
    """Scores of the next word in every place where a token of an answer is predicted.

    In float32, on the device of the head; gradients flow if they are on.

    Book: sec-evaluation-conventions
    """
    hidden = last_states(model, rows.ids, rows.mask)
    each = torch.arange(len(hidden), device=hidden.device)[:, None]
    at = hidden[each, rows.positions.to(hidden.device)]  # (n, answer, d_model)
    return final_logits(model, at).float()


def answer_log_probs(model: PreTrainedModel, rows: AnswerRows) -> Float[Tensor, " n"]:
    """The log-probability of each answer, all its tokens together, in nats.

    On the device of the head; gradients flow if they are on.

    Book: sec-evaluation-conventions
    """
    logp = answer_logits(model, rows).log_softmax(-1)  # (n, answer, vocab)
    labels, valid = rows.labels.to(logp.device), rows.valid.to(logp.device)
    return (logp.gather(-1, labels[..., None])[..., 0] * valid).sum(1)


def run(
    seen: Seen,
    model: PreTrainedModel,
    ids: Int[Tensor, "n tokens"],
    mask: Int[Tensor, "n tokens"],
) -> None:
    """Send padded rows through the model, from where it begins, without a cache.

    Raises:
        ValueError: if a row is longer than what the model can read, or holds a token
            that it does not know.
    """
    readable(model, ids)
    place = input_device(model)
    seen.run(input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False)


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 64,
) -> Scores:
    r"""Score one answer per prompt in one forward pass per batch of similar lengths.

    .. math:: \log P[y \mid x] = \sum_j \log P[y_j \mid x, y_{<j}]

    The head is applied only where answer tokens are predicted.

    Args:
        model: is not changed.
        tokenizer: the model's.
        prompts: texts that the answers continue.
        answers: with or without the leading space, which is added where missing.
        batch_size: prompts per forward pass; changes memory and speed only.

    Raises:
        ValueError: if the two lists differ in length, or an answer has no token.

    Book: sec-evaluation-conventions
    """
    prompts = several("prompts", prompts, str)
    answers = several("answers", answers, str)
    if not prompts and not answers:
        return Scores(torch.zeros(0), torch.zeros(0, dtype=torch.long), ())
    rows = answer_rows(tokenizer, prompts, answers)
    return score_rows(model, rows, batch_size=batch_size)


def score_rows(
    model: PreTrainedModel, rows: AnswerRows, *, batch_size: int = 64
) -> Scores:
    """Score answers that are laid out as token rows already; see `score`.

    Raises:
        RuntimeError: if a probability is nan.

    Book: sec-evaluation-conventions
    """
    number("batch_size", batch_size, int, least=1)
    order = rows.mask.sum(1).argsort(stable=True)
    joint = torch.zeros(len(rows.ids))
    best = torch.zeros_like(rows.labels)
    with evaluating(model), torch.no_grad():
        for part in order.split(batch_size):
            batch = rows.pick(part)
            logp, choice = _log_probs(model, batch)
            joint[part] = (logp * batch.valid).sum(1)
            best[part, : choice.shape[1]] = choice
    not_nan(joint)
    each = list(zip(best, rows.labels, rows.valid, strict=True))
    return Scores(
        joint=joint,
        tokens=rows.valid.sum(1),
        hits=tuple(tuple((b == y)[valid].tolist()) for b, y, valid in each),
        first=tuple(tuple(b[valid].tolist()) for b, _, valid in each),
    )


def _log_probs(
    model: PreTrainedModel, rows: AnswerRows
) -> tuple[Float[Tensor, "batch answer"], Int[Tensor, "batch answer"]]:
    """Log-probability of each label and the likeliest token in its place."""
    logp = answer_logits(model, rows).log_softmax(-1)  # (batch, answer, vocab)
    picked = logp.gather(-1, rows.labels.to(logp.device)[..., None])[..., 0]
    return picked.cpu(), logp.argmax(-1).cpu()
