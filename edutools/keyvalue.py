"""Keys, present states and wanted values: what goes into a closed form.

Axes: n facts · contexts texts in front of a fact · rows contexts and one essence prompt
· tokens · answer tokens of the longest target · d_in, d_out sizes of the write map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer
from edutools.checks import number, typed
from edutools.contexts import BARE, Contexts
from edutools.facts import Fact
from edutools.hooks import capture, evaluating
from edutools.prompts import Prompt, fill
from edutools.rows import locate
from edutools.scoring import run

__all__ = [
    "BARE",
    "Contexts",
    "ValueSearch",
    "at_subject",
    "beginning",
    "keys",
    "site_name",
    "states",
]

CHOICES = {
    "site": ("block", "mlp"),
    "clamp_to": ("site", "block"),
    "essence": ("end", "subject"),
    "decay": ("norm", "square"),
    "stop": ("loss", "argmax"),
}
LEAST = {"steps": 1, "weight_decay": 0, "kl": 0, "extra_steps": 0}


@dataclass(frozen=True, kw_only=True)
class ValueSearch:
    r"""How to search for a value: Adam on a change δ of the state at the subject.

    .. math:: L(\delta) = -\tfrac1P \sum_j \log P_\delta[o^* \mid x_j + p]
        + \kappa\, D_{KL}(P_\delta[\cdot \mid p'] \,\|\, P[\cdot \mid p'])
        + w\, \|\delta\|^a / \|h\|^2

    The first term is the mean log-probability per target token, p' is the essence
    prompt "{subject} is a", h the state before the search.

    Attributes:
        steps: evaluations of the loss. The last one only measures, so Adam moves δ
            `steps` - 1 times.
        lr: Adam's learning rate, in units of the state.
        weight_decay: w above.
        kl: κ above; 0 switches the essence term off.
        clamp: after each step ‖δ‖ is cut to this multiple of the norm of h.
        clamp_to: h of the clamp: the state at 'site', or the 'block' output there.
            MLP outputs can be much shorter than block outputs.
        site: δ is added to the output of the 'block' (MEMIT) or the 'mlp' (ROME).
        stop: when a fact is finished. 'loss': when its loss is below `stop_loss`.
            'argmax': when in every context every token of the target is the model's
            first choice (MPES).
        stop_loss: the bound of 'loss'.
        extra_steps: how often δ is still moved after that.
        essence: where the essence prompt's next word is compared: at its 'end'
            (paper) or at the 'subject' (released code).
        decay: exponent a: 'norm' for 1 (released code, to which the published weights
            belong), 'square' for 2, which makes the term free of units.
        contexts: texts in front of the prompt, j above.

    Source: Meng et al. 2022 (ROME), eq. 4; Meng et al. 2023 (MEMIT), eq. 16. Default
        numbers are the released settings of MEMIT on GPT-J. 'argmax' is Gupta et al.
        2025 (ENCORE); its released code counts right tokens over the contexts but the
        bare one and stops at five, which is right for targets of one token and six
        contexts only.
    Book: sec-rome-value
    """

    steps: int = 25
    lr: float = 0.5
    weight_decay: float = 0.5
    kl: float = 0.0625
    clamp: float = 0.75
    clamp_to: str = "site"
    site: str = "block"
    stop: str = "loss"
    stop_loss: float = 0.05
    extra_steps: int = 0
    essence: str = "end"
    decay: str = "norm"
    contexts: Contexts = field(default_factory=Contexts)

    def __post_init__(self) -> None:
        typed(self)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"ValueSearch.{name} is {getattr(self, name)!r}; choose one of "
                    f"{', '.join(map(repr, allowed))}."
                )
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"ValueSearch.{name} is {getattr(self, name)}; it must be at "
                    f"least {least}."
                )
        for name in ("lr", "clamp"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"ValueSearch.{name} is {getattr(self, name)}; it must be positive."
                )


def keys(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    *,
    contexts: Contexts = BARE,
    batch_size: int = 64,
) -> Float[Tensor, "d_in n"]:
    r"""The key of each fact: what the write map of a layer reads at the subject's end.

    .. math:: k_i = \sum_j w_j\, k(x_j + s_i), \qquad \textstyle\sum_j w_j = 1

    Causal attention makes the key of the bare prompt depend on the text up to the
    subject's last token only: facts whose prompts start alike have the same key.

    Args:
        model: is not changed.
        tokenizer: the model's.
        facts: whose subjects and prompts to read.
        layer: counted from 0.
        contexts: texts to average over, and how.
        batch_size: texts per forward pass; changes memory and speed only.

    Returns:
        One column per fact, in float64, on the layer's device.

    Raises:
        ValueError: if the layer does not exist or a subject is lost.

    Source: Meng et al. 2022 (ROME), eq. 3.
    Book: sec-rome-key
    """
    check_layer(model, layer)
    texts = contexts.texts(model, tokenizer)
    asked = [fill(fact, text) for fact in facts for text in texts]
    name = architecture_of(model).write(layer)
    rows = at_subject(model, tokenizer, asked, name, inputs=True, batch_size=batch_size)
    split = rows.view(len(facts), len(texts), -1)  # (n, contexts, d_in)
    weights = contexts.weights(len(texts)).to(rows.device)
    return torch.einsum("c,ncd->dn", weights, split)


def beginning(fact: Fact) -> str:
    """The text up to the subject's end, all that the key of the bare prompt depends on.

    Facts with the same beginning have the same key, also averaged over contexts.

    Book: sec-memit-merge

    >>> beginning(Fact("Oslo", "The city of {} lies in", "Peru"))
    'The city of Oslo'
    """
    prompt = fill(fact)
    return prompt.before + prompt.subject


def states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    *,
    site: str = "block",
    batch_size: int = 64,
) -> Float[Tensor, "d_out n"]:
    """The state of each fact at the subject's last token, on the bare prompt.

    Args:
        model: is not changed.
        tokenizer: the model's.
        facts: whose subjects and prompts to read.
        layer: counted from 0.
        batch_size: texts per forward pass; changes memory and speed only.
        site: 'block' for the residual stream after the block, 'mlp' for what the MLP
            adds to it.

    Returns:
        One column per fact, in float64, on the layer's device.

    Raises:
        ValueError: if the layer or the site does not exist or a subject is lost.

    Source: Meng et al. 2023 (MEMIT), h in eq. 20.
    Book: sec-memit-residual
    """
    check_layer(model, layer)
    name = site_name(model, layer, site)
    asked = [fill(fact) for fact in facts]
    return at_subject(model, tokenizer, asked, name, batch_size=batch_size).T


def site_name(model: PreTrainedModel, layer: int, site: str) -> str:
    """The module whose output a value replaces.

    Raises:
        ValueError: if the site is neither 'mlp' nor 'block'.
    """
    place = architecture_of(model)
    if site not in ("mlp", "block"):
        raise ValueError(f"The site is {site!r}; choose 'mlp' or 'block'.")
    return place.mlp(layer) if site == "mlp" else place.block(layer)


def at_subject(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    name: str,
    *,
    inputs: bool = False,
    batch_size: int = 64,
) -> Float[Tensor, "n size"]:
    """A module's output (or input) at the last token of each prompt's subject, float64.

    Raises:
        ValueError: if a subject is lost in tokenization.
    """
    number("batch_size", batch_size, int, least=1)
    if not prompts:
        raise ValueError("Got no facts; keys and states need at least one.")
    found = locate(tokenizer, prompts)
    order = found.mask.sum(1).argsort(stable=True)
    parts = []
    with (
        evaluating(model),
        torch.no_grad(),
        capture(model, name, inputs=inputs, stop=True) as seen,
    ):
        for part in order.split(batch_size):
            width = int(found.mask[part].sum(1).max())
            run(seen, model, found.ids[part, :width], found.mask[part, :width])
            x = seen[name]  # (batch, tokens, size)
            rows = torch.arange(len(part), device=x.device)
            parts.append(x[rows, found.last[part].to(x.device)].double())
    return torch.cat(parts)[order.argsort().to(parts[0].device)]
