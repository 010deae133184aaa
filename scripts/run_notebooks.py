"""Run the chapters in fresh kernels, so that a second run changes nothing.

Chapters run side by side, one on each core; but a model that is not one of the small
ones has the machine for itself.

python -m scripts.run_notebooks                  run all, say which outputs differ
python -m scripts.run_notebooks --store [FILE]   run and store the outputs
python -m scripts.run_notebooks --inspect FILE   only look at the stored state
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
WIDGETS = "application/vnd.jupyter.widget-state+json"
MOST = 4  # chapters at a time; each takes about a gigabyte


def chapters() -> list[Path]:
    """List the notebooks of the book, in the order of their paths."""
    return sorted(
        path
        for path in BOOK.rglob("*.ipynb")
        if not {".ipynb_checkpoints", "_static"} & set(path.parts)
    )


def read(path: Path) -> NotebookNode:
    """Read a notebook of the fourth format."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook that `run` made; the same notebook gives the same bytes."""
    nbformat.write(notebook, path)


def run(path: Path, *, timeout: int = 1800) -> NotebookNode:
    """Run a chapter in a fresh kernel, in its own folder.

    Raises:
        CellExecutionError: if a cell fails that is not tagged `raises-exception`.
    """
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=True,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    return steady(notebook)


def steady(notebook: NotebookNode) -> NotebookNode:
    """Take out of a notebook that was run what differs from one run to the next."""
    notebook = deepcopy(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    notebook.metadata.pop("signature", None)
    notebook.metadata.kernelspec = NotebookNode(
        display_name="Python 3", language="python", name="python3"
    )
    notebook.metadata.language_info = NotebookNode(
        file_extension=".py", mimetype="text/x-python", name="python"
    )
    return nbformat.from_dict(_with_counted_widgets(notebook))


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where they part is chance."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _with_counted_widgets(notebook: NotebookNode) -> dict:
    """Number the widgets, which have random names, as they come in the cells."""
    state = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    if not state:
        notebook.metadata.pop("widgets", None)
    name = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
    shown = [found for found in name.findall(json.dumps(notebook.cells))]
    order = dict.fromkeys(found for found in [*shown, *state] if found in state)
    number = {found: f"{i:032x}" for i, found in enumerate(order)}
    text = name.sub(lambda m: number.get(m[0], m[0]), json.dumps(notebook))
    return json.loads(text)


def complaints(notebook: NotebookNode) -> list[str]:
    """Say what keeps the stored outputs of a notebook from being compared for real."""
    code = [
        (number, cell)
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.source.strip()
    ]
    found = [
        f"cell {number} {complaint}"
        for count, (number, cell) in enumerate(code, start=1)
        for complaint in _of_cell(cell, count)
    ]
    if steady(notebook) != notebook:
        found.append("it holds traces of one run; store it with `make outputs`")
    return found


def _of_cell(cell: NotebookNode, count: int) -> list[str]:
    found = []
    if cell.execution_count is None:
        found.append("was never run; store it with `make outputs`")
    elif cell.execution_count != count:
        found.append(f"was run as number {cell.execution_count}, not {count}")
    if cell.source.rstrip().endswith(";"):
        found.append("ends with ';'; assign to `_` instead")
    wanted = "raises-exception" in cell.metadata.get("tags", [])
    failed = any(output.output_type == "error" for output in cell.outputs)
    if failed and not wanted:
        found.append("stored an error")
    if wanted and not failed:
        found.append("is tagged raises-exception and stored no error")
    return found


def differences(stored: NotebookNode, fresh: NotebookNode) -> list[int]:
    """Number the cells whose outputs differ."""
    pairs = zip(stored.cells, fresh.cells, strict=True)
    return [
        i
        for i, (old, new) in enumerate(pairs)
        if old.cell_type == "code" and old.outputs != new.outputs
    ]


def run_and_report(path: Path) -> NotebookNode:
    """Run a chapter; print how long it took and which stored outputs it changes.

    Raises:
        SystemExit: if a cell fails, with the cell and its error.
    """
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    print(f"{name}: running ...", flush=True)
    start = time.monotonic()
    try:
        fresh = run(path)
    except CellExecutionError as error:
        raise SystemExit(f"{name}: a cell failed.\n{error}") from None
    changed = differences(read(path), fresh)
    seconds = time.monotonic() - start
    verdict = f"outputs of cells {changed} differ" if changed else "outputs as stored"
    print(f"{name}: {seconds:.0f} s, {verdict}", flush=True)
    return fresh


def at_a_time() -> int:
    """How many chapters may run side by side."""
    model = os.environ.get("EDUTOOLS_MODEL", "")
    small = not model or model.startswith("pocket-")
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(len(cores), MOST) if small else 1


def run_each(paths: Sequence[Path]) -> Iterator[tuple[Path, NotebookNode]]:
    """Run chapters, some side by side; give each as it is done.

    Raises:
        SystemExit: if a cell fails; chapters that have not begun are not run.
    """
    many = min(at_a_time(), len(paths))
    if many < 2:
        yield from ((path, run_and_report(path)) for path in paths)
        return
    # Large files first: they hold many figures and take long.
    order = sorted(paths, key=lambda path: -path.stat().st_size)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(many, fresh, _alone) as pool:
        running = {pool.submit(run_and_report, path): path for path in order}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _alone() -> None:
    """A chapter beside others has one core; more threads would only wait."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(arguments: list[str] | None = None) -> int:
    """Run or inspect the chapters named, or all; exit code 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--store", action="store_true", help="write the outputs back")
    parser.add_argument("--inspect", action="store_true", help="do not run anything")
    options = parser.parse_args(arguments)
    paths = [file.resolve() for file in options.files] or chapters()
    failed = False
    if options.inspect:
        for path in paths:
            for complaint in complaints(read(path)):
                print(f"{path.relative_to(ROOT)}: {complaint}")
                failed = True
        return int(failed)
    for path, fresh in run_each(paths):
        if options.store:
            write(fresh, path)
        else:
            failed |= bool(differences(read(path), fresh))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
