"""Build the book, its slides and sheets in _build/html; warnings are errors.

    python -m scripts.build_book --from fresh     run every chapter first
    python -m scripts.build_book --from stored    take the outputs in the notebooks

The chapters that were run go to a copy of the sources under _build, from which the
site is built, so the working tree stays as it is.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import make_sheets, make_slides, run_notebooks
from scripts.run_notebooks import BOOK, ROOT

SOURCES = ["_config.yml", "_toc.yml", "CHANGELOG.md"]
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def stage(into: Path, *, fresh: bool) -> None:
    """Bring a copy of the book's sources in `into` up to date.

    Files that stay equal keep their time stamps, so that only changed pages are
    built again.
    """
    wanted = {ROOT / name: into / name for name in SOURCES}
    wanted |= {
        path: into / path.relative_to(ROOT)
        for path in BOOK.rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}
    }
    for path in into.rglob("*") if into.exists() else []:
        if path.is_file() and path not in wanted.values():
            path.unlink()
    chapters = [s for s in wanted if fresh and s.suffix == ".ipynb"]
    for source, copy in wanted.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        same = copy.exists() and filecmp.cmp(source, copy, shallow=False)
        if source not in chapters and not same:
            shutil.copyfile(source, copy)
    for source, notebook in run_notebooks.run_each(chapters):
        run_notebooks.write(notebook, wanted[source])


def build(into: Path, *, fresh: bool) -> Path:
    """Build the site in `into`/_build/html; return the folder of its pages.

    Slides and exercise sheets are made from the pages and lie beside them.

    Raises:
        SystemExit: if a chapter fails, or a page gives a warning.
    """
    source = into / "_build" / "source"
    stage(source, fresh=fresh)
    command = [sys.executable, "-c", JUPYTER_BOOK, "build", str(source)]
    command += ["--path-output", str(into), "-n", "-W", "--keep-going", "--quiet"]
    print("Building the pages ...", flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        # Else the next build would take the pages as read, and pass without a word.
        shutil.rmtree(into / "_build" / ".doctrees", ignore_errors=True)
        raise SystemExit("The book was not built: mend the warnings above.")
    pages = into / "_build" / "html"
    make_slides.make(pages)
    make_sheets.make(pages)
    return pages


def main(arguments: list[str] | None = None) -> int:
    """Build, then say where the book is and how to look at it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="origin", default="fresh")
    origin = parser.parse_args(arguments).origin
    if origin not in ("fresh", "stored"):
        parser.error(f"FROM={origin} is unknown; take FROM=fresh or FROM=stored.")
    pages = build(ROOT, fresh=origin == "fresh")
    shown = pages.relative_to(Path.cwd()) if pages.is_relative_to(Path.cwd()) else pages
    print(f"\nThe book is {pages / 'index.html'}")
    print("Open that file in a browser, or, for the search to work as well, run")
    print(f"    python3 -m http.server --directory {shown} 8000")
    print("and open http://localhost:8000")
    return 0


if __name__ == "__main__":
    sys.exit(main())
