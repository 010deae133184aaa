r"""How MEND's editors learn: edits that reach rephrasings and leave the rest alone.

.. math:: L = c_e\, L_e + L_{loc}, \qquad
    L_e = -\log P_{\tilde W}[y_e \mid x_e'], \qquad
    L_{loc} = D_{KL}(P_W[\cdot \mid x_{loc}] \,\|\, P_{\tilde W}[\cdot \mid x_{loc}])

Axes: groups edits that are judged together · rows texts they are judged by · answer
tokens of the longest answer · vocab words.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, cat
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.checks import typed
from edutools.editors import Editors
from edutools.factors import adding, gradient_factors, mean_nll
from edutools.facts import Case
from edutools.hooks import evaluating, frozen
from edutools.prompts import fill
from edutools.rows import AnswerRows, answer_rows, locate
from edutools.scoring import answer_logits

__all__ = ["EditBatch", "Training", "divergence", "draw_batch", "edit_loss"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train MEND's editors.

    Attributes:
        steps: Adam steps at most.
        edits: edits per step.
        together: how many of them are applied at once; the others are apart.
        rephrasings: texts per edit that shall give the new answer.
        neighbors: texts per edit that shall be answered as before.
        c_edit: weight of the edit loss against the locality loss.
        lr: Adam's learning rate for the networks.
        lr_alpha: the same for the rates α.
        warmup: steps over which both rise from zero; they fall to zero by a cosine
            over the last `decay` of all steps.
        decay: share of the steps in which they fall.
        clip: the gradient's norm is cut to this.
        every: steps between looks at the held-out edits.
        patience: looks without a better loss before training stops.

    Source: Mitchell et al. 2022 (MEND), section 3.3 and appendix. Defaults are the
        released ones where the setting exists there.
    Book: sec-mend-training
    """

    steps: int = 100_000
    edits: int = 10
    together: int = 1
    rephrasings: int = 1
    neighbors: int = 1
    c_edit: float = 0.1
    lr: float = 1e-6
    lr_alpha: float = 1e-4
    warmup: int = 0
    decay: float = 0.0
    clip: float = 100.0
    every: int = 1000
    patience: int = 20

    def __post_init__(self) -> None:
        typed(self)
        for name in ("steps", "edits", "together", "rephrasings", "every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Training.{name} is {getattr(self, name)}; it must be at least 1."
                )
        for name in ("c_edit", "lr", "lr_alpha", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Training.{name} is {getattr(self, name)}; it must be positive."
                )
        if self.neighbors < 0 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ValueError(
                "Training needs neighbors >= 0, warmup >= 0 and 0 <= decay <= 1; got "
                f"{self.neighbors}, {self.warmup} and {self.decay}."
            )
        if self.edits % self.together:
            raise ValueError(
                f"Training.edits is {self.edits}; it must be a multiple of "
                f"`together`, which is {self.together}."
            )

    def rate(self, step: int) -> float:
        """The factor of both learning rates at a step.

        >>> [Training(steps=4, warmup=2, decay=0.5).rate(step) for step in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        """
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = self.decay * self.steps
        if not falling:
            return rise
        left = min(1.0, max(0.0, (self.steps - step) / falling))
        return rise * 0.5 * (1 - float(torch.cos(torch.tensor(torch.pi * left))))


@dataclass(frozen=True, eq=False)
class EditBatch:
    """Edits and the texts they are judged by.

    Attributes:
        edits: one row per edit: prompt and new answer.
        subject: place of each edit's subject, its last token.
        judged: per group of edits its rephrasings, then its neighbors, with answers.
        groups: number of groups.
        rephrasings: how many of a group's rows are rephrasings.

    Book: sec-mend-training
    """

    edits: AnswerRows
    subject: Int[Tensor, " n"]
    judged: AnswerRows
    groups: int
    rephrasings: int


def draw_batch(
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    training: Training,
    *,
    seed: str,
) -> EditBatch:
    """Draw edits and the texts they are judged by; the same for the same seed.

    A rephrasing is one of the case's paraphrases or its own prompt. A neighbor is one
    of its neighborhood, or in a third of the draws the prompt of another case.
    """
    draw = random.Random(seed)
    chosen = draw.sample(range(len(cases)), training.edits)
    prompts: list[str] = []
    answers: list[str] = []
    k = training.together
    for first in range(0, training.edits, k):
        group = [cases[i] for i in chosen[first : first + k]]
        inside = {case.fact.subject for case in group}
        for case in group:
            options = (case.fact.text, *case.paraphrases)
            prompts += _sampled(options, training.rephrasings, draw)
            answers += [case.fact.target] * training.rephrasings
        for case in group:
            for _ in range(training.neighbors):
                text, answer = _neighbor(case, cases, inside, draw)
                prompts.append(text)
                answers.append(answer)
    facts = [cases[i].fact for i in chosen]
    return EditBatch(
        edits=answer_rows(
            tokenizer, [fact.text for fact in facts], [fact.target for fact in facts]
        ),
        subject=locate(tokenizer, [fill(fact) for fact in facts]).last,
        judged=answer_rows(tokenizer, prompts, answers),
        groups=training.edits // k,
        rephrasings=training.rephrasings * k,
    )


def _sampled(options: Sequence[str], n: int, draw: random.Random) -> list[str]:
    """n of the options, each at most once more often than any other."""
    rounds = [draw.sample(options, len(options)) for _ in range(-(-n // len(options)))]
    return [option for one in rounds for option in one][:n]


def _neighbor(
    case: Case, cases: Sequence[Case], inside: set[str], draw: random.Random
) -> tuple[str, str]:
    """A text that the edit must not reach, and the answer expected there."""
    if case.neighborhood and draw.random() < 2 / 3:
        return draw.choice(case.neighborhood), case.fact.truth or case.fact.target
    other = draw.choice(cases).fact
    while other.subject in inside:
        other = draw.choice(cases).fact
    return other.text, other.truth or other.target


def edit_loss(
    model: PreTrainedModel, editors: Editors, batch: EditBatch, *, learn: bool
) -> dict[str, Float[Tensor, ""]]:
    """The parts of the loss of a batch of edits: 'edit' and 'locality', in nats.

    The model's weights stay as they are: every group of rows sees its own change.

    Args:
        model: the model to be edited.
        editors: what is trained.
        batch: the edits and how they are judged.
        learn: let the running means and deviations take the gradients into account.

    Source: Mitchell et al. 2022 (MEND), algorithm 1; the base model's gradients are
        constants.
    Book: sec-mend-training
    """
    changes = _changes(model, editors, batch, learn=learn)
    rows = torch.arange(len(batch.judged.ids))
    per_group = len(rows) // batch.groups
    stays = rows % per_group >= batch.rephrasings  # neighbors
    edit, locality = [], []
    with evaluating(model), frozen(model):
        for part in _of_like_length(batch.judged):
            judged, near = batch.judged.pick(part), stays[part].nonzero()[:, 0]
            with adding(model, changes, groups=part // per_group):
                after = answer_logits(model, judged)  # (part, answer, vocab)
            reached = (~stays[part]).to(after.device)
            edit.append(mean_nll(after, judged)[reached])
            if len(near):
                same = judged.pick(near)
                with torch.no_grad():
                    before = answer_logits(model, same)  # (near, answer, vocab)
                after = after[near.to(after.device), : before.shape[1]]
                locality.append(divergence(before, after, same.valid))
    nothing = [edit[0].new_zeros(1)]
    return {"edit": cat(edit).mean(), "locality": cat(locality or nothing).mean()}


def _changes(
    model: PreTrainedModel, editors: Editors, batch: EditBatch, *, learn: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """The change of each weight for each group, in factors as `adding` takes them."""
    factors = gradient_factors(model, batch.edits, editors.names)
    if editors.tokens == "subject":
        factors = {name: found.at(batch.subject) for name, found in factors.items()}
    if learn:
        editors.observe(factors)
    changes = {}
    for name, new in editors.transform(factors).items():
        u, d = (
            x.unflatten(0, (batch.groups, -1)).flatten(1, 2)  # (groups, rank, size)
            for x in (new.u, new.d)
        )
        changes[name] = (u, -editors.rate(name) * d)
    return changes


def _of_like_length(rows: AnswerRows) -> list[Int[Tensor, " part"]]:
    """The shorter rows and the longer ones, parted so that least is padding."""
    length, order = rows.mask.sum(1).sort(stable=True)
    n, shorter = len(order), torch.arange(1, len(order) + 1)
    cells = shorter * length + (n - shorter) * length[-1]  # by where they are parted
    at = int(cells.argmin()) + 1
    return [part for part in order.split([at, n - at]) if len(part)]


def divergence(
    before: Float[Tensor, "n answer vocab"],
    after: Float[Tensor, "n answer vocab"],
    valid: Bool[Tensor, "n answer"],
) -> Float[Tensor, " n"]:
    r"""How far each row's predictions have moved, D(before ‖ after), in nats.

    Mean over the places where the row's answer is predicted.

    Book: sec-mend-training
    """
    valid = valid.to(after.device)
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    kl = (old.exp() * (old - new)).sum(-1)  # (n, answer)
    return (kl * valid).sum(1) / valid.sum(1)
