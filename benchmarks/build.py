"""How long `make book` takes: every chapter run afresh, and all pages built.

``python -m benchmarks.build`` clones the commit that is checked out into a temporary
folder, with empty caches, and makes the book there. The environment is not part of it:
VENV names the folder of one that is ready (default: the project's own .venv). Changes
that are not committed are not in the clone. With `--repeats 1`, where five would take
too long, the row says n = 1.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, arguments, keep, once, read, spread

KEPT = 1  # repeats are allowed to be so few: a build takes minutes


def surrounding(clone: Path, caches: Path, venv: Path) -> dict[str, str]:
    """The variables for a build that finds the clone's package and no cache."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of a make that runs this
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    return kept | {
        "VENV": str(venv),
        "PYTHONPATH": str(clone),  # before the package that the environment knows
        "XDG_CACHE_HOME": str(caches),
        "MPLCONFIGDIR": str(caches / "matplotlib"),
    }


def make(clone: Path, environment: Mapping[str, str], goal: str) -> None:
    """Run a goal of the Makefile in the clone, with the environment as it is."""
    # -o: the environment counts as ready, so nothing is installed into it.
    command = ["make", "-o", "setup", goal, f"VENV={environment['VENV']}"]
    subprocess.run(command, cwd=clone, env=dict(environment), check=True)


def build(venv: Path, goal: str) -> tuple[float, int]:
    """Seconds of one build from nothing, and how many pages came out."""
    with tempfile.TemporaryDirectory() as folder:
        clone, caches = Path(folder) / "clone", Path(folder) / "caches"
        caches.mkdir()
        copy = ["git", "clone", "--quiet", str(ROOT), str(clone)]
        subprocess.run(copy, check=True)
        environment = surrounding(clone, caches, venv)
        seconds, _ = once(lambda: make(clone, environment, goal), "cpu")
        pages = len(list((clone / "_build" / "html" / "book").rglob("*.html")))
    return seconds, pages


def main(argv: Sequence[str] | None = None) -> Path:
    """Build as often as asked, and keep the times."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(repeats=KEPT)
    parser.add_argument("--goal", default="book", help="of the Makefile")
    given = read(parser, argv, least=KEPT)
    venv = Path(os.environ.get("VENV", ROOT / ".venv")).absolute()
    found: list[tuple[float, int]] = []
    path = given.folder
    for _ in range(given.repeats):
        found.append(build(venv, given.goal))
        seconds = spread([spent for spent, _ in found])
        row: dict[str, Any] = {"goal": given.goal, "pages": found[-1][1]}
        path = keep("build", [row | {"seconds": seconds}], given)
        print(f"make {given.goal}: {found[-1][0] / 60:.1f} minutes", flush=True)
    return path


if __name__ == "__main__":
    main()
