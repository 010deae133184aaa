"""A workbench for live notebooks: choose a fact, trace it, rewrite it, look, undo.

It only shows what other modules compute, and needs a running kernel; on a static page
there are `frames` and `explorers` instead. Needs the package ipywidgets.
"""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import n_layers
from edutools.batch import EMMET, MEMIT
from edutools.change import Edit
from edutools.checks import several
from edutools.facts import Case, Fact
from edutools.method import Method
from edutools.methods import edit
from edutools.moments import second_moment
from edutools.plots import trace_heatmap
from edutools.rome import ROME
from edutools.scoring import score
from edutools.secondmoment import SecondMoment
from edutools.tracing import causal_trace

__all__ = ["Workbench", "workbench"]

HEAD = ("text", "answer", "unedited", "edited")
KINDS = {"hidden states": "hidden", "MLP outputs": "mlp", "attention": "attention"}
Table = list[tuple[str, str, float]]  # what was asked, which answer, its probability


def at_layer(method: Method, layer: int) -> Method:
    """The same method at one layer; methods that have no choice stay as they are."""
    if hasattr(method, "layer"):
        return replace(method, layer=layer)  # type: ignore[type-var]
    if hasattr(method, "layers"):
        return replace(method, layers=(layer,))  # type: ignore[type-var]
    return method


def questions(case: Case, fact: Fact, *, most: int = 3) -> list[tuple[str, str]]:
    """What is asked before and after an edit: texts, each with an answer to look for.

    The fact itself and its paraphrases with both answers, and neighbors, whose answer
    shall stay, with the true one.
    """
    answers = [fact.target, *([fact.truth] if fact.truth else [])]
    about = [fact.text, *case.paraphrases[:most]]
    stay = [(text, fact.truth) for text in case.neighborhood[:most] if fact.truth]
    return [(text, answer) for text in about for answer in answers] + stay


def probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[str, str]],
) -> Table:
    """P[answer | text] of each pair, all tokens of the answer together."""
    texts, answers = [text for text, _ in asked], [answer for _, answer in asked]
    p = score(model, tokenizer, texts, answers).joint.exp()
    return [(*pair, float(value)) for pair, value in zip(asked, p, strict=True)]


@dataclass(eq=False, repr=False)
class Workbench:
    """Controls around a model. Made by `workbench`; shown as a cell's last value.

    Attributes:
        case: which fact; its texts are asked before and after an edit.
        target: what the model shall say instead; free text.
        method: how it is written.
        layer: where; methods that learned their layers ignore it.
        kind: what a trace restores.
        status: what was done last, or why it could not be.
        table: HTML of the probabilities, unedited and edited.
        picture: HTML of the last trace.
        edit: the edit that is applied now, or None.

    Book: sec-workbench
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    cases: Sequence[Case]
    methods: Mapping[str, Method]
    moments: dict[int, SecondMoment]
    texts: Sequence[str]
    edit: Edit | None = None
    _undo: Callable[[], None] | None = None
    _before: Table = field(default_factory=list)

    def __post_init__(self) -> None:
        first = next(iter(self.methods.values()))
        layers = first.edited()
        last = n_layers(self.model) - 1
        names = [(f"{c.fact.text} …", i) for i, c in enumerate(self.cases)]
        self.case = ipywidgets.Dropdown(options=names, description="fact")
        self.target = ipywidgets.Text(description="shall be")
        self.method = ipywidgets.Dropdown(options=list(self.methods), description="by")
        self.layer = ipywidgets.IntSlider(
            value=layers[-1] if layers else 0, min=0, max=last, description="layer"
        )
        self.kind = ipywidgets.Dropdown(options=list(KINDS.items()), description="of")
        self.status, self.table, self.picture = (ipywidgets.HTML() for _ in range(3))
        self.buttons = {
            name: ipywidgets.Button(description=name)
            for name in ("Trace", "Edit", "Undo")
        }
        for name, button in self.buttons.items():
            act = {"Trace": self.trace, "Edit": self.write, "Undo": self.undo}[name]
            button.on_click(lambda _button, act=act: self._tried(act))
        self.case.observe(lambda _change: self._tried(self.choose), names="value")
        self.choose()

    @property
    def box(self) -> ipywidgets.VBox:
        """All controls, laid out."""
        row = ipywidgets.HBox
        return ipywidgets.VBox(
            [
                row([self.case, self.target]),
                row([self.kind, self.buttons["Trace"]]),
                row([self.method, self.layer, *list(self.buttons.values())[1:]]),
                self.status,
                row([self.table, self.picture]),
            ]
        )

    @property
    def chosen(self) -> Case:
        """The case that is looked at."""
        return self.cases[self.case.index or 0]

    @property
    def fact(self) -> Fact:
        """What would be written now.

        Raises:
            ValueError: if the target is empty.
        """
        return replace(self.chosen.fact, target=str(self.target.value))

    def choose(self) -> None:
        """Go back to the unedited model and ask it about the chosen fact."""
        self.undo()
        self.target.value = self.chosen.fact.target
        self.picture.value = ""
        self._ask()
        self.status.value = "Choose, then press a button."

    def trace(self) -> None:
        """Trace the fact in the model as it is now."""
        kind = str(self.kind.value)
        found = causal_trace(self.model, self.tokenizer, self.fact, kind=kind)
        figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        trace_heatmap(found, ax=ax)
        alt = f"Indirect effect by token and layer; total {found.total_effect:.2f}"
        self.picture.value = _image(figure, alt)
        plt.close(figure)
        self.status.value = f"{alt}."

    def write(self) -> None:
        """Write the fact into the unedited model, and ask again.

        Raises:
            TypeError, ValueError, LookupError: as `edutools.edit`.
        """
        self.undo()
        method = self.methods[str(self.method.value)]
        method = at_layer(method, int(self.layer.value or 0))
        method = method.resolved(self.model, self.tokenizer)
        self._ask()
        needed = method.edited() if method.needs_moments else ()
        self._measure([layer for layer in needed if layer not in self.moments])
        change = edit(
            self.model, self.tokenizer, [self.fact], method=method, moments=self.moments
        )
        self._undo = change.apply_(self.model)
        self.edit = change
        self._show(probabilities(self.model, self.tokenizer, self._questions()))
        self.status.value = f"Applied: {html.escape(repr(change))}"

    def undo(self) -> None:
        """Take the edit back, bit for bit."""
        if self._undo is not None:
            self._undo()
            self._undo, self.edit = None, None
            self._show()
        self.status.value = "The model is unedited."

    def _questions(self) -> list[tuple[str, str]]:
        return questions(self.chosen, self.fact)

    def _ask(self) -> None:
        self._before = probabilities(self.model, self.tokenizer, self._questions())
        self._show()

    def _measure(self, layers: Sequence[int]) -> None:
        """Second moments of layers that none were given for."""
        if not layers:
            return
        if not self.texts:
            raise ValueError(
                f"There is no second moment of layer {layers[0]}. Give the workbench "
                "moments= or texts= to measure them on, or choose another layer."
            )
        found = second_moment(
            self.model, self.tokenizer, self.texts, layers=layers, progress=False
        )
        self.moments |= found

    def _show(self, after: Table | None = None) -> None:
        new = [f"{p:.3f}" for *_, p in after] if after else [""] * len(self._before)
        rows = [
            (text, answer, f"{p:.3f}", now)
            for (text, answer, p), now in zip(self._before, new, strict=True)
        ]
        self.table.value = _table(HEAD, rows)

    def _tried(self, act: Callable[[], None]) -> None:
        """Do it; say why not in the status line if it cannot be done."""
        self.status.value = "Working …"
        try:
            act()
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            self.status.value = f"<b>{html.escape(str(error))}</b>"

    def _repr_mimebundle_(self, **given: Any) -> Any:
        return self.box._repr_mimebundle_(**given)


def workbench(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    methods: Mapping[str, Method] | None = None,
    moments: Mapping[int, SecondMoment] | None = None,
    texts: Sequence[str] = (),
) -> Workbench:
    """Controls to trace and edit by hand, in a live notebook.

    Args:
        model: is edited while the workbench shows an edit, and given back by Undo.
        tokenizer: the model's.
        cases: facts to choose from, with the texts that are asked about them.
        methods: by the name that is shown; default: ROME, MEMIT and EMMET with the
            model's presets.
        moments: second moments by layer.
        texts: to measure second moments of other layers on, when they are chosen.

    Raises:
        TypeError: if cases are something else.
        ValueError: if there is no case, no method, or no preset for the model.

    Book: sec-workbench
    """
    cases = several("cases", cases, Case)
    if methods is None:
        name = str(model.name_or_path)
        methods = {kind.__name__: kind.preset(name) for kind in (ROME, MEMIT, EMMET)}
    if not cases or not methods:
        raise ValueError(
            f"The workbench has {len(cases)} cases and {len(methods)} methods; give at "
            "least one of each."
        )
    return Workbench(model, tokenizer, cases, methods, dict(moments or {}), texts)


def _image(figure: Any, alt: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    lines = [row(head, "th"), *(row(cells, "td") for cells in rows)]
    return f"<table>{''.join(lines)}</table>"
