"""Make the page of the book's notation from its table.

    python -m scripts.make_notation            write book/notation.md
    python -m scripts.make_notation --check    only say whether it is as it should be

The table is book/notation.toml: symbols, meaning, shape, names in the package, and the
section that introduces them. A row links to the chapter of that section by its title.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

from scripts import check_site, run_notebooks
from scripts.run_notebooks import BOOK

TABLE = BOOK / "notation.toml"
PAGE = BOOK / "notation.md"
HEAD = """(sec-notation)=
# Notation

The same symbol in the text and in the code; where a letter has to serve twice, its row
says so. Vectors are columns, and so are facts: a matrix of keys has one column for each
fact, as in the papers. Shapes are written as in the signatures of the package. The last
column leads to the section that introduces a symbol. Words are in the
{ref}`sec-glossary`.
"""


def groups(path: Path = TABLE) -> list[dict]:
    """Read the table: groups with a title and rows."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["group"]


def text_of(path: Path) -> str:
    """The text of a page: that of a notebook's Markdown cells, or the file's."""
    if path.suffix == ".ipynb":
        cells = run_notebooks.read(path).cells
        return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    return path.read_text(encoding="utf-8")


def pages() -> dict[Path, str]:
    """Path -> text, for the pages of the table of contents."""
    return {path: text_of(path) for path in sorted(check_site.listed())}


def places(found: dict[Path, str]) -> dict[str, Path]:
    """Label -> the page that sets it."""
    return {
        label: path
        for path, text in found.items()
        for label in re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    }


def title(text: str) -> str:
    """The title of a page.

    >>> title("(sec-a)=\\n# One, two\\n\\n## Three")
    'One, two'
    """
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def row(entry: dict, name: str) -> str:
    """Write one row; `name` is what the link to its section is called."""
    symbols = ", ".join(f"${tex}$" for tex in entry["tex"])
    shape = f"`{entry['shape']}`" if "(" in entry["shape"] else entry["shape"]
    meaning = f"{entry['meaning']} · {shape}" if shape else entry["meaning"]
    link = f"{{ref}}`{name} <{entry['section']}>`"
    return f"| {symbols} | {meaning} | {linked(entry['code'])} | {link} |"


def linked(paths: list[str]) -> str:
    """Name parameters or attributes, and link what has them.

    >>> print(linked(["facts.Fact.prompt", "facts.Fact.truth"]))
    `prompt`, `truth` of {obj}`~edutools.facts.Fact`
    """
    names: dict[str, list[str]] = {}
    for path in paths:
        owner, _, name = path.rpartition(".")
        names.setdefault(owner, []).append(f"`{name}`")
    return ", ".join(
        f"{', '.join(found)} of {{obj}}`~edutools.{owner}`"
        for owner, found in names.items()
    )


def page() -> str:
    """Write the whole page.

    Raises:
        SystemExit: if a row names a section that no page has.
    """
    found = pages()
    where = places(found)
    parts = [HEAD]
    for group in groups():
        parts.append(f"## {group['title']}\n")
        parts.append(":::{div} symbols\n")
        parts.append("| symbol | meaning · shape | in the code | chapter |")
        parts.append("|---|---|---|---|")
        for entry in group["rows"]:
            if entry["section"] not in where:
                symbols = ", ".join(entry["tex"])
                raise SystemExit(
                    f"{TABLE.name}: the row of {symbols} names {entry['section']}, "
                    "which no page of the book has. Name another section."
                )
            parts.append(row(entry, title(found[where[entry["section"]]])))
        parts.append("\n:::\n")
    return "\n".join(parts).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or compare it; exit code 1 if it differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    made = page()
    if not options.check:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == made:
        return 0
    print(f"{PAGE.name} is not what its table makes; run `make_notation` to write it.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
