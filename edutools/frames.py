"""Figures with sliders that live on a static page, without a kernel.

Every picture that the sliders can reach is drawn beforehand and put into the page;
a few lines of script show one of them at a time.
"""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

_SCRIPT = """
for (const box of document.querySelectorAll(".edu-frames:not([data-ready])")) {
  box.dataset.ready = "yes";
  const images = [...box.querySelectorAll("img")];
  const sliders = [...box.querySelectorAll("input")];
  const show = () => {
    let at = 0;
    for (const slider of sliders) {
      at = at * (Number(slider.max) + 1) + Number(slider.value);
      const word = JSON.parse(slider.dataset.labels)[slider.value];
      slider.setAttribute("aria-valuetext", word);
      slider.nextElementSibling.textContent = word;
    }
    images.forEach((image, i) => { image.style.display = i === at ? "" : "none"; });
  };
  for (const slider of sliders) slider.addEventListener("input", show);
  show();
}
"""


@dataclass(frozen=True)
class Frames:
    """Pictures of one size, of which sliders choose the one to be seen.

    In a notebook and on a built page it shows itself. Made by `frames`.

    Args:
        title: what the figure is about; read aloud as the name of the group.
        axes: one slider each, as (name, words for its positions).
        images: a data URI for each combination of positions, the last axis fastest.
        alts: what each picture shows, in words.
        start: number of the picture that is seen first.

    Book: sec-figures
    """

    title: str
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    images: tuple[str, ...] = field(repr=False)
    alts: tuple[str, ...] = field(repr=False)
    start: int = 0

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.images)

    def __repr__(self) -> str:
        """Name the figure and its sliders; the same text in every run."""
        sliders = "; ".join(f"{name}: {', '.join(words)}" for name, words in self.axes)
        return f"Frames({self.title!r}, {len(self)} pictures, {sliders})"

    def _repr_html_(self) -> str:
        pictures = "".join(
            f'<img src="{uri}" alt="{html.escape(alt)}" '
            f'style="max-width:100%{"" if i == self.start else ";display:none"}">'
            for i, (uri, alt) in enumerate(zip(self.images, self.alts, strict=True))
        )
        sizes = [len(words) for _, words in self.axes]
        sliders = "".join(
            _slider(name, words, at)
            for (name, words), at in zip(
                self.axes, _positions(self.start, sizes), strict=True
            )
        )
        return (
            f'<div class="edu-frames" role="group" '
            f'aria-label="{html.escape(self.title)}">'
            f"<p><strong>{html.escape(self.title)}</strong></p>"
            f"<div>{pictures}</div>{sliders}<script>{_SCRIPT}</script></div>"
        )


def frames(
    figures: Sequence[Any],
    labels: Sequence[object] | Mapping[str, Sequence[object]],
    *,
    title: str,
    alt: str | Sequence[str],
    start: int = 0,
) -> Frames:
    """Join pictures into one figure with a slider for each axis of `labels`.

    Works where nothing runs: on a built page, in a saved notebook, on a slide. Where
    a kernel is at hand and the pictures are too many to draw beforehand, use a widget.

    Args:
        figures: matplotlib figures (stored as PNG and closed) or SVG texts. One for
            each combination of positions, the last axis of `labels` fastest.
        labels: words for the positions of the one slider, or axis name to words.
        title: what the figure is about.
        alt: what the pictures show, in words: one text for each picture, or one for
            all, to which the positions of the sliders are added.
        start: number of the picture that is seen first.

    Returns:
        The figure; the same input gives the same HTML.

    Raises:
        ValueError: if the numbers of pictures, labels and texts do not fit, or
            `start` names no picture.
        TypeError: if a picture is neither a matplotlib figure nor SVG text.

    Book: sec-figures

    >>> dot = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    >>> frames([dot] * 6, {"layer": [0, 1, 2], "kind": ["mlp", "attention"]},
    ...        title="Effect", alt="Effect of restoring one state")
    Frames('Effect', 6 pictures, layer: 0, 1, 2; kind: mlp, attention)
    """
    named = labels if isinstance(labels, Mapping) else {"step": labels}
    axes = tuple((name, tuple(str(word) for word in named[name])) for name in named)
    wanted = math.prod(len(words) for _, words in axes)
    if not wanted or len(figures) != wanted:
        sizes = " x ".join(str(len(words)) for _, words in axes)
        raise ValueError(
            f"frames got {len(figures)} pictures for {sizes} = {wanted} positions of "
            "its sliders; give one picture for each combination, the last axis fastest."
        )
    if not 0 <= start < wanted:
        raise ValueError(
            f"start={start} names no picture; there are {wanted}, counted from 0."
        )
    return Frames(
        title=title,
        axes=axes,
        images=tuple(_data_uri(figure) for figure in figures),
        alts=_alts(alt, axes, wanted),
        start=start,
    )


def _alts(
    alt: str | Sequence[str], axes: tuple[tuple[str, tuple[str, ...]], ...], wanted: int
) -> tuple[str, ...]:
    if not isinstance(alt, str):
        if len(alt) != wanted:
            raise ValueError(
                f"alt holds {len(alt)} texts for {wanted} pictures; give one for each, "
                "or one text for all."
            )
        return tuple(alt)
    names = [name for name, _ in axes]
    return tuple(
        f"{alt} ({', '.join(f'{n} {w}' for n, w in zip(names, words, strict=True))})"
        for words in product(*(words for _, words in axes))
    )


def _data_uri(figure: Any) -> str:
    if isinstance(figure, str) and figure.lstrip().startswith(("<svg", "<?xml")):
        kind, data = "svg+xml", figure.encode()
    elif hasattr(figure, "savefig"):
        kind, data = "png", _png(figure)
    else:
        raise TypeError(
            f"frames takes matplotlib figures or SVG texts; got {figure!r:.60}."
        )
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")  # no label is cut; the size stays
    buffer = io.BytesIO()
    # Without the name of the library's version the bytes depend on the picture only.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    pyplot.close(figure)  # otherwise the notebook would show it once more
    return buffer.getvalue()


def _positions(index: int, sizes: Sequence[int]) -> list[int]:
    positions = []
    for size in reversed(sizes):
        index, at = divmod(index, size)
        positions.append(at)
    return positions[::-1]


def _slider(name: str, words: tuple[str, ...], at: int) -> str:
    return (
        f'<p><label>{html.escape(name)} <input type="range" min="0" '
        f'max="{len(words) - 1}" value="{at}" step="1" '
        f'aria-label="{html.escape(name)}" aria-valuetext="{html.escape(words[at])}" '
        f'data-labels="{html.escape(json.dumps(words))}"> '
        f"<output>{html.escape(words[at])}</output></label></p>"
    )
