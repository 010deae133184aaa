"""The built site: nothing dead, raw, foreign or silent, and checks that can fail."""

import pytest

from scripts import check_site

PAGE = """<html><head><link rel="stylesheet" href="_static/own.css">
<link rel="canonical" href="https://example.org/"></head>
<body><article id="top"><h1>Title</h1><p>{filler}</p>
<a href="https://example.org/">A reader may follow this</a><a href="#top">Up</a>
<pre>:::{{note}} in code</pre>{more}</article></body></html>"""


@pytest.fixture(scope="module")
def site(pages):
    return check_site.Site(pages)


@pytest.mark.parametrize("check", check_site.CHECKS, ids=lambda check: check.__name__)
def test_the_book_has_none(site, check):
    assert list(check(site)) == []


def test_every_listed_page_was_built(site):
    wanted = {
        path.relative_to(check_site.ROOT).with_suffix(".html").as_posix()
        for path in check_site.listed()
    }
    assert wanted <= {site.name(path) for path in site.pages}


def write(folder, more="", filler="word " * 30):
    (folder / "_static").mkdir(exist_ok=True)
    (folder / "book").mkdir(exist_ok=True)
    (folder / "_static" / "own.css").write_text("p { color: red }")
    for name in ("index.html", "search.html", "searchindex.js"):
        (folder / name).write_text("<html></html>")
    page = PAGE.format(more=more, filler=filler).replace("_static", "../_static")
    (folder / "book" / "intro.html").write_text(page)
    return check_site.Site(folder)


def test_a_sound_site_gives_no_complaint(tmp_path):
    site = write(tmp_path)
    assert [c for check in check_site.CHECKS for c in check(site)] == []


@pytest.mark.parametrize(
    ("check", "more", "complaint"),
    [
        ("dead_links", '<a href="gone.html">x</a>', "gone.html is not there"),
        ("dead_links", '<a href="#gone">x</a>', "#gone names no place"),
        ("dead_links", '<img src="gone.png" alt="x y">', "gone.png is not there"),
        ("foreign_files", '<script src="https://cdn.org/x.js"></script>', "cdn.org"),
        ("foreign_files", '<img src="//cdn.org/x.png" alt="x">', "cdn.org"),
        ("raw_markup", "<p>:::{note}\nText\n:::</p>", "a directive is shown raw"),
        ("raw_markup", "<p>See {eq}`one`</p>", "a role is shown raw"),
        ("raw_markup", "<p>\n(sec-one)=\n</p>", "a label is shown raw"),
        ("raw_markup", "<p>$$x$$</p>", "display math is shown raw"),
        ("silent_pictures", '<img src="data:image/png;base64,AA">', "no alt text"),
        ("silent_pictures", '<img src="a/b.png" alt="b.png">', "no alt text"),
    ],
)
def test_complaints(tmp_path, check, more, complaint):
    found = list(getattr(check_site, check)(write(tmp_path, more)))
    assert any(complaint in text for text in found), found


def test_foreign_files_of_style_sheets_are_named(tmp_path):
    site = write(tmp_path)
    sheet = tmp_path / "_static" / "own.css"
    sheet.write_text("@import url(https://fonts.org/a); p { x: url('//b.org/c') }")
    assert len(list(check_site.foreign_files(site))) == 2


def test_an_empty_build_is_named(tmp_path):
    assert "index.html was not built" in list(
        check_site.missing_pages(check_site.Site(tmp_path))
    )
    (found,) = check_site.missing_pages(write(tmp_path, filler="few"))
    assert "hardly any text" in found


def test_the_command_fails_on_complaints(tmp_path, capsys):
    write(tmp_path, more='<a href="gone.html">x</a>')
    assert check_site.main([str(tmp_path)]) == 1
    assert "1 complaints" in capsys.readouterr().out
    write(tmp_path)
    assert check_site.main([str(tmp_path)]) == 0
