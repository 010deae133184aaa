"""Print the built book and its exercise sheets as PDF files, with headless Chromium.

    python -m scripts.make_pdf [_build/html]

Each sheet lies beside its page, the whole book beside the first page. Where a page
says `<span class="edu-pdf" data-file="NAME.pdf">`, a link to that file is put.
"""

import html
import io
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import Link
from pypdf.generic import Fit

from scripts import make_sheets
from scripts.check_site import ROOT, contents

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
BOOK = "rewriting-facts.pdf"
# Hundreds of pages of signatures are for the screen.
UNPRINTED = {"api"}
SCALE = 0.85
PATIENCE = 120_000  # ms

READY = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  await document.fonts.ready;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
}"""
# A sheet is read apart from the site, where its links would lead nowhere.
ALONE = """() => {
  for (const link of document.querySelectorAll("a[href]"))
    if (!/^https?:/.test(link.getAttribute("href"))) link.removeAttribute("href");
}"""
# Chromium knows a place in a PDF only if the same page links to it.
OPEN = """(places) => {
  for (const details of document.querySelectorAll("article details"))
    if (!details.classList.contains("hide")) details.open = true;
  const links = document.createElement("div");
  links.className = "edu-places";
  for (const place of places)
    if (document.getElementById(place)) {
      const link = document.createElement("a");
      link.href = "#" + place;
      link.textContent = ".";
      links.append(link);
    }
  document.querySelector("article").append(links);
}"""
TITLE = """() => [...document.querySelector("article h1").childNodes]
  .filter((node) => !node.classList?.contains("headerlink"))
  .map((node) => node.textContent).join("")"""
NUMBERED = """@page {{ size: A4; margin: 18mm 16mm 20mm;
  @bottom-center {{ content: counter(page); font: 9pt sans-serif; }} }}
@page :first {{ counter-set: page {first}; }}
.edu-places {{ font-size: 1px; line-height: 1px; opacity: 0.01; }}"""
FRONT = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>@page {{ size: A4; margin: 25mm 22mm; }}
body {{ font: 11pt/1.5 sans-serif; }} h1 {{ font-size: 30pt; margin-top: 60mm; }}
h2 {{ break-before: page; }} h3 {{ margin: 1em 0 0.2em; }}
p {{ display: flex; justify-content: space-between; margin: 0; }}</style>
<h1>{title}</h1><p>{author}, {year}</p><h2>Contents</h2>{lines}</html>"""


@dataclass(kw_only=True)
class Chapter:
    """A page of the site, printed, with the number of its first sheet of paper."""

    path: Path
    part: str
    title: str
    printed: PdfReader
    first: int


def chromium() -> str | None:
    """Find the browser."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open an empty page of a headless browser, in the light scheme."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(PATIENCE)
        try:
            yield page
        finally:
            browser.close()


def opened(page: Page, path: Path) -> None:
    """Open a page of the site and wait for its formulas and pictures."""
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate(READY)


def on_paper(page: Page, *, scale: float = 1.0) -> bytes:
    """Print what is open."""
    return page.pdf(prefer_css_page_size=True, print_background=True, scale=scale)


def print_sheets(page: Page, pages: Path) -> list[Path]:
    """Print every exercise sheet beside itself; return the files."""
    made = []
    for path in make_sheets.make(pages):
        opened(page, path)
        page.evaluate(ALONE)
        made.append(path.with_suffix(".pdf"))
        made[-1].write_bytes(on_paper(page))
    return made


def places(pages: Path, files: list[Path]) -> dict[Path, list[str]]:
    """Name the places on each page that a link of the book leads to."""
    found: dict[Path, set[str]] = {path: set() for path in files}
    for path in files:
        text = path.read_text(encoding="utf-8")
        for address, place in re.findall(r'href="([^":#]*)#([^"]+)"', text):
            target = (path.parent / unquote(address)).resolve() if address else path
            if target in found:
                found[target].add(unquote(html.unescape(place)))
    return {path: sorted(names) for path, names in found.items()}


def front(page: Page, chapters: list[Chapter]) -> PdfReader:
    """Print the title and the contents."""
    book = BeautifulSoup(chapters[0].path.read_text(encoding="utf-8"), "html.parser")
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    author, year = (
        re.search(rf'^{name}: "?([^"\n]+)', config, re.MULTILINE)[1]
        for name in ("author", "copyright")
    )
    lines, part = [], ""
    for chapter in chapters:
        if chapter.part != part:
            lines.append(f"<h3>{html.escape(chapter.part)}</h3>")
            part = chapter.part
        title = html.escape(chapter.title)
        lines.append(f"<p><span>{title}</span> <span>{chapter.first}</span></p>")
    title = html.escape(book.find("h1").find(string=True))
    page.set_content(
        FRONT.format(title=title, author=author, year=year, lines="".join(lines))
    )
    return PdfReader(io.BytesIO(on_paper(page)))


def print_chapters(page: Page, pages: Path) -> list[Chapter]:
    """Print the pages of the book in the order of its contents, numbered from 1."""
    sources = contents()
    files = {
        (pages / source.relative_to(ROOT).with_suffix(".html")).resolve(): part
        for source, part in sources.items()
        if source.stem not in UNPRINTED
    }
    wanted = places(pages, list(files))
    chapters, first = [], 1
    for path, part in files.items():
        opened(page, path)
        page.evaluate(OPEN, wanted[path])
        page.add_style_tag(content=NUMBERED.format(first=first))
        title = page.evaluate(TITLE)
        printed = PdfReader(io.BytesIO(on_paper(page, scale=SCALE)))
        chapters.append(
            Chapter(path=path, part=part, title=title, printed=printed, first=first)
        )
        first += len(printed.pages)
    return chapters


def led(writer: PdfWriter, chapters: list[Chapter], before: int) -> None:
    """Put the links back: within the book to sheets of paper, others as they were.

    Links to what is not in the book, such as the source of a function, stay out.
    """
    by_path = {chapter.path.as_uri(): chapter for chapter in chapters}
    for chapter in chapters:
        for number, sheet in enumerate(chapter.printed.pages):
            for entry in sheet.get("/Annots") or []:
                link = entry.get_object()
                address = str(link.get("/A", {}).get("/URI", ""))
                if link.get("/Subtype") != "/Link":
                    continue
                if "/Dest" in link:
                    target, place = chapter, str(link["/Dest"]).removeprefix("/")
                elif address.startswith("file:"):
                    base, _, place = address.partition("#")
                    target = by_path.get(base)
                else:
                    target, place = None, ""
                added = _link(link["/Rect"], target, place, address, before)
                if added is not None:
                    writer.add_annotation(before + chapter.first - 1 + number, added)


def _link(
    where: object, target: Chapter | None, place: str, address: str, before: int
) -> Link | None:
    rect = tuple(float(number) for number in where)
    if target is None:
        return None if address.startswith("file:") else Link(rect=rect, url=address)
    goal, fit = before + target.first - 1, Fit.fit()
    known = target.printed.named_destinations.get(f"/{unquote(place)}")
    if known is not None:
        goal += target.printed.get_destination_page_number(known)
        fit = Fit.xyz(left=0, top=float(known["/Top"]))
    return Link(rect=rect, target_page_index=goal, fit=fit)


def bound(page: Page, chapters: list[Chapter]) -> PdfWriter:
    """Bind title, contents and chapters, with an outline and working links."""
    writer = PdfWriter()
    opening = front(page, chapters)
    for reader in (opening, *(chapter.printed for chapter in chapters)):
        for sheet in reader.pages:
            copy = writer.add_page(sheet)
            copy.pop("/Annots", None)
    before = len(opening.pages)
    led(writer, chapters, before)
    parent, part = None, ""
    for chapter in chapters:
        goal = before + chapter.first - 1
        if chapter.part != part:
            part = chapter.part
            parent = writer.add_outline_item(title=part, page_number=goal)
        writer.add_outline_item(title=chapter.title, page_number=goal, parent=parent)
    writer.add_metadata({"/Title": chapters[0].title})
    writer.compress_identical_objects()
    return writer


def print_book(page: Page, pages: Path) -> Path:
    """Print the whole book beside the first page; return the file."""
    target = pages / "book" / BOOK
    bound(page, print_chapters(page, pages)).write(target)
    return target


def linked(text: str, folder: Path) -> str:
    """The page with links to those of its PDF files that are there."""

    def link(found: re.Match[str]) -> str:
        name = found.group(1)
        if not (folder / name).is_file():
            return found.group()
        return f'<a class="edu-pdf" href="{name}">PDF</a>'

    return re.sub(r'<span class="edu-pdf" data-file="([^"]+)"></span>', link, text)


def main(arguments: list[str] | None = None) -> int:
    """Print everything, put the links, say where the files are."""
    given = sys.argv[1:] if arguments is None else arguments
    pages = (Path(given[0]) if given else ROOT / "_build" / "html").resolve()
    if not (pages / "index.html").is_file():
        print(f"There is no built book in {pages}. Run `make book` first.")
        return 1
    if chromium() is None:
        print("No Chromium was found. Debian, Ubuntu: sudo apt install chromium")
        return 1
    with browser_page() as page:
        for path in [*print_sheets(page, pages), print_book(page, pages)]:
            print(f"PDF: {path}")
    for path in pages.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if 'class="edu-pdf"' in text:
            path.write_text(linked(text, path.parent), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
