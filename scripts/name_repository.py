"""Tell the book its public address: python -m scripts.name_repository ADDRESS

Writes the address into _config.yml, which gives the pages their repository, issue,
Colab and Binder buttons, and puts a first cell into every chapter that installs the
package where it is missing, as on Colab. Pages and slides do not show that cell. Given
again with another address it replaces the first.
"""

import argparse
import re
import sys
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from scripts.run_notebooks import ROOT, chapters, read, write

ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
SETTING = re.compile(r'^(\s*public_repository:) ".*"$', re.MULTILINE)
CELL = "install-edutools"  # id of the cell
SOURCE = """\
# Where the package is missing, as on Colab: install it, with its models.
import importlib.util

if importlib.util.find_spec("edutools") is None:
    %pip install --quiet "edutools[book] @ git+{address}\""""


def checked(address: str) -> str:
    """The address, if it is one of a repository on GitHub, where Colab looks.

    Raises:
        ValueError: if it is not.
    """
    plain = address.rstrip("/").removesuffix(".git")
    if not ADDRESS.fullmatch(plain):
        raise ValueError(
            f"{address!r} is no address of a repository on GitHub. Give one such as "
            "https://github.com/NAME/edutools."
        )
    return plain


def configured(text: str, address: str) -> str:
    """The text of _config.yml with the address in its place.

    Raises:
        ValueError: if there is no such place.
    """
    new, count = SETTING.subn(rf'\1 "{address}"', text)
    if count != 1:
        raise ValueError(
            f"_config.yml has {count} lines public_repository; wanted is one: "
            'public_repository: "".'
        )
    return new


def installing(notebook: NotebookNode, address: str) -> NotebookNode:
    """The chapter with the cell that installs the package, behind its first text.

    The counts of the cells behind it go up by one, as they will when it is run.
    """
    cells = [cell for cell in notebook.cells if cell.get("id") != CELL]
    added = len(cells) == len(notebook.cells)
    for cell in cells:
        if added and cell.cell_type == "code" and cell.execution_count is not None:
            cell.execution_count += 1
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
    first = new_code_cell(
        SOURCE.format(address=address),
        id=CELL,
        execution_count=1,
        metadata={"tags": ["remove-cell"]},
    )
    notebook.cells = [*cells[:1], first, *cells[1:]]
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Write the address where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="such as https://github.com/NAME/edutools")
    try:
        address = checked(parser.parse_args(arguments).address)
        settings = ROOT / "_config.yml"
        text = configured(settings.read_text(encoding="utf-8"), address)
    except ValueError as error:
        parser.error(str(error))
    settings.write_text(text, encoding="utf-8")
    for path in chapters():
        write(installing(read(path), address), path)
        print(path.relative_to(Path(ROOT)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
