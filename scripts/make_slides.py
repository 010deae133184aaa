"""Turn the pages of the built book into decks of slides.

    python -m scripts.make_slides [_build/html]

A deck lies beside its page, so that links, pictures, equation numbers and figures
with sliders are those of the page. What is for readers only stays out (solutions,
folded code, `:::{div} slide-skip`); `:::{div} notes` becomes the speaker's notes.
"""

import re
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path

from bs4 import BeautifulSoup
from bs4.element import Tag

from scripts.check_site import ROOT, listed

SKIPPED = ", ".join(
    [
        ".headerlink",
        ".solution",
        ".slide-skip",
        ".edu-reading-time",
        ".tag_hide-input > .cell_input",
        ".tag_hide-cell",
        "details.hide",
        ".footnotes",
    ]
)
SHEETS = ("pygments", "proof", "exercise", "mystnb", "sphinx-design")
FULL = 1.0

DECK = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{static}/favicon.svg">
<link rel="stylesheet" href="{static}/vendor/reveal/reset.css">
<link rel="stylesheet" href="{static}/vendor/reveal/reveal.css">
<link rel="stylesheet" href="{static}/vendor/reveal/theme/white.css">
{sheets}
<link rel="stylesheet" href="{static}/slides.css">
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="{static}/vendor/reveal/reveal.js"></script>
<script src="{static}/vendor/reveal/plugin/notes/notes.js"></script>
<script>
Reveal.initialize({{
  width: 1100, height: 700, margin: 0.05, center: false,
  hash: true, slideNumber: "c/t", plugins: [RevealNotes],
}});
</script>
{math}
</body>
</html>
"""


def weight(block: Tag) -> float:
    """Estimate how much of a slide a block fills.

    >>> page = BeautifulSoup("<pre>x = 1</pre><img>", "html.parser")
    >>> weight(page.pre) < 0.1 < weight(page.img)
    True
    """
    figures = {"edu-frames", "edu-explorer"}
    if block.name == "img" or figures & set(block.get("class") or []):
        return 0.6
    if block.name == "pre":
        return (block.get_text().rstrip().count("\n") + 2) / 18
    if "math" in (block.get("class") or []) and block.name == "div":
        return 0.1 + 0.07 * block.get_text().count("\\\\")
    if block.name in ("p", "li", "tr", "dt", "dd"):
        return 0.05 + len(block.get_text()) / 900
    return sum(weight(child) for child in block.find_all(True, recursive=False))


def blocks(section: Tag) -> list[Tag]:
    """List what stands in a section itself, without its title and subsections.

    A cell that would fill more than a slide counts as two blocks: code and output.
    """
    found = [
        child
        for child in section.find_all(True, recursive=False)
        if child.name not in ("section", "h1", "h2", "h3", "h4")
    ]
    parted = [
        part
        for block in found
        for part in (
            block.find_all(True, recursive=False)
            if "cell" in (block.get("class") or []) and weight(block) > FULL
            else [block]
        )
    ]
    return [block for block in parted if block.get_text(strip=True) or block.img]


def packed(found: list[Tag]) -> Iterator[list[Tag]]:
    """Fill slides with neighbouring blocks; notes stay with what they follow."""
    slide: list[Tag] = []
    filled = 0.0
    for block in found:
        is_note = "notes" in (block.get("class") or [])
        more = 0.0 if is_note else weight(block)
        if slide and filled + more > FULL:
            yield slide
            slide, filled = [], 0.0
        slide.append(block)
        filled += more
    if slide:
        yield slide


def rendered(title: str, level: str, slide: list[Tag]) -> str:
    """Write one slide."""
    parts = []
    for block in slide:
        if "notes" in (block.get("class") or []):
            parts.append(f'<aside class="notes">{block.decode_contents()}</aside>')
        else:
            parts.append(str(block))
    return f"<section><{level}>{title}</{level}>{''.join(parts)}</section>"


def slides_of(section: Tag) -> list[str]:
    """Write the slides of a section and of the subsections in it."""
    heading = section.find(["h1", "h2", "h3", "h4"], recursive=False)
    title = heading.decode_contents() if heading else ""
    level = heading.name if heading else "h2"
    own = list(packed(blocks(section))) or [[]]
    slides = [rendered(title, level, slide) for slide in own]
    for inner in section.find_all("section", recursive=False):
        slides += slides_of(inner)
    return slides


def deck(page: BeautifulSoup, static: str) -> str:
    """Write the deck of a page; `static` is the way to the shared files.

    Raises:
        ValueError: if the page holds no section with a title.
    """
    article = page.find("article")
    top = article.find("section") if article else None
    if top is None:
        raise ValueError("The page holds no section; only chapters become slides.")
    top = copy(top)
    for tag in top.select(SKIPPED):
        tag.decompose()
    stacks = [[rendered(top.h1.decode_contents(), "h1", blocks(top)[:1])]]
    rest = [rendered(top.h1.get_text(), "h2", s) for s in packed(blocks(top)[1:])]
    stacks += [rest] if rest else []
    stacks += [slides_of(inner) for inner in top.find_all("section", recursive=False)]
    sheets = [
        str(link)
        for link in page.find_all("link", rel="stylesheet")
        if any(f"/{name}" in link["href"] for name in SHEETS)
    ]
    math = [
        str(script)
        for script in page.find_all("script")
        if "mathjax" in (script.get("src") or "") or "window.MathJax" in script.text
    ]
    return DECK.format(
        title=top.h1.get_text(),
        static=static,
        sheets="\n".join(sheets),
        slides="\n".join(f"<section>{''.join(stack)}</section>" for stack in stacks),
        math="\n".join(math),
    )


def reaching(made: str, page: str) -> str:
    """The deck with links to places that are not on its slides led to the page.

    >>> reaching('<p id="here"><a href="#here"></a><a href="#there"></a></p>', "a.html")
    '<p id="here"><a href="#here"></a><a href="a.html#there"></a></p>'
    """
    there = set(re.findall(r'id="([^"]+)"', made))

    def led(link: re.Match[str]) -> str:
        place = link.group(1)
        return link.group() if place in there else f'href="{page}#{place}"'

    return re.sub(r'href="#([^"]+)"', led, made)


def make(pages: Path) -> list[Path]:
    """Write a deck beside the page of every chapter; return the decks."""
    decks = []
    for source in sorted(listed()):
        if source.suffix != ".ipynb":
            continue
        page = pages / source.relative_to(ROOT).with_suffix(".html")
        up = "../" * (len(page.relative_to(pages).parts) - 1)
        text = page.read_text(encoding="utf-8")
        target = page.with_suffix(".slides.html")
        made = deck(BeautifulSoup(text, "html.parser"), f"{up}_static")
        target.write_text(reaching(made, page.name), encoding="utf-8")
        decks.append(target)
    return decks


def main(arguments: list[str] | None = None) -> int:
    """Make all decks and say where they are."""
    given = sys.argv[1:] if arguments is None else arguments
    pages = Path(given[0]) if given else ROOT / "_build" / "html"
    if not (pages / "index.html").is_file():
        print(f"There is no built book in {pages}. Run `make book` first.")
        return 1
    for path in make(pages.resolve()):
        print(f"Slides: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
