"""Turn the exercises of the built chapters into sheets to hand out.

    python -m scripts.make_sheets [_build/html]

Beside each page with exercises come two more, `NAME.exercises.html` and
`NAME.solutions.html`: the same exercises with the same numbers, laid out for paper.
A sheet ends with the equations that its exercises refer to, so that it can be read
without the chapter. `make pdf` prints all sheets.
"""

import sys
from copy import copy
from pathlib import Path

from bs4 import BeautifulSoup
from bs4.element import Tag

from scripts.check_site import ROOT, listed
from scripts.make_slides import SHEETS, reaching

SCREEN_ONLY = ".headerlink, .copybtn, .notes"
KINDS = {False: "exercises", True: "solutions"}

SHEET = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{static}/favicon.svg">
{sheets}
<link rel="stylesheet" href="{static}/sheet.css">
{math}
</head>
<body>
<main>
<article>
<p class="book">{book}</p>
<h1>{title}</h1>
<p class="name">{name}</p>
{exercises}
{equations}
</article>
</main>
</body>
</html>
"""
BLANKS = "Name: <span></span> Date: <span></span>"


def parts(page: BeautifulSoup, *, solved: bool) -> list[Tag]:
    """Copy the exercises of a page, in order; with solutions if `solved`.

    Cells that follow a solution belong to it. What an exercise's own cells printed
    stays out: it is the answer of code that is still to be written.
    """
    found = []
    for exercise in page.select("article .exercise"):
        asked = copy(exercise)
        for printed in asked.select(".cell_output"):
            printed.decompose()
        found += [asked, *(answers(exercise) if solved else [])]
    for dropped in (tag for part in found for tag in part.select(SCREEN_ONLY)):
        dropped.decompose()
    return found


def answers(exercise: Tag) -> list[Tag]:
    """Copy what stands between an exercise and the next one."""
    found = []
    for follower in exercise.find_next_siblings():
        if {"exercise", "notes"} & set(follower.get("class") or []):
            break
        found.append(copy(follower))
    return found


def equations(page: BeautifulSoup, exercises: list[Tag]) -> list[Tag]:
    """Copy the equations of the page that the exercises refer to."""
    wanted = {
        link["href"].removeprefix("#")
        for exercise in exercises
        for link in exercise.select('a[href^="#equation-"]')
    }
    return [copy(tag) for tag in page.select("div.math[id]") if tag["id"] in wanted]


def sheet(page: BeautifulSoup, static: str, *, solved: bool) -> str:
    """Write the sheet of a page; `static` is the way to the shared files.

    Raises:
        ValueError: if the page holds no exercises.
    """
    found = parts(page, solved=solved)
    if not found:
        raise ValueError("The page holds no exercises, so no sheet can be made.")
    heading = copy(page.find("article").h1)
    for link in heading.select(".headerlink"):
        link.decompose()
    number = "Solutions" if solved else "Exercises"
    referred = equations(page, found)
    for tag in referred:
        for link in tag.select(".headerlink"):
            link.decompose()
    shown = "".join(map(str, referred))
    return SHEET.format(
        title=f"{number}: {heading.get_text()}",
        book=page.title.get_text().rpartition(" — ")[2],
        name="" if solved else BLANKS,
        static=static,
        sheets="\n".join(
            str(link)
            for link in page.find_all("link", rel="stylesheet")
            if any(f"/{name}" in link["href"] for name in SHEETS)
        ),
        math="\n".join(
            str(script)
            for script in page.find_all("script")
            if "mathjax" in (script.get("src") or "") or "window.MathJax" in script.text
        ),
        exercises="\n".join(map(str, found)),
        equations=f"<h2>Equations referred to</h2>\n{shown}" if referred else "",
    )


def make(pages: Path) -> list[Path]:
    """Write two sheets beside every chapter that has exercises; return the sheets."""
    made = []
    for source in sorted(listed()):
        page = pages / source.relative_to(ROOT).with_suffix(".html")
        if source.suffix != ".ipynb":
            continue
        tree = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        if not tree.select_one("article .exercise"):
            continue
        up = "../" * (len(page.relative_to(pages).parts) - 1)
        for solved, kind in KINDS.items():
            text = reaching(sheet(tree, f"{up}_static", solved=solved), page.name)
            made.append(page.with_suffix(f".{kind}.html"))
            made[-1].write_text(text, encoding="utf-8")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Make all sheets and say where they are."""
    given = sys.argv[1:] if arguments is None else arguments
    pages = Path(given[0]) if given else ROOT / "_build" / "html"
    if not (pages / "index.html").is_file():
        print(f"There is no built book in {pages}. Run `make book` first.")
        return 1
    for path in make(pages.resolve()):
        print(f"Sheet: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
