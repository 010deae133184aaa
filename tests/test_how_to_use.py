"""The page on how to use the book: no chapter is left out, the minutes are true."""

import re

import pytest

from scripts import make_notation

PAGES = make_notation.pages()
PLACES = make_notation.places(PAGES)
PAGE = next(text for path, text in PAGES.items() if path.stem == "how-to-use")
CHAPTERS = {
    path for path in PAGES if path.suffix == ".ipynb" and path.stem != "how-to-use"
}
WAYS = {
    way.partition("\n")[0].strip(): way.partition("\n::::")[0]
    for way in PAGE.partition("\n(sec-field-map)=")[0].split(":::{tab-item}")[1:]
}


def linked(text: str) -> list[str]:
    """Labels that a text links to."""
    return re.findall(r"\{ref\}`(?:[^<`]+<)?([\w-]+)>?`", text)


def alone(page: str) -> int:
    """Minutes of a chapter without its exercises, as it says itself."""
    return int(re.search(r"(\d+) without the exercises", page)[1])


def test_there_are_three_ways_and_each_says_what_one_can_do_then():
    assert list(WAYS) == ["An hour", "A day", "A semester"]
    for way in WAYS.values():
        assert "*Afterwards you can*" in way


@pytest.mark.parametrize("label", sorted(set(linked(PAGE))))
def test_every_section_that_is_linked_is_there(label):
    assert label in PLACES or label.startswith("ex-")


@pytest.mark.parametrize("label", re.findall(r"\{ref\}`(sec-[\w-]+)`", PAGE))
def test_links_without_words_lead_to_titles(label):
    """A label in front of a paragraph has no title that could be shown."""
    page = PAGES[PLACES[label]]
    assert re.search(rf"^\({label}\)=\n+#", page, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(CHAPTERS), ids=lambda path: path.stem)
def test_a_semester_leaves_no_chapter_out(path):
    """A new chapter gets a row in the table of the semester."""
    assert path in {PLACES.get(label) for label in linked(WAYS["A semester"])}


def test_the_minutes_of_the_day_are_those_of_the_chapters():
    rows = re.findall(r"\{ref\}`([\w-]+)` \| (\d+) \|", WAYS["A day"])
    assert len(rows) >= 8
    told = {label: int(minutes) for label, minutes in rows}
    assert told == {label: alone(PAGES[PLACES[label]]) for label in told}
    assert 240 <= sum(told.values()) <= 360


def test_the_hour_is_an_hour_at_most():
    minutes = re.findall(r"\((\d+) minutes\)", WAYS["An hour"])
    assert len(minutes) >= 3
    assert 30 <= sum(map(int, minutes)) <= 60


def test_the_map_has_the_methods_of_the_package():
    table = PAGE.partition("The same in words")[2].partition("\n(sec-setup)=")[0]
    for method in ("ROME", "MEMIT", "EMMET", "MEND", "AlphaEdit", "ENCORE", "FT-L"):
        assert method in table
