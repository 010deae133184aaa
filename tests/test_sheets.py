"""Exercise sheets, and what is printed: the right things on them, nothing raw."""

import io
import re

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader, PdfWriter

from scripts import make_pdf, make_sheets
from scripts.check_site import ROOT, contents, listed
from scripts.make_pdf import linked

PAGE = """<html><head><title>1. Trace — The book</title>
<link rel="stylesheet" href="../_static/exercise.css">
<link rel="stylesheet" href="../_static/styles/theme.css">
<script>window.MathJax = {{}}</script><script src="../_static/mathjax.js"></script>
</head><body><article><section><h1>1. Trace<a class="headerlink" href="#t">#</a></h1>
<div class="math" id="equation-eq-a">A</div><div class="math" id="equation-eq-b">B</div>
<section><h2>Exercises</h2>
<div class="exercise admonition" id="ex-a"><p>Ask one, see
<a href="#equation-eq-b">(1.2)</a>.</p><div class="cell_input"><pre>def mine</pre></div>
<div class="cell_output">Not yet</div></div>
<div class="solution admonition">Answer one</div><div class="cell">Proof one</div>
<div class="exercise admonition" id="ex-b">Ask two</div>
<div class="solution admonition">Answer two</div><div class="notes">Hush</div>
</section>{more}</section></article></body></html>"""
RAW_TEX = re.compile(r"\\[a-zA-Z]+\b|\\[(\[]|\$\$")


def sheet(*, solved: bool) -> BeautifulSoup:
    page = BeautifulSoup(PAGE.format(more="<p>Elsewhere</p>"), "html.parser")
    made = make_sheets.sheet(page, "../_static", solved=solved)
    return BeautifulSoup(made, "html.parser")


def test_a_sheet_without_solutions_asks_and_does_not_tell():
    text = sheet(solved=False).get_text()
    assert text.index("Ask one") < text.index("def mine") < text.index("Ask two")
    assert "Exercises: 1. Trace" in text
    for words in ("Answer", "Proof", "Not yet", "Hush", "Elsewhere", "#"):
        assert words not in text


def test_a_sheet_with_solutions_has_each_behind_its_question():
    text = sheet(solved=True).get_text()
    order = ["Ask one", "Answer one", "Proof one", "Ask two", "Answer two"]
    assert [text.count(words) for words in order] == [1] * len(order)
    assert sorted(order, key=text.index) == order
    for words in ("Not yet", "Hush", "Elsewhere"):
        assert words not in text


@pytest.mark.parametrize("solved", [False, True])
def test_a_sheet_brings_the_equations_that_it_refers_to(solved):
    made = sheet(solved=solved)
    assert [tag["id"] for tag in made.select("div.math")] == ["equation-eq-b"]


def test_a_sheet_asks_for_its_own_files_only():
    made = sheet(solved=False)
    names = [tag.get("src") or tag.get("href") for tag in made(["script", "link"])]
    assert "../_static/mathjax.js" in names
    assert "../_static/exercise.css" in names
    assert "../_static/styles/theme.css" not in names


def test_a_page_without_exercises_is_refused():
    page = BeautifulSoup("<article><h1>No</h1></article>", "html.parser")
    with pytest.raises(ValueError, match="no exercises"):
        make_sheets.sheet(page, "", solved=True)


def test_without_a_built_book_the_commands_say_what_to_do(tmp_path, capsys):
    for command in (make_sheets, make_pdf):
        assert command.main([str(tmp_path)]) == 1
        assert "Run `make book` first" in capsys.readouterr().out


def test_links_are_put_where_the_file_is(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"")
    mark = '<span class="edu-pdf" data-file="{}.pdf"></span>'
    made = linked(mark.format("a") + mark.format("b"), tmp_path)
    assert made == '<a class="edu-pdf" href="a.pdf">PDF</a>' + mark.format("b")


def chapters(pages):
    """Built pages that hold exercises."""
    for source in sorted(listed()):
        page = pages / source.relative_to(ROOT).with_suffix(".html")
        tree = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        if source.suffix == ".ipynb" and tree.select_one("article .exercise"):
            yield page, tree


def test_every_exercise_of_the_book_is_on_both_sheets_and_solved_on_one(pages):
    count = 0
    for page, tree in chapters(pages):
        wanted = [tag["id"] for tag in tree.select("article .exercise")]
        for kind, solutions in (("exercises", 0), ("solutions", len(wanted))):
            text = page.with_suffix(f".{kind}.html").read_text(encoding="utf-8")
            made = BeautifulSoup(text, "html.parser")
            assert [tag["id"] for tag in made.select(".exercise")] == wanted
            assert len(made.select(".solution")) == solutions, page.name
        count += len(wanted)
    assert count > 50


def test_lecturers_find_every_chapter(pages):
    table = (pages / "book/reference/lecturers.html").read_text(encoding="utf-8")
    for source in contents():
        if source.suffix == ".ipynb":
            assert f"/{source.stem}.slides.html" in table
    for page, _ in chapters(pages):
        for kind in make_sheets.KINDS.values():
            assert f"/{page.stem}.{kind}.html" in table
            assert f'data-file="../{page.parent.name}/{page.stem}.{kind}.pdf"' in table


needs_chromium = pytest.mark.skipif(
    make_pdf.chromium() is None, reason="no Chromium here"
)


def text_of(reader: PdfReader) -> str:
    return "\n".join(page.extract_text() for page in reader.pages)


@needs_chromium
def test_printed_sheets_hold_what_the_sheets_hold(pages):
    page, _ = next(chapters(pages))
    texts = {}
    with make_pdf.browser_page() as browser:
        for kind in make_sheets.KINDS.values():
            make_pdf.opened(browser, page.with_suffix(f".{kind}.html"))
            browser.evaluate(make_pdf.ALONE)
            assert browser.locator("mjx-container").count() > 0
            assert browser.locator("mjx-merror").count() == 0
            reader = PdfReader(io.BytesIO(make_pdf.on_paper(browser)))
            assert 1 <= len(reader.pages) <= 9
            texts[kind] = text_of(reader)
            assert not any("/Annots" in sheet for sheet in reader.pages)
    for number in range(1, 5):
        assert all(f".{number} (" in text for text in texts.values())
    assert "Solution to" in texts["solutions"]
    assert "Solution to" not in texts["exercises"]
    assert len(texts["solutions"]) > len(texts["exercises"])
    assert not any(RAW_TEX.search(text) for text in texts.values())


TWO = """<html><head><title>{title}</title></head><body><article>
<h1>{title}<a class="headerlink" href="#p">#</a></h1>
<p><a href="{other}.html#{place}">go</a> <a href="https://example.org/">out</a>
<a href="source.html">code</a></p><details>Folded</details>
<p style="break-before: page" id="p">Second sheet of {title}</p>
</article></body></html>"""


@needs_chromium
def test_a_bound_book_has_numbers_outline_and_links(tmp_path, monkeypatch):
    (tmp_path / "one.html").write_text(TWO.format(title="One", other="two", place="p"))
    (tmp_path / "two.html").write_text(TWO.format(title="Two", other="one", place="no"))
    sources = {ROOT / "one.md": "", ROOT / "two.ipynb": "Part"}
    monkeypatch.setattr(make_pdf, "contents", lambda: sources)
    with make_pdf.browser_page() as page:
        chapters = make_pdf.print_chapters(page, tmp_path)
        writer = make_pdf.bound(page, chapters)
    assert isinstance(writer, PdfWriter)
    target = io.BytesIO()
    writer.write(target)
    book = PdfReader(target)
    title, contents_page, *sheets = [sheet.extract_text() for sheet in book.pages]
    assert "One" in title
    assert re.search(r"Two\s+3", contents_page)
    assert [sheet.split()[0] for sheet in sheets] == ["1", "2", "3", "4"]
    assert "Folded" in sheets[0]
    assert [entry.title for entry in book.outline[:2]] == ["One", "Part"]
    links = [entry.get_object() for entry in book.pages[2]["/Annots"]]
    goals = [link["/Dest"] for link in links if "/Dest" in link]
    assert book.pages[5].indirect_reference in [goal[0] for goal in goals]
    assert [str(link["/A"]["/URI"]) for link in links if "/A" in link] == [
        "https://example.org/"
    ]
    back = [entry.get_object() for entry in book.pages[4]["/Annots"]]
    assert book.pages[2].indirect_reference in [
        link["/Dest"][0] for link in back if "/Dest" in link
    ]
