"""What every editor is: a few frozen numbers and a `compute`."""

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, check_layer, oriented, submodule
from edutools.change import Edit
from edutools.checks import choice, shown
from edutools.facts import Fact
from edutools.loaded import in_memory
from edutools.moments import SecondMoment, check_moments
from edutools.settings import preset_row, read, write

__all__ = ["COVARIANCES", "Method", "Moments", "choice"]

Moments = Mapping[int, SecondMoment]
COVARIANCES = ("moments", "identity")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """How to write facts: hyperparameters, never data.

    A method of your own is a frozen dataclass with fields `layers` and `covariance`
    (or properties of these names), a `bibtex`, and a `compute`. One that needs no
    second moments says so by `needs_moments` and has no `covariance`.
    `testing.check_method` tells whether it keeps its promises.

    Book: sec-methods
    """

    bibtex: ClassVar[str] = ""
    several: ClassVar[bool] = True  # whether it writes several facts at once
    needs_moments: ClassVar[bool] = True  # of the layers that `edited` names
    remembers: ClassVar[bool] = False  # whether it spares the keys of earlier edits
    inverts: ClassVar[bool] = False  # whether its moments must have an inverse
    searches: ClassVar[bool] = False  # whether `compute` takes `find`, see `edit`

    @abstractmethod
    def compute(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> Edit:
        """The change that writes the facts; the model stays as it is."""

    def compute_each(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> list[Edit]:
        """For each fact the change that writes it alone."""
        return [self.compute(model, tokenizer, [fact], moments) for fact in facts]

    def edited(self) -> tuple[int, ...]:
        """The layers that are written, whose moments the method may need."""
        return tuple(getattr(self, "layers", ()))

    def resolved(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> "Method":
        """The same with everything written down that the model had to make up."""
        return self

    def check(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        moments: Moments,
    ) -> None:
        """Refuse, before any work, what the method cannot do.

        Raises:
            ValueError: if a layer or its moment is missing or unfit, or, in methods
                that say so, the facts cannot be written.
        """
        layers = [check_layer(model, layer) for layer in self.edited()]
        for layer in layers:
            name = architecture_of(model).write(layer)
            in_memory(name, oriented(submodule(model, name)))
        if self.needs_moments:
            check_moments(model, moments, layers, method=type(self).__name__)
            self._check_past(moments, layers)
        for layer in layers if self.needs_moments and self.inverts else ():
            _ = moments[layer].factor  # computed once, and needed in any case

    def _check_past(self, moments: Moments, layers: Sequence[int]) -> None:
        """Earlier keys are not ignored in silence."""
        for layer in () if self.remembers else layers:
            past = moments[layer].past
            if past is not None:
                raise ValueError(
                    f"moments[{layer}] remembers {past.shape[1]} earlier keys, which "
                    f"{type(self).__name__} would not spare. Use AlphaEdit or ENCORE, "
                    "or give the moments as they were measured."
                )

    @property
    def citation(self) -> str:
        """BibTeX of the paper that introduced the method."""
        return inspect.cleandoc(self.bibtex)

    @classmethod
    def preset(cls, model: str) -> "Method":
        """The published settings for a model, by its name.

        Raises:
            ValueError: if there are none; lists the names that have some.
        """
        row = preset_row(cls.__name__, model)
        if "search" in row:
            usual = write(cls().search)  # type: ignore[attr-defined,call-arg]
            contexts = usual["contexts"] | row["search"].get("contexts", {})
            row["search"] = usual | row["search"] | {"contexts": contexts}
        return read(cls, row)

    @classmethod
    def named(cls, name: str) -> "type[Method]":
        """The kind of method with this name; case and hyphens do not matter.

        Raises:
            ValueError: if there is none; lists those there are.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be text such as 'ROME'; got {shown(name)}.")
        known = {kind.__name__: kind for kind in _concrete(Method)}
        plain = {_plain(full): kind for full, kind in known.items()}
        if _plain(name) not in plain:
            near = difflib.get_close_matches(_plain(name), plain, n=1)
            hint = f" Did you mean {plain[near[0]].__name__!r}?" if near else ""
            raise ValueError(
                f"No method {name!r}.{hint} Known: {', '.join(sorted(known))}."
            )
        return plain[_plain(name)]

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain values, for JSON."""
        return {"method": type(self).__name__} | write(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Method":
        """The method that `to_dict` described.

        Raises:
            TypeError: if the data are not a mapping, or a value has the wrong type.
            ValueError: if the method or a setting is unknown.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"A method needs names and values; got {shown(data)}.")
        known = {kind.__name__: kind for kind in _concrete(Method)}
        name = data.get("method", cls.__name__)
        if name not in known or not issubclass(known[name], cls):
            raise ValueError(f"No method {name!r}. Known: {', '.join(sorted(known))}.")
        settings = {key: value for key, value in data.items() if key != "method"}
        return read(known[name], settings)


def _concrete(kind: type[Method]) -> list[type[Method]]:
    below = [found for child in kind.__subclasses__() for found in _concrete(child)]
    return below if inspect.isabstract(kind) else [kind, *below]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
