"""Frames: what is put into the page, and what is refused."""

import base64
import re

import pytest
from matplotlib import pyplot as plt

from edutools.frames import frames

DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="9"/>'
DOTS = [DOT.format(i) for i in range(1, 7)]
AXES = {"layer": [0, 1, 2], "kind": ["mlp", "attention"]}


def test_one_picture_is_seen_and_every_picture_is_there():
    figure = frames(DOTS, range(6), title="Dots", alt="A dot", start=2)
    text = figure._repr_html_()
    images = re.findall(r"<img .*?>", text)
    assert len(figure) == len(images) == 6
    assert ["display:none" not in image for image in images] == [
        i == 2 for i in range(6)
    ]
    stored = [base64.b64decode(re.search('base64,([^"]*)', i)[1]) for i in images]
    assert [s.decode() for s in stored] == DOTS


def test_sliders_of_a_grid_stand_where_the_first_picture_is():
    text = frames(DOTS, AXES, title="Dots", alt="A dot", start=5)._repr_html_()
    assert re.findall(r'max="(\d)" value="(\d)"', text) == [("2", "2"), ("1", "1")]
    assert re.findall(r"<output>(.*?)</output>", text) == ["2", "attention"]


def test_every_picture_says_in_words_what_it_shows():
    figure = frames(DOTS, AXES, title="Dots", alt="A dot")
    assert figure.alts[3] == "A dot (layer 1, kind attention)"
    assert len(set(figure.alts)) == 6
    texts = list("abcdef")
    assert frames(DOTS, AXES, title="Dots", alt=texts).alts == tuple(texts)


def test_words_cannot_break_out_of_the_page():
    words = ['"><script>alert(1)</script>', "b"]
    text = frames(DOTS[:2], words, title="<b>", alt='"<')._repr_html_()
    assert text.count("<script>") == 1
    assert "<b>" not in text


def test_repr_is_short_and_the_same_in_every_run():
    figure = frames(DOTS, AXES, title="Dots", alt="A dot")
    assert repr(figure) == (
        "Frames('Dots', 6 pictures, layer: 0, 1, 2; kind: mlp, attention)"
    )


def draw():
    figure, ax = plt.subplots(figsize=(2, 1))
    _ = ax.plot([0, 1])
    return figure


def test_matplotlib_figures_become_equal_bytes_and_are_closed():
    before = plt.get_fignums()
    first, second = (
        frames([draw(), draw()], "ab", title="Line", alt="A line") for _ in range(2)
    )
    assert first == second
    assert first.images[0].startswith("data:image/png;base64,")
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"labels": [1, 2]}, ValueError, "6 pictures for 2 = 2 positions"),
        ({"labels": {"a": [1, 2], "b": [1]}}, ValueError, "for 2 x 1 = 2 positions"),
        ({"figures": [], "labels": []}, ValueError, "0 pictures"),
        ({"start": 6}, ValueError, "start=6 names no picture; there are 6"),
        ({"start": -1}, ValueError, "start=-1 names no picture"),
        ({"alt": ["one"]}, ValueError, "alt holds 1 texts for 6 pictures"),
        ({"figures": [*DOTS[:5], "dot.png"]}, TypeError, "got 'dot.png'"),
    ],
)
def test_refuses(change, kind, words):
    given = {"figures": DOTS, "labels": AXES, "title": "Dots", "alt": "A dot"} | change
    with pytest.raises(kind, match=words):
        frames(given.pop("figures"), given.pop("labels"), **given)
