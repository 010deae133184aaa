"""MEND: trained networks turn the gradient of an edit into the change of weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import check_layer
from edutools.change import Edit
from edutools.checks import typed
from edutools.editors import OPTIONS, TOKENS, Editors
from edutools.factors import gradient_factors
from edutools.facts import Case, Fact
from edutools.loaded import embedding_weight
from edutools.mendchecks import (
    check_editors,
    checked_cases,
    checked_place,
    checked_training,
)
from edutools.mendfit import Training
from edutools.mendfolder import Kept, load_mend, push_mend, save_mend
from edutools.mendloop import train_editors
from edutools.mendplan import MemoryPlan, memory_plan
from edutools.method import Method, Moments, choice
from edutools.places import a_path
from edutools.pocket import POCKET_MODELS, pocket
from edutools.prompts import fill
from edutools.provenance import fingerprint, fingerprints, provenance, recognized
from edutools.rows import answer_rows, locate
from edutools.settings import read, write

__all__ = ["MEND", "MemoryPlan", "Training"]

CHUNK = 64  # facts per forward and backward pass


@dataclass(frozen=True, kw_only=True)
class MEND(Method):
    r"""Model editor networks with gradient decomposition.

    .. math:: \tilde W = W - \alpha_W \sum_t \tilde d_t\, \tilde u_t^\top, \qquad
        (\tilde u_t, \tilde d_t) = g_W(u_t, d_t)

    The settings say what is edited and how the networks look; `fit` trains them for
    one model, `from_pretrained` reads trained ones. An edit then takes one forward and
    one backward pass. Needs no second moments.

    Attributes:
        layers: the layers whose MLP weights are edited, counted from 0.
        rank: of the editor networks.
        blocks: residual blocks per network.
        alpha: the rate that every weight begins with.
        combine: one network for u and d together, rather than one for each.
        shared: one editor for all weights of one shape.
        normalize: bring u and d to zero mean and unit deviation first.
        tokens: which ones contribute: 'all', or, as in ROME, the last one of the
            'subject' only. The gradient at the other tokens belongs to the wording, so
            it reaches other subjects; a network that only adds cannot take it away.
        reduction: several facts: 'sum' writes each as if it were alone, 'mean' takes
            the mean loss over all answer tokens, as the released code does.
        seed: of the networks' starting weights and of the training.
        editors: the networks; None before `fit`.
        record: where the networks come from.

    Source: Mitchell et al. 2022 (MEND), algorithms 1 and 2.
    Book: sec-mend
    """

    layers: tuple[int, ...] = (25, 26, 27)
    rank: int = 1920
    blocks: int = 2
    alpha: float = 1e-4
    combine: bool = True
    shared: bool = True
    normalize: bool = True
    tokens: str = "all"
    reduction: str = "sum"
    seed: int = 0
    editors: Editors | None = field(default=None, repr=False, compare=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    needs_moments: ClassVar[bool] = False
    bibtex: ClassVar[str] = """
        @inproceedings{mitchell2022mend,
          title = {Fast Model Editing at Scale},
          author = {Eric Mitchell and Charles Lin and Antoine Bosselut and
                    Chelsea Finn and Christopher D. Manning},
          booktitle = {International Conference on Learning Representations},
          year = {2022},
          eprint = {2110.11309},
          archiveprefix = {arXiv}
        }
        """

    def __post_init__(self) -> None:
        typed(self)
        choice("MEND.tokens", self.tokens, TOKENS)
        choice("MEND.reduction", self.reduction, ("sum", "mean"))
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"MEND.layers is {self.layers}; give at least one layer, each once."
            )
        if self.rank < 1 or self.blocks < 1 or not self.alpha > 0:
            raise ValueError(
                "MEND needs rank >= 1, blocks >= 1 and alpha > 0; got "
                f"{self.rank}, {self.blocks} and {self.alpha}."
            )

    def start(self, model: PreTrainedModel) -> "MEND":
        """The same with untrained networks for this model.

        Raises:
            ValueError: if the model lacks one of the layers.
        """
        for layer in self.layers:
            check_layer(model, layer)
        editors = Editors.of(model, self.layers, seed=self.seed, **self._networks())
        return replace(self, editors=editors.beside(model), record=_origin(model))

    def fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cases: Sequence[Case],
        *,
        held_out: Sequence[Case],
        training: Training | None = None,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> "MEND":
        """Train the networks for a model; return the trained MEND.

        What it will need is logged before the work starts, see `plan`.

        Args:
            model: to be edited; is not changed.
            tokenizer: the model's.
            cases: edits to learn from, with paraphrases and neighborhood prompts.
            held_out: edits of other subjects; training stops when they get no better.
            training: settings; the released ones by default.
            checkpoint: a folder to save the state in, and to go on from.
            progress: show a bar and the memory plan.

        Raises:
            TypeError: if cases or settings are something else.
            ValueError: if there are too few cases, a subject is in both lists, or the
                checkpoint belongs to another training.
            SubjectNotFound: if a subject is lost in tokenization.

        Source: Mitchell et al. 2022 (MEND), algorithm 1.
        Book: sec-mend-training
        """
        training, folder = checked_training(training), checked_place(checkpoint)
        cases, held_out = checked_cases(tokenizer, cases, held_out)
        begun = self if self.editors is not None else self.start(model)
        begun.check(model, tokenizer, [case.fact for case in cases], {})
        begun.plan(model, training=training).announce(progress=progress)
        trained = train_editors(
            begun.editors,  # type: ignore[arg-type]
            model,
            tokenizer,
            cases,
            held_out=held_out,
            training=training,
            seed=self.seed,
            checkpoint=folder,
            progress=progress,
        )
        told = {
            "training": write(training),
            "cases": len(cases),
            "held_out": len(held_out),
            "history": trained.history,
        }
        return replace(
            begun, editors=trained.editors, record={**_origin(model), **told}
        )

    def plan(
        self, model: PreTrainedModel, *, training: Training | None = None
    ) -> MemoryPlan:
        """What training the networks for this model will hold in memory.

        The model may be on the meta device, that is, without its weights.
        """
        return memory_plan(
            model, self.layers, checked_training(training), **self._networks()
        )

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> None:
        """Refuse to edit without networks, or with those of another model.

        Raises:
            ValueError: as said, or as every method does.
        """
        super().check(model, tokenizer, facts, moments)
        if self.editors is None:
            raise ValueError(
                "This MEND has settings but no trained networks. Train them with "
                "fit(model, tokenizer, cases, ...), or read them with "
                "MEND.from_pretrained(folder)."
            )
        known = self.record.get("embedding")
        if known is not None and not recognized(embedding_weight(model), known):
            raise ValueError(
                f"This MEND was trained for {self.record.get('model')!r}; the given "
                f"model {provenance(model)['model']!r} has another token embedding. "
                "Train one for this model with fit."
            )
        check_editors(model, self.editors, self.layers)

    def compute(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> Edit:
        """The changes of all weights, from one forward and one backward pass."""
        editors = self.editors
        assert editors is not None  # checked before
        rows = answer_rows(
            tokenizer, [fact.text for fact in facts], [fact.target for fact in facts]
        )
        subject = locate(tokenizer, [fill(fact) for fact in facts]).last
        size = len(facts) if self.reduction == "mean" else CHUNK
        total = Edit()
        for part in torch.arange(len(facts)).split(size):
            factors = gradient_factors(
                model, rows.pick(part), editors.names, reduction=self.reduction
            )
            if self.tokens == "subject":
                factors = {n: found.at(subject[part]) for n, found in factors.items()}
            total += Edit({n: editors.change(n, found) for n, found in factors.items()})
        weights = torch.cat([p.detach().flatten() for p in editors.parameters()])
        return Edit(total.deltas, {"editors": fingerprint(weights)})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write networks, settings and a card into a folder.

        Raises:
            ValueError: if there are no networks yet.
            OSError: if the folder cannot be made or written to.
        """
        save_mend(self._kept(), a_path("folder", folder))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None
    ) -> "MEND":
        """Read a trained MEND from a folder, by Hub id, or by a pocket model's name.

        Raises:
            FileNotFoundError: if neither exists.
            ValueError: if a file is damaged or does not fit the settings.
        """
        shipped = str(a_path("folder", folder)) in POCKET_MODELS
        place = pocket(str(folder)) / "mend" if shipped else folder
        kept = load_mend(place, revision=revision, check=partial(read, cls))
        mend = read(cls, kept.settings)
        return replace(mend, editors=kept.editors, record=kept.record)

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Upload the folder; return its address. Private unless said otherwise."""
        return push_mend(self._kept(), repo_id, private=private)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain values, for JSON; the networks are not in it."""
        names = [f.name for f in fields(self) if f.compare]
        return {"method": "MEND"} | {n: write(getattr(self, n)) for n in names}

    def _networks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS}

    def _kept(self) -> Kept:
        if self.editors is None:
            raise ValueError("This MEND has no networks to save. Train them with fit.")
        settings = {k: v for k, v in self.to_dict().items() if k != "method"}
        return Kept(settings, self.editors, self.record)


def _origin(model: PreTrainedModel) -> dict[str, Any]:
    """Which model the networks belong to; the embedding survives every edit."""
    return provenance(model) | {"embedding": fingerprints(embedding_weight(model))}
