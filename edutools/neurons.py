"""Knowledge neurons: find them, silence them, rewrite what they write.

Axes: d_in neurons of a layer · d_out size of the residual stream · r neurons rewritten.
"""

# ruff: noqa: N806 (the papers' symbols)

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.attribution import Neurons, attribute, check_share
from edutools.change import Edit, edit_info
from edutools.checks import number, several, shown, typed
from edutools.facts import Fact
from edutools.hooks import patch
from edutools.loaded import fetched, in_memory
from edutools.prompts import target_ids
from edutools.settings import write
from edutools.solve import LowRank

__all__ = ["KnowledgeNeurons", "amplify", "find_neurons", "rewrite", "suppress"]


@dataclass(frozen=True, kw_only=True)
class KnowledgeNeurons:
    """How knowledge neurons are found and their value slots rewritten.

    Attributes:
        steps: points of the path from no activation to the present one, m.
        threshold: for one prompt a neuron counts if its score is at least this share of
            the largest one, t.
        share: a neuron is kept if it counts for at least this share of the prompts, p.
        top: at most so many neurons are kept, those with the highest mean score.
        subtract: how much of the old answer leaves each value slot, λ₁.
        add: how much of the new answer enters it, λ₂.

    Source: Dai et al. 2022, sections 3 to 5, with their numbers. They move p until a
        relation has two to five neurons per fact; here p stays and `top` cuts.
    Book: sec-context-methods
    """

    steps: int = 20
    threshold: float = 0.2
    share: float = 0.7
    top: int = 4
    subtract: float = 1.0
    add: float = 8.0
    bibtex: ClassVar[str] = """
        @inproceedings{dai2022knowledge,
          title = {Knowledge Neurons in Pretrained Transformers},
          author = {Damai Dai and Li Dong and Yaru Hao and Zhifang Sui and
                    Baobao Chang and Furu Wei},
          booktitle = {Proceedings of the 60th Annual Meeting of the Association for
                       Computational Linguistics (Volume 1: Long Papers)},
          pages = {8493--8502},
          year = {2022},
          eprint = {2104.08696},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        typed(self)
        for name in ("steps", "top"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"KnowledgeNeurons.{name} is {getattr(self, name)}; it must be at "
                    "least 1."
                )
        for name in ("threshold", "share"):
            check_share(f"KnowledgeNeurons.{name}", getattr(self, name))

    @property
    def citation(self) -> str:
        """BibTeX of the paper that introduced the method."""
        return inspect.cleandoc(self.bibtex)


def find_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answer: str,
    *,
    settings: KnowledgeNeurons | None = None,
) -> Neurons:
    """The neurons that express a fact, whatever the wording.

    Args:
        model: is not changed.
        tokenizer: the model's.
        prompts: different wordings of one fact, up to the answer.
        answer: what continues them.
        settings: the paper's by default.

    Returns:
        Pairs of layer and index, highest mean score first; maybe none.

    Raises:
        ValueError: if there is no prompt or the answer has no token.

    Source: Dai et al. 2022, section 3.
    Book: sec-context-methods
    """
    how = settings or KnowledgeNeurons()
    prompts = several("prompts", prompts, str)
    answers = [answer] * len(prompts)
    found = attribute(model, tokenizer, prompts, answers, steps=how.steps)
    return found.shared(threshold=how.threshold, share=how.share)[: how.top]


@contextmanager
def suppress(model: PreTrainedModel, neurons: Neurons) -> Iterator[None]:
    """Set neurons to zero during forward passes inside a `with` block.

    At every token of whatever text is read; in the paper at the masked one only.

    Args:
        model: its weights stay untouched.
        neurons: pairs of layer and index.

    Raises:
        ValueError: if there is none, or the model has no such neuron.

    Source: Dai et al. 2022, section 4.5.
    Book: sec-context-methods
    """
    with _scaled(model, neurons, 0.0):
        yield


@contextmanager
def amplify(
    model: PreTrainedModel, neurons: Neurons, *, factor: float = 2.0
) -> Iterator[None]:
    """Multiply neurons by a factor during forward passes inside a `with` block.

    At every token of whatever text is read; in the paper at the masked one only.

    Args:
        model: its weights stay untouched.
        neurons: pairs of layer and index.
        factor: the paper doubles.

    Raises:
        ValueError: if there is no neuron, or the model has no such one.

    Source: Dai et al. 2022, section 4.5.
    Book: sec-context-methods
    """
    number("factor", factor)
    with _scaled(model, neurons, factor):
        yield


@contextmanager
def _scaled(model: PreTrainedModel, neurons: Neurons, factor: float) -> Iterator[None]:
    place, changes = architecture_of(model), {}
    for layer, chosen in _by_layer(model, neurons).items():

        def change(k: Tensor, chosen: list[int] = chosen) -> Tensor:
            scale = torch.ones(k.shape[-1], dtype=k.dtype, device=k.device)
            scale[chosen] = factor
            return k * scale  # (..., d_in)

        changes[place.write(layer)] = change
    with patch(model, changes, inputs=True):
        yield


def rewrite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    neurons: Neurons,
    *,
    settings: KnowledgeNeurons | None = None,
) -> Edit:
    r"""Take the old answer out of value slots and put the new one in.

    .. math:: v_i \leftarrow v_i + \|v_i\| \left(\lambda_2 \frac{e'}{\|e'\|}
        - \lambda_1 \frac{e}{\|e\|}\right)

    v_i is the column of W that neuron i multiplies; e and e' are the rows of the head
    that read the first tokens of truth and target.

    Args:
        model: is not changed; apply the edit.
        tokenizer: the model's.
        fact: what to say instead; it needs a truth.
        neurons: pairs of layer and index, from `find_neurons`.
        settings: λ₁ and λ₂; the paper's by default.

    Returns:
        The change of the columns, of as high a rank per layer as it has neurons there.

    Raises:
        ValueError: if there is no neuron or no truth, or truth and target begin with
            the same token.

    Source: Dai et al. 2022, section 5.1, with the norms of the released code. BERT ties
        head and embedding; where they differ, the head is what makes a word be said.
        Neurons that many facts share are not sorted out here.
    Book: sec-context-methods
    """
    how = settings or KnowledgeNeurons()
    old, new = _first_tokens(tokenizer, fact)
    chosen = _by_layer(model, neurons)
    place = architecture_of(model)
    head = submodule(model, place.head)
    with fetched(head):
        e, e_new = oriented(head)[[old, new]].double()  # (d_out,)
    e, e_new = e / e.norm(), e_new / e_new.norm()  # (d_out,)
    deltas = {}
    for layer, mine in chosen.items():
        W = oriented(submodule(model, place.write(layer))).double()  # (d_out, d_in)
        in_memory(place.write(layer), W)
        move = (how.add * e_new - how.subtract * e).to(W.device)  # (d_out,)
        left = torch.outer(move, W[:, mine].norm(dim=0))  # (d_out, r)
        right = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)[mine]  # (r, d_in)
        deltas[place.write(layer)] = LowRank(left, right)
    found = {"neurons": [list(pair) for pair in neurons]}
    method = {"method": "KnowledgeNeurons"} | write(how) | found
    info = edit_info(model, deltas) | {"method": method, "facts": [asdict(fact)]}
    return Edit(deltas, info)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> tuple[int, int]:
    if fact.truth is None:
        raise ValueError(
            f"{fact.text!r} has no truth, so there is nothing to take out of the value "
            "slots. Give Fact(..., truth=...)."
        )
    old, new = (
        target_ids(tokenizer, x, fact.text)[0] for x in (fact.truth, fact.target)
    )
    if old == new:
        raise ValueError(
            f"The answers {fact.truth!r} and {fact.target!r} begin with the same "
            "token, and only the first one is written. Choose another target."
        )
    return old, new


def _pairs(neurons: Neurons) -> list[tuple[int, int]]:
    for pair in neurons:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                "A neuron is a pair of layer and index, such as (5, 120); got "
                f"{shown(pair)}."
            )
        number("The index of a neuron", pair[1], int)
    return [(layer, index) for layer, index in neurons]


def _by_layer(model: PreTrainedModel, neurons: Neurons) -> dict[int, list[int]]:
    """The indices of each layer's neurons, each once."""
    if not neurons:
        raise ValueError(
            "Got no neurons. Lower `threshold` or `share`, or give pairs of layer and "
            "index."
        )
    chosen: dict[int, list[int]] = {}
    for layer, index in dict.fromkeys(_pairs(neurons)):
        name = architecture_of(model).write(check_layer(model, layer))
        size = oriented(submodule(model, name)).shape[1]
        if not 0 <= index < size:
            raise ValueError(
                f"Layer {layer} has no neuron {index}. Choose one of 0 to {size - 1}."
            )
        chosen.setdefault(layer, []).append(index)
    return chosen
