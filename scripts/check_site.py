"""Crawl a built site for what no builder warns of.

    python -m scripts.check_site [_build/html]

Links and anchors that lead nowhere, markup that was shown instead of obeyed, files
that would come from another host, pictures without a text, and an empty build.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from bs4.element import Tag

ROOT = Path(__file__).resolve().parent.parent

# What a page fetches by itself; a link that a reader may click is another matter.
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}
NOT_FETCHED = {"canonical", "author", "license", "index", "search", "next", "prev"}
RAW = {
    "a directive": re.compile(r"^\s*(:{3,}|`{3,})\s*\{", re.MULTILINE),
    "a fence": re.compile(r"^\s*:{3,}\s*$", re.MULTILINE),
    "a role": re.compile(r"\{[a-z][a-z:]*\}`"),
    "a label": re.compile(r"^\([\w-]+\)=\s*$", re.MULTILINE),
    "display math": re.compile(r"\$\$"),
}
STYLE_URL = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^"')\s]+""")


def contents() -> dict[Path, str]:
    """Map the sources that the table of contents names, in its order, to its parts."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    named = [(toc["root"], "")]
    waiting = [(part, part.get("caption", "")) for part in reversed(toc["parts"])]
    while waiting:
        entry, part = waiting.pop()
        if "file" in entry:
            named.append((entry["file"], part))
        inside = entry.get("chapters", []) + entry.get("sections", [])
        waiting += [(inner, part) for inner in reversed(inside)]
    return {
        path: part
        for name, part in named
        for path in ROOT.glob(f"{name}.*")
        if path.suffix in {".md", ".ipynb"}
    }


def listed() -> set[Path]:
    """Find the sources that the table of contents names."""
    return set(contents())


class Site:
    """A folder of built pages, each parsed once."""

    def __init__(self, folder: Path) -> None:
        """Parse all pages below `folder`."""
        self.folder = folder.resolve()
        self.pages = {
            path.resolve(): BeautifulSoup(
                path.read_text(encoding="utf-8"), "html.parser"
            )
            for path in sorted(folder.rglob("*.html"))
            if "_static" not in path.relative_to(folder).parts
        }
        self._anchors = {
            path: {tag["id"] for tag in page.find_all(id=True)}
            | {tag["name"] for tag in page.find_all("a", attrs={"name": True})}
            for path, page in self.pages.items()
        }

    def name(self, path: Path) -> str:
        """Name a page by its path in the site."""
        return path.relative_to(self.folder).as_posix()

    def has_anchor(self, path: Path, anchor: str) -> bool:
        """Tell whether a page has an element of that name."""
        return path not in self.pages or anchor in self._anchors[path]


def dead_links(site: Site) -> Iterator[str]:
    """Name links and files of each page that are not there, and missing anchors."""
    for path, page in site.pages.items():
        attributes = [("a", "href"), *FETCHED.items()]
        for tag in (t for kind, at in attributes for t in page.find_all(kind)):
            address = str(tag.get("href") or tag.get("src") or tag.get("data") or "")
            parts = urlsplit(address)
            if not address or parts.scheme or parts.netloc:
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                yield f"{site.name(path)}: {address} is not there"
            elif parts.fragment and not site.has_anchor(
                target, unquote(parts.fragment)
            ):
                yield f"{site.name(path)}: {address} names no place on its page"


def foreign_files(site: Site) -> Iterator[str]:
    """Name what a page or a style sheet would fetch from another host."""
    for path, page in site.pages.items():
        for kind, attribute in FETCHED.items():
            for tag in page.find_all(kind):
                address = str(tag.get(attribute) or "")
                if set(tag.get("rel") or []) & NOT_FETCHED:
                    continue
                if re.match(r"(https?:)?//", address):
                    yield f"{site.name(path)}: {kind} from {address}"
    for path in sorted(site.folder.rglob("*.css")):
        for address in STYLE_URL.findall(path.read_text(encoding="utf-8")):
            yield f"{site.name(path)}: {address}"


def raw_markup(site: Site) -> Iterator[str]:
    """Name markup that is shown to the reader instead of having been obeyed."""
    for path, page in site.pages.items():
        article = page.find("article")
        if article is None or "_modules" in path.parts:
            continue
        text = _text_without_code(article)
        for name, pattern in RAW.items():
            found = pattern.search(text)
            if found:
                yield f"{site.name(path)}: {name} is shown raw: {found[0].strip()!r}"


def _text_without_code(article: Tag) -> str:
    copy = BeautifulSoup(str(article), "html.parser")
    for tag in copy.select("pre, code, script, style, .math"):
        tag.decompose()
    return copy.get_text()


def silent_pictures(site: Site) -> Iterator[str]:
    """Name pictures without a text for readers who do not see them."""
    for path, page in site.pages.items():
        for image in page.find_all("img"):
            address = str(image.get("src", ""))
            alt = str(image.get("alt", "")).strip()
            # Builders that know no text put the file's address there.
            if not alt or (address and alt in address):
                yield f"{site.name(path)}: {address[:80]} has no alt text"


def missing_pages(site: Site) -> Iterator[str]:
    """Name pages without text, and what every build must have."""
    for name in ("index.html", "book/intro.html", "search.html", "searchindex.js"):
        if not (site.folder / name).is_file():
            yield f"{name} was not built"
    for path, page in site.pages.items():
        if site.name(path).startswith("book/"):
            text = page.find("article") or page.find(class_="slides")
            if text is None or len(text.get_text().split()) < 20:
                yield f"{site.name(path)}: has hardly any text"


CHECKS = (missing_pages, dead_links, foreign_files, raw_markup, silent_pictures)


def main(arguments: list[str] | None = None) -> int:
    """Print all complaints; exit code 1 if there are any."""
    given = sys.argv[1:] if arguments is None else arguments
    site = Site(Path(given[0]) if given else ROOT / "_build" / "html")
    complaints = [complaint for check in CHECKS for complaint in check(site)]
    for complaint in complaints:
        print(complaint)
    print(f"{len(site.pages)} pages, {len(complaints)} complaints")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
