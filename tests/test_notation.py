"""The page of notation: made of its table, true to the code and to the chapters."""

import dataclasses
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from scripts import make_notation

PAGES = make_notation.pages()
PLACES = make_notation.places(PAGES)
ROWS = [row for group in make_notation.groups() for row in group["rows"]]
SYMBOLS = [(tex, row["section"]) for row in ROWS for tex in row["tex"]]
CHAPTERS = [path for path in PAGES if path.suffix == ".ipynb"]

DISPLAY = r"`{3}\{math\}\n(.*?)\n`{3}|\$\$(.*?)\$\$"
INLINE = r"(?<![\\$])\$([^$]+)\$"
WORDS = r"\\(?:text|mathrm|operatorname|label|begin|end)\*?\s*\{[^}]*\}"
ALPHABETS = r"\\math(?:bb|cal)\s*(?:\{\w\}|\w)"
TOKEN = re.compile(rf"{WORDS}|{ALPHABETS}|\\[A-Za-z]+|\\.|\S")
SPACES = {r"\,", r"\;", r"\!", r"\:", r"\quad", r"\qquad", r"\big", r"\Big"}
SIZES = {r"\left", r"\right", r"\bigl", r"\bigr"}
NORM = ["_", "F"]  # of Frobenius, in a table row as a whole


def tokens(tex: str) -> list[str]:
    """The signs of a formula without spaces and without braces around single ones."""
    found = [t for t in TOKEN.findall(tex) if t not in SPACES | SIZES]
    single: list[str] = []
    for token in found:
        single.append(token)
        if token == "}" and len(single) > 2 and single[-3] == "{":
            single[-3:] = [single[-2]]
    return single


def contains(formula: list[str], wanted: list[str]) -> bool:
    """Whether the signs stand side by side somewhere."""
    n = len(wanted)
    return any(formula[i : i + n] == wanted for i in range(len(formula) - n + 1))


def formulas(text: str) -> Iterator[list[str]]:
    """All formulas of a page, displayed or in a line."""
    for first, second in re.findall(DISPLAY, text, re.DOTALL):
        yield tokens(re.sub(r"^:label:.*", "", first) or second)
    for inside in re.findall(INLINE, re.sub(DISPLAY, "", text, flags=re.DOTALL)):
        yield tokens(inside)


def capitals(text: str) -> set[str]:
    """Latin capitals and Greek ones that stand for something in displayed equations."""
    greek = {r"\Delta", r"\Lambda", r"\Sigma", r"\Theta", r"\Phi", r"\Omega"}
    found: set[str] = set()
    for first, second in re.findall(DISPLAY, text, re.DOTALL):
        signs = tokens(re.sub(r"^:label:.*", "", first) or second)
        pairs = zip(["", *signs], signs, strict=False)
        found |= {
            sign
            for before, sign in pairs
            if (len(sign) == 1 and sign.isupper() and [before, sign] != NORM)
            or sign in greek
        }
    return found


def test_the_page_is_what_the_table_makes():
    assert make_notation.PAGE.read_text(encoding="utf-8") == make_notation.page()
    assert make_notation.main(["--check"]) == 0


def test_a_page_that_was_changed_by_hand_is_noticed(tmp_path, monkeypatch, capsys):
    other = tmp_path / "notation.md"
    other.write_text(make_notation.page() + "More.\n", encoding="utf-8")
    monkeypatch.setattr(make_notation, "PAGE", other)
    assert make_notation.main(["--check"]) == 1
    assert "notation.md is not what its table makes" in capsys.readouterr().out
    assert make_notation.main([]) == make_notation.main(["--check"]) == 0


def test_a_section_that_nobody_wrote_is_refused(tmp_path, monkeypatch):
    table = [{"title": "A", "rows": [{**ROWS[0], "section": "sec-nowhere"}]}]
    monkeypatch.setattr(make_notation, "groups", lambda: table)
    with pytest.raises(SystemExit, match="sec-nowhere, which no page"):
        make_notation.page()


@pytest.mark.parametrize("path", sorted({path for row in ROWS for path in row["code"]}))
def test_names_in_the_code_exist(path):
    module, owner, name = path.split(".")
    thing = getattr(importlib.import_module(f"edutools.{module}"), owner)
    if inspect.isclass(thing):
        fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        assert name in {field.name for field in fields} or hasattr(thing, name)
    else:
        assert name in inspect.signature(thing).parameters


@pytest.mark.parametrize(("tex", "section"), SYMBOLS)
def test_symbols_are_used_in_the_chapter_that_is_named(tex, section):
    wanted = tokens(tex)
    page = PAGES[PLACES[section]]
    assert any(contains(formula, wanted) for formula in formulas(page))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_matrices_of_displayed_equations_are_in_the_table(path):
    known = {sign for tex, _ in SYMBOLS for sign in tokens(tex)}
    assert capitals(PAGES[path]) - known == set()


def test_the_table_has_what_the_closed_forms_take():
    named = {path.split(".")[-1] for row in ROWS for path in row["code"]}
    assert {"W", "K", "V", "C", "lam", "ridge", "k", "v"} <= named
    assert len(SYMBOLS) >= 80


def test_no_symbol_is_there_twice_without_a_word():
    counted = Counter(tex for tex, _ in SYMBOLS)
    twice = {tex for tex, count in counted.items() if count > 1}
    assert twice
    for row in ROWS:
        if twice & set(row["tex"]):
            assert "(In " in row["meaning"]


# the instruments themselves


def test_formulas_are_cut_into_signs():
    assert tokens(r"\hat C_{N} \,+ d_{\text{in}}") == [
        *(r"\hat", "C", "_", "N", "+"),
        *("d", "_", r"\text{in}"),
    ]
    assert tokens(r"\mathbb R^{n}") == [r"\mathbb R", "^", "n"]
    assert contains(tokens(r"v = W k_*"), tokens("k_*"))
    assert not contains(tokens(r"\min_x"), tokens("n"))


def test_capitals_are_found_where_they_stand_for_something():
    text = (
        "```{math}\n:label: eq-Q\n\\|A\\|_F + \\text{B} \\mathbb R \\Delta C^{X}\n```"
    )
    assert capitals(f"{text}\n\n$$\nM\n$$ and $Z$") == {
        *("A", "C", "M", "X"),
        r"\Delta",
    }
    assert list(formulas("a $Z_1$ b"))[-1] == ["Z", "_", "1"]
