"""Decks of slides made from built pages."""

import pytest
from bs4 import BeautifulSoup

from scripts import make_slides

PAGE = """<html><head><link rel="stylesheet" href="../_static/proof.css">
<link rel="stylesheet" href="../_static/styles/theme.css">
<script>window.MathJax = {{}}</script><script src="../_static/mathjax.js"></script>
<script src="../_static/other.js"></script></head><body><article><section id="t">
<h1>Title<a class="headerlink" href="#t">#</a></h1><p>First.</p><p>Second.</p>
<section id="a"><h2>One</h2>{body}</section>
<section id="b"><h2>Two</h2><section id="c"><h3>Deeper</h3><p>Down.</p></section>
</section></section></article></body></html>"""


def deck(body: str) -> BeautifulSoup:
    page = BeautifulSoup(PAGE.format(body=body), "html.parser")
    return BeautifulSoup(make_slides.deck(page, "../_static"), "html.parser")


def titles(made: BeautifulSoup) -> list[str]:
    return [t.get_text() for t in made.select(".slides h1, .slides h2, .slides h3")]


def test_sections_become_stacks_and_nothing_is_lost():
    made = deck("<p>Text.</p>")
    assert titles(made) == ["Title", "Title", "One", "Two", "Deeper"]
    assert len(made.select(".slides > section")) == 4
    for words in ("First.", "Second.", "Text.", "Down."):
        assert made.get_text().count(words) == 1


def test_what_is_for_readers_only_stays_out():
    made = deck('<p>Ask.</p><div class="solution">42</div><p class="slide-skip">No</p>')
    assert "Ask." in made.get_text()
    assert "42" not in made.get_text()
    assert not made.select(".headerlink, .slide-skip")


def test_notes_go_to_the_speaker_of_the_slide_before():
    made = deck('<p>Seen.</p><div class="notes"><p>Said.</p></div>')
    (notes,) = made.select("aside.notes")
    assert notes.get_text() == "Said."
    assert "Seen." in notes.parent.get_text()


def test_long_sections_are_spread_over_slides_in_order():
    made = deck("".join(f"<p>{i} {'word ' * 60}</p>" for i in range(9)))
    slides = [s for s in made.select("section section") if s.h2 and s.h2.text == "One"]
    assert len(slides) > 2
    numbers = [int(p.get_text().split()[0]) for slide in slides for p in slide("p")]
    assert numbers == list(range(9))


@pytest.mark.parametrize(("lines", "slides"), [(3, 1), (16, 2)])
def test_a_long_cell_is_parted_into_code_and_output(lines, slides):
    code = "<pre>" + "x = 1\n" * lines + "</pre>"
    cell = f'<div class="cell"><div>{code}</div><div><img src="a.png"></div></div>'
    made = deck(cell)
    assert titles(made).count("One") == slides


def test_a_deck_asks_for_its_own_files_only():
    made = deck("<p>Text.</p>")
    scripts = [s["src"] for s in made("script") if s.get("src")]
    assert "../_static/mathjax.js" in scripts
    assert "../_static/other.js" not in scripts
    sheets = [link["href"] for link in made("link")]
    assert "../_static/proof.css" in sheets
    assert "../_static/styles/theme.css" not in sheets
    assert not [name for name in scripts + sheets if "//" in name.lstrip("./")]


def test_a_page_without_sections_is_refused():
    page = BeautifulSoup("<html><body></body></html>", "html.parser")
    with pytest.raises(ValueError, match="holds no section"):
        make_slides.deck(page, "")


def test_without_a_built_book_the_command_says_what_to_do(tmp_path, capsys):
    assert make_slides.main([str(tmp_path)]) == 1
    assert "Run `make book` first" in capsys.readouterr().out


def test_links_to_places_that_are_not_on_the_slides_lead_to_the_page():
    made = '<p id="here"><a href="#here">a</a> <a href="#there">b</a></p>'
    assert make_slides.reaching(made, "page.html") == (
        '<p id="here"><a href="#here">a</a> <a href="page.html#there">b</a></p>'
    )
