"""Attribution: how much each MLP neuron adds to an answer, by integrated gradients.

A neuron is one coordinate of what the write map of a layer reads: its activation is a
coordinate of the key, its value slot is the column of W that it multiplies.

Axes: n prompts · layers · d_in neurons of a layer · batch points of paths · tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, n_layers
from edutools.checks import number, several
from edutools.hooks import capture, evaluating, frozen, patch
from edutools.loaded import not_nan
from edutools.rows import AnswerRows, answer_rows
from edutools.scoring import answer_log_probs, run

__all__ = ["Attribution", "Neurons", "attribute"]

Neurons = Sequence[tuple[int, int]]  # (layer, index)


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each neuron adds to the probability of an answer.

    Attributes:
        scores: integrated gradient of every neuron, in units of probability.
        probability: of the answer, undisturbed.
        silent: of the answer, with all neurons of a layer set to zero.

    Book: sec-context-methods
    """

    scores: Float[Tensor, "n layers d_in"]
    probability: Float[Tensor, " n"]
    silent: Float[Tensor, "n layers"]

    @property
    def error(self) -> Float[Tensor, "n layers"]:
        """By how much the scores of a layer miss what the layer adds; → 0 as 1/m."""
        return self.scores.sum(2) - (self.probability[:, None] - self.silent)

    def top(self, count: int) -> Neurons:
        """The neurons with the highest mean score over prompts, highest first."""
        order = self.scores.mean(0).flatten().argsort(descending=True, stable=True)
        size = self.scores.shape[2]
        return tuple((int(at) // size, int(at) % size) for at in order[:count])

    def shared(self, *, threshold: float = 0.2, share: float = 0.7) -> Neurons:
        """The neurons that matter for most prompts, highest mean score first.

        Args:
            threshold: for one prompt a neuron counts if its score is at least this
                share of the prompt's largest one.
            share: it is kept if it counts for at least this share of the prompts.

        Raises:
            ValueError: if one of them is not between 0 and 1.
        """
        check_share("threshold", threshold)
        check_share("share", share)
        largest = self.scores.flatten(1).amax(1)[:, None, None]  # (n, 1, 1)
        counts = (self.scores > 0) & (self.scores >= threshold * largest)
        votes = counts.double().mean(0)  # (layers, d_in)
        kept = {(int(a), int(b)) for a, b in (votes >= share - 1e-9).nonzero()}
        return tuple(neuron for neuron in self.top(votes.numel()) if neuron in kept)

    def __repr__(self) -> str:
        n, layers, d_in = self.scores.shape
        return f"Attribution(n={n}, layers={layers}, neurons={d_in})"


def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    steps: int = 20,
    batch_size: int = 64,
) -> Attribution:
    r"""How much each neuron adds to the probability of an answer.

    .. math:: a_i = \frac{\bar w_i}{m} \sum_{k=1}^{m}
        \frac{\partial P(\tfrac{k}{m} \bar w)}{\partial w_i}

    P(w) is the probability of the answer when the neurons of one layer, at the prompt's
    last token, are set to w by hand; their present values are w̄. Layers above follow,
    layers below stay. The sum over a layer tends to P(w̄) - P(0): nothing is lost.

    Args:
        model: is not changed.
        tokenizer: the model's.
        prompts: texts that the answers continue.
        answers: one per prompt. Of an answer of several tokens P is the probability of
            all of them, the earlier ones given.
        steps: m. The error falls as 1/m.
        batch_size: points of paths per pass; changes memory and speed only.

    Returns:
        Scores of all neurons of all layers, in float64.

    Raises:
        ValueError: if there is no prompt, `steps` is not positive, the two lists differ
            in length, or an answer has no token.

    Source: Dai et al. 2022, eqs. 3 and 4: P of one masked token in BERT. The sum is the
        paper's, from k = 1 to m; the released code goes from 0 to m - 1.
    Book: sec-context-methods
    """
    prompts = several("prompts", prompts, str)
    number("steps", steps, int)
    number("batch_size", batch_size, int, least=1)
    if not prompts or steps < 1:
        raise ValueError(
            f"attribute needs at least one prompt and one step; got {len(prompts)} "
            f"prompts and steps={steps}."
        )
    rows = answer_rows(tokenizer, prompts, answers)
    place = architecture_of(model)
    names = [place.write(layer) for layer in range(n_layers(model))]
    with evaluating(model), frozen(model):
        paths = _Paths(model, rows, steps, batch_size)
        full = paths.activations(names)
        found = [paths.integrate(name, full[name]) for name in names]
        ends = [paths.at(name, torch.zeros_like(full[name])) for name in names]
        probability = paths.at(names[0], full[names[0]])
    not_nan(probability)
    return Attribution(torch.stack(found, 1), probability, torch.stack(ends, 1))


@dataclass(frozen=True, eq=False)
class _Paths:
    """The answer's probability as a function of the neurons at the last token."""

    model: PreTrainedModel
    rows: AnswerRows
    steps: int
    batch_size: int

    @torch.no_grad()
    def activations(self, names: Sequence[str]) -> dict[str, Float[Tensor, "n d_in"]]:
        """Present values w̄ of the neurons of each layer."""
        each = torch.arange(len(self.rows.ids))
        with capture(self.model, names, inputs=True, stop=True) as seen:
            run(seen, self.model, self.rows.ids, self.rows.mask)
        return {name: seen[name][each, self.rows.positions[:, 0]] for name in names}

    def probability(
        self, name: str, w: Float[Tensor, "batch d_in"], who: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """P(w) of some of the prompts, which may come several times."""
        rows = self.rows.pick(who)

        def put(k: Tensor) -> Tensor:  # (batch, tokens, d_in)
            at = (torch.arange(len(k)), rows.positions[:, 0])
            return k.index_put([x.to(k.device) for x in at], w.to(k))

        with patch(self.model, {name: put}, inputs=True):
            return answer_log_probs(self.model, rows).exp()

    @torch.no_grad()
    def at(self, name: str, w: Float[Tensor, "n d_in"]) -> Float[Tensor, " n"]:
        """P(w) of every prompt, in float64 on the CPU."""
        parts = torch.arange(len(w)).split(self.batch_size)
        found = [self.probability(name, w[part], part) for part in parts]
        return torch.cat(found).double().cpu()

    def integrate(
        self, name: str, full: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_in"]:
        """The scores of one layer, all steps of all prompts in batches."""
        total = torch.zeros_like(full, dtype=torch.float64)
        for part in torch.arange(len(full) * self.steps).split(self.batch_size):
            who, k = part // self.steps, part % self.steps + 1
            share = (k / self.steps)[:, None].to(full)
            w = (share * full[who]).requires_grad_()  # k/m · w̄  (batch, d_in)
            (grad,) = torch.autograd.grad(self.probability(name, w, who).sum(), w)
            total.index_add_(0, who.to(total.device), grad.double())
        return (full * total / self.steps).cpu()


def check_share(name: str, value: float) -> None:
    """Refuse what is not a share.

    Raises:
        ValueError: if it is not between 0 and 1.
    """
    number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must be between 0 and 1.")
