"""GRACE: edits remembered beside one block; the weights stay as they are.

Axes: n facts · entries of the codebook · tokens · d_model size of the residual stream.
"""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer
from edutools.checks import number, of_kind, several, typed
from edutools.codebook import Codebook, embedding_of
from edutools.facts import Fact
from edutools.hooks import capture, evaluating, frozen
from edutools.provenance import provenance
from edutools.rows import AnswerRows, answer_rows
from edutools.scoring import answer_log_probs, run
from edutools.settings import write

__all__ = ["GRACE", "memorize"]


@dataclass(frozen=True, kw_only=True)
class GRACE:
    """General retrieval adaptors for continual editing: how a codebook is written.

    Attributes:
        layer: at which block the codebook sits, counted from 0.
        radius: how near a state must come to a new key to be answered by it, in units
            of the block's input; ε_init. Look at distances between states before you
            choose: it decides alone how far an edit reaches.
        steps: Adam's steps for the values, at most.
        lr: Adam's learning rate, in units of the block's output.
        stop_loss: a value is finished when all its facts are below this (nats per
            token).

    Source: Hartvigsen et al. 2023, with their 100 steps; radius and lr are EasyEdit's.
    Book: sec-context-methods
    """

    layer: int
    radius: float = 1.0
    steps: int = 100
    lr: float = 1.0
    stop_loss: float = 0.05
    bibtex: ClassVar[str] = """
        @inproceedings{hartvigsen2023aging,
          title = {Aging with {GRACE}: Lifelong Model Editing with Discrete Key-Value
                   Adaptors},
          author = {Thomas Hartvigsen and Swami Sankaranarayanan and Hamid Palangi and
                    Yoon Kim and Marzyeh Ghassemi},
          booktitle = {Advances in Neural Information Processing Systems},
          volume = {36},
          year = {2023},
          eprint = {2211.11031},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        typed(self)
        for name in ("radius", "steps", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"GRACE.{name} is {getattr(self, name)}; it must be positive."
                )

    @property
    def citation(self) -> str:
        """BibTeX of the paper that introduced the method."""
        return inspect.cleandoc(self.bibtex)


def memorize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    method: GRACE,
    codebook: Codebook | None = None,
    batch_size: int = 64,
) -> Codebook:
    r"""Write facts into a codebook beside one block.

    .. math:: h^{l} = v_i \;\text{if}\; \|h^{l-1} - k_i\| \le \varepsilon_i,
        \qquad h^{l} = f^{l}(h^{l-1}) \;\text{otherwise}

    with i the nearest key. A key is the block's input at the last token of a fact's
    prompt, the value what makes the model continue with the target. Keys come in one
    after the other by the rules of `Codebook.added`; values are learned together.

    Args:
        model: its weights stay untouched.
        tokenizer: the model's.
        facts: what to say; the order matters where keys are near each other.
        method: where, how far, and how values are learned.
        codebook: one to go on with, at the same block; it is not changed.
        batch_size: facts per pass; changes memory and speed only.

    Returns:
        A new codebook; use it by `with codebook.applied(model)`.

    Raises:
        TypeError: if facts or method are something else.
        ValueError: if there is no fact, the block does not exist or is not the
            codebook's, or a target has no token.

    Warns:
        UserWarning: if a fact's key ends up outside its entry, because a later fact
            with another target came too near.

    Source: Hartvigsen et al. 2023, section 3 and algorithm 1. There, one layer of any
        kind is wrapped and only one chosen token asks (in GPT the prompt's last one);
        here a whole block is, and each token asks and is answered for itself. So
        nobody has to know where a prompt ends, and answers may follow it. Values start
        at the block's own output, not at random numbers, and stop early. A key that
        comes again with another target is given a new value, where the paper's split
        would leave both with radius 0.
    Book: sec-context-methods
    """
    facts = _checked(facts)
    of_kind("method", method, GRACE, "GRACE(layer=5)")
    number("batch_size", batch_size, int, least=1)
    name = architecture_of(model).block(check_layer(model, method.layer))
    _check_module(codebook, name)
    rows = answer_rows(tokenizer, [f.text for f in facts], [f.target for f in facts])
    keys = _at_prompts_end(model, rows, name, inputs=True)  # (n, d_model)
    outputs = _at_prompts_end(model, rows, name, inputs=False)
    book = codebook or Codebook(name, keys[:0], outputs[:0], keys[:0, 0], ())
    for fact, key, output in zip(facts, keys, outputs, strict=True):
        book = book.added(key, output, fact.target, method.radius)
    book = replace(book, info=_info(model, facts, method, book))
    owner = book.entries(keys).cpu()  # (n,)
    lost = [i for i, fact in enumerate(facts) if not _held(book, int(owner[i]), fact)]
    if lost:
        warnings.warn(
            f"Facts {lost} are outside their entries, because others with another "
            "target came too near. Lower GRACE.radius, or choose another layer.",
            stacklevel=2,
        )
    keep = torch.tensor([i for i in range(len(facts)) if i not in lost])
    owner, rows = owner[keep], rows.pick(keep)
    return _learned(model, book, rows, owner, method, batch_size=batch_size)


def _learned(
    model: PreTrainedModel,
    book: Codebook,
    rows: AnswerRows,
    owner: Int[Tensor, " n"],
    method: GRACE,
    *,
    batch_size: int,
) -> Codebook:
    """The codebook with values that make the model give the answers.

    An entry rests once all answers it owns are likely enough; those that own no answer
    never move.
    """
    values = book.values.clone()
    adam = torch.optim.Adam([values], lr=method.lr)
    with evaluating(model), frozen(model):
        for _ in range(method.steps):
            trial = replace(book, values=values)
            loss, values.grad = _losses(model, trial, rows, batch_size)
            running = torch.zeros(len(book), dtype=torch.bool)
            running[owner[loss >= method.stop_loss]] = True
            if not running.any():
                break
            before = values.clone()
            adam.step()
            values[~running] = before[~running]
    return replace(book, values=values)


def _losses(
    model: PreTrainedModel, book: Codebook, rows: AnswerRows, batch_size: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "entries d_model"]]:
    """Loss of every answer in nats per token, and the gradient of their sum."""
    leaf = book.values.clone().requires_grad_()
    losses, total = [], torch.zeros_like(leaf)
    with replace(book, values=leaf).applied(model):
        for part in torch.arange(len(rows.ids)).split(batch_size):
            some = rows.pick(part)
            logp = answer_log_probs(model, some)
            loss = -logp / some.valid.sum(1).to(logp.device)
            total += torch.autograd.grad(loss.sum(), leaf)[0]
            losses.append(loss.detach().cpu())
    return torch.cat(losses), total


@torch.no_grad()
def _at_prompts_end(
    model: PreTrainedModel, rows: AnswerRows, name: str, *, inputs: bool
) -> Float[Tensor, "n d_model"]:
    """What goes into a block (or comes out) at the last token of each prompt."""
    with (
        evaluating(model),
        capture(model, name, inputs=inputs, stop=True) as seen,
    ):
        run(seen, model, rows.ids, rows.mask)
    each = torch.arange(len(rows.ids))
    return seen[name][each, rows.positions[:, 0]].float()


def _held(book: Codebook, entry: int, fact: Fact) -> bool:
    return entry >= 0 and book.targets[entry] == fact.target


def _checked(facts: Sequence[Fact]) -> list[Fact]:
    facts = several("facts", facts, Fact)
    if not facts:
        raise ValueError("Got no facts; memorize needs at least one Fact.")
    return facts


def _check_module(codebook: Codebook | None, name: str) -> None:
    if codebook is not None and codebook.module != name:
        raise ValueError(
            f"The codebook sits at {codebook.module}, but GRACE.layer says {name}. "
            "Choose its layer, or begin a new codebook."
        )


def _info(
    model: PreTrainedModel, facts: list[Fact], method: GRACE, book: Codebook
) -> dict[str, Any]:
    told = [*book.info.get("facts", ()), *(asdict(fact) for fact in facts)]
    how = {"method": "GRACE"} | write(method)
    origin = provenance(model) | {"embedding": embedding_of(model)}
    return origin | {"method": how, "facts": told}
