"""The glossary: for every term two languages, a definition, and a way to a section."""

import re

import pytest

from scripts import make_notation

PAGES = make_notation.pages()
PLACES = make_notation.places(PAGES)
GLOSSARY = make_notation.BOOK / "glossary.md"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def entries(page: str) -> list[tuple[str, str, str]]:
    """English term, Chinese term and definition of each entry."""
    found = []
    for block in re.findall(r"`{3}\{glossary\}\n(.*?)`{3}\n", page, re.DOTALL):
        for entry in re.split(r"\n{2,}", block.strip()):
            lines = entry.splitlines()
            terms = [line for line in lines if not line.startswith(" ")]
            told = " ".join(line.strip() for line in lines if line.startswith(" "))
            found.append((terms[0], " ".join(terms[1:]), told))
    return found


ENTRIES = entries(GLOSSARY.read_text(encoding="utf-8"))


def test_there_are_terms_and_none_is_there_twice():
    terms = [english.lower() for english, _, _ in ENTRIES]
    assert len(terms) >= 100
    assert len(set(terms)) == len(terms)
    chinese = [term for _, term, _ in ENTRIES]
    assert len(set(chinese)) == len(chinese)


@pytest.mark.parametrize(("english", "chinese", "told"), ENTRIES)
def test_every_term_has_its_parts(english, chinese, told):
    assert not CHINESE.search(english)
    assert CHINESE.search(chinese)
    definition = told.partition(" See {ref}")[0]
    assert 3 <= len(definition.split()) <= 60
    links = re.findall(r"\{ref\}`([^<`]+) <([\w-]+)>`", told)
    assert links
    for name, label in links:
        assert label in PLACES
        assert name == make_notation.title(PAGES[PLACES[label]])


def test_terms_are_in_order_within_a_theme():
    page = GLOSSARY.read_text(encoding="utf-8")
    for theme in page.split("\n## ")[1:]:
        terms = [english.lower() for english, _, _ in entries(theme + "\n")]
        assert terms == sorted(terms)


def test_terms_that_pages_use_are_there():
    known = {
        term.lower() for english, chinese, _ in ENTRIES for term in (english, chinese)
    }
    used = [
        (path.name, (target or name).strip().lower())
        for path, page in PAGES.items()
        for name, target in re.findall(r"\{term\}`([^<`]+?)(?:<([^>`]+)>)?`", page)
    ]
    assert used
    assert [(page, term) for page, term in used if term not in known] == []


def test_entries_are_read_as_they_are_written():
    entry = "a b\n字\n  One two\n  three. See {ref}`X <y>`.\n\nc\n典\n  D.\n"
    page = "```{glossary}\n" + entry + "```\n"
    assert entries(page) == [
        ("a b", "字", "One two three. See {ref}`X <y>`."),
        ("c", "典", "D."),
    ]
