"""Rehearse on a model without weights what an edit does: bytes and operations.

Each function does on the meta device what the work itself does, with the same shapes;
nothing is computed. Attention is laid out as the model would run it by its plain
kernels, which take more memory than fused ones where texts are long.

Axes: n facts · rows texts in one pass · tokens of the longest text · answer tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from edutools.arch import architecture_of, n_layers, oriented, submodule
from edutools.hooks import capture, patch
from edutools.meter import Meter
from edutools.scoring import final_logits

__all__ = [
    "Cost",
    "Layout",
    "descending",
    "head_shape",
    "reading",
    "searching",
    "tracing_back",
]


@dataclass(frozen=True)
class Cost:
    """What a pass takes.

    Args:
        peak: bytes beside the weights, at the worst moment.
        flops: operations of its matrix products.

    Book: sec-planning
    """

    peak: int
    flops: int


@dataclass(frozen=True)
class Layout:
    """The shape of the texts in one pass.

    Args:
        n: facts.
        contexts: texts in front of each fact, the bare prompt included.
        tokens: of the longest text.
        answer: tokens of the answer.

    Book: sec-planning
    """

    n: int
    contexts: int
    tokens: int
    answer: int


def reading(
    model: PreTrainedModel, layout: Layout, names: Sequence[str], *, head: bool = False
) -> Cost:
    """A pass without gradients up to the last of some modules, whose inputs are kept.

    Args:
        model: on the meta device.
        layout: of the texts.
        names: of modules; the pass ends after them.
        head: go to the end and score the answers, as an evaluation does.

    Book: sec-planning
    """
    with Meter() as meter, torch.no_grad():
        if head:
            flat = _picked(_last(model, layout), layout.n * layout.answer)
            _logp(model, flat)
        else:
            _run(model, layout, list(names), inputs=True)
    return Cost(meter.peak, meter.flops)


def searching(model: PreTrainedModel, layout: Layout, site: str) -> Cost:
    """One step of the value search: the loss with δ at a module, and its gradient.

    Book: sec-planning
    """
    per_fact = layout.contexts + 1  # and the essence prompt
    n, width = layout.n, model.get_input_embeddings().get_parameter("weight").shape[1]
    rows = Layout(n * per_fact, 1, layout.tokens, layout.answer)
    words = n * layout.contexts * layout.answer
    essence = _empty(n, head_shape(model)[0])
    with Meter() as meter, torch.enable_grad():
        delta_h = _empty(n, width).requires_grad_()

        def add(h: Tensor) -> Tensor:
            shift = delta_h.repeat_interleave(per_fact, 0)
            at = (torch.arange(len(h), device="meta"),) * 2
            return h.index_put(at, (h[at].float() + shift).to(h.dtype))

        with patch(model, {site: add}):
            logp = _logp(model, _picked(_last(model, rows), words + n))
        said = logp[:-n].gather(-1, _ids(words, 1))
        now = logp[-n:]
        kl = (now.exp() * (now - essence)).sum(1)
        torch.autograd.grad(said.sum() + kl.sum(), delta_h)
    return Cost(meter.peak, meter.flops)


def descending(model: PreTrainedModel, layout: Layout, names: Sequence[str]) -> Cost:
    """One step of fine-tuning some maps: loss, and the gradient of their changes.

    Book: sec-planning
    """
    with Meter() as meter, torch.enable_grad():
        leaf = {
            name: _empty(*oriented(submodule(model, name)).shape).requires_grad_()
            for name in names
        }
        changed = {
            name: (oriented(submodule(model, name)) + change).to(model.dtype)
            for name, change in leaf.items()
        }
        with capture(model, names, inputs=True) as reads:

            def output(name: str) -> Callable[[Tensor], Tensor]:
                return lambda _: functional.linear(reads[name], changed[name])

            with patch(model, {name: output(name) for name in names}):
                loss = _answers(model, layout)
        torch.autograd.grad(loss, list(leaf.values()))
    return Cost(meter.peak, meter.flops)


def tracing_back(model: PreTrainedModel, layout: Layout, names: Sequence[str]) -> Cost:
    """The gradient of the answers with respect to the outputs of some maps, as in MEND.

    Book: sec-planning
    """
    with Meter() as meter, torch.enable_grad():
        probes: list[Tensor] = []

        def probe(out: Tensor) -> Tensor:
            probes.append(torch.zeros_like(out, requires_grad=True))
            return out + probes[-1]

        with (
            capture(model, names, inputs=True) as reads,
            patch(model, dict.fromkeys(names, probe)),
        ):
            loss = _answers(model, layout)
        grads = torch.autograd.grad(loss, probes)
        _ = [x.float() for x in (*reads.values(), *grads)]
    return Cost(meter.peak, meter.flops)


def head_shape(model: PreTrainedModel) -> tuple[int, int]:
    """(words, width) of the head.

    Book: sec-planning
    """
    head = submodule(model, architecture_of(model).head)
    words, width = oriented(head).shape
    return words, width


def _answers(model: PreTrainedModel, layout: Layout) -> Float[Tensor, ""]:
    places = layout.n * layout.answer
    logp = _logp(model, _picked(_last(model, layout), places))
    return logp.gather(-1, _ids(places, 1)).sum()


def _last(
    model: PreTrainedModel, layout: Layout
) -> Float[Tensor, "rows tokens d_model"]:
    name = architecture_of(model).block(n_layers(model) - 1)
    return _run(model, layout, [name])[name]


def _run(
    model: PreTrainedModel, layout: Layout, names: list[str], *, inputs: bool = False
) -> dict[str, Float[Tensor, "rows tokens size"]]:
    rows = layout.n * layout.contexts
    with capture(model, names, inputs=inputs, stop=True) as seen:
        seen.run(
            input_ids=_ids(rows, layout.tokens),
            attention_mask=_mask(model, rows, layout.tokens),
            use_cache=False,
        )
    return seen


def _picked(
    hidden: Float[Tensor, "rows tokens d_model"], places: int
) -> Float[Tensor, "places d_model"]:
    return hidden.flatten(0, 1)[_ids(places)]


def _logp(
    model: PreTrainedModel, flat: Float[Tensor, "places d_model"]
) -> Float[Tensor, "places vocab"]:
    return final_logits(model, flat).float().log_softmax(-1)


def _mask(model: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """A mask as attention reads it, so that nobody looks at its values."""
    eager = model.config._attn_implementation == "eager"
    kind = model.dtype if eager else torch.bool
    return torch.zeros(rows, 1, tokens, tokens, dtype=kind, device="meta")


def _ids(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.long, device="meta")


def _empty(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta")
