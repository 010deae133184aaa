"""Chapters: what must hold before their outputs can be compared for real."""

from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scripts import check_site, run_notebooks


def test_every_notebook_is_in_the_table_of_contents():
    assert set(run_notebooks.chapters()) == {
        path for path in check_site.listed() if path.suffix == ".ipynb"
    }


def test_every_chapter_is_stored_as_it_was_run():
    complaints = {
        path.name: run_notebooks.complaints(run_notebooks.read(path))
        for path in run_notebooks.chapters()
    }
    assert not {name: found for name, found in complaints.items() if found}


def stored(*cells) -> nbformat.NotebookNode:
    return run_notebooks.steady(new_notebook(cells=list(cells)))


def code(source="1 + 1", count=1, **more):
    return new_code_cell(source, execution_count=count, **more)


def test_a_proper_notebook_gives_no_complaint():
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    tagged = code("f()", 2, outputs=[error])
    tagged.metadata["tags"] = ["raises-exception"]
    assert not run_notebooks.complaints(
        stored(new_markdown_cell("Text;"), code(), tagged, code("", None))
    )


def noisy() -> nbformat.NotebookNode:
    notebook = stored(code())
    notebook.cells[0].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    return notebook


def tagged_in_vain() -> nbformat.NotebookNode:
    notebook = stored(code())
    notebook.cells[0].metadata["tags"] = ["raises-exception"]
    return notebook


FAILED = new_output("error", ename="E", evalue="", traceback=[])


@pytest.mark.parametrize(
    ("notebook", "complaint"),
    [
        (stored(code(count=None)), "cell 0 was never run"),
        (stored(code(), code(count=3)), "cell 1 was run as number 3, not 2"),
        (stored(code("ax.plot(x);")), "cell 0 ends with ';'"),
        (stored(code(outputs=[FAILED])), "cell 0 stored an error"),
        (tagged_in_vain(), "cell 0 is tagged raises-exception and stored no error"),
        (noisy(), "traces of one run"),
    ],
)
def test_complaints(notebook, complaint):
    (found,) = run_notebooks.complaints(notebook)
    assert complaint in found


@pytest.fixture
def chapter(tmp_path) -> Path:
    path = tmp_path / "chapter.ipynb"
    cells = [
        new_code_cell(
            "import ipywidgets as w, os, sys\nprint(1)\nprint(2, flush=True)"
        ),
        new_code_cell("print(3); sys.stderr.write('!'); print(os.getcwd() != '/')"),
        new_code_cell("w.HBox([w.IntSlider(value=3), w.Text('a')])"),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_a_second_run_changes_nothing(chapter):
    run_notebooks.write(run_notebooks.run(chapter), chapter)
    first = chapter.read_bytes()
    assert not run_notebooks.complaints(run_notebooks.read(chapter))
    run_notebooks.write(run_notebooks.run(chapter), chapter)
    assert chapter.read_bytes() == first


def test_a_failing_cell_stops_the_run(chapter):
    notebook = run_notebooks.read(chapter)
    notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, chapter)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_notebooks.run(chapter)


def test_changed_outputs_are_named(chapter):
    fresh = run_notebooks.run(chapter)
    other = run_notebooks.read(chapter)
    other.cells = [cell.copy() for cell in fresh.cells]
    other.cells[1] = code("print(4)")
    assert run_notebooks.differences(other, fresh) == [1]
    assert run_notebooks.differences(fresh, fresh) == []


def run_together(monkeypatch, paths, at_a_time):
    monkeypatch.setattr(run_notebooks, "at_a_time", lambda: at_a_time)
    return dict(run_notebooks.run_each(paths))


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_chapters_run_side_by_side_as_they_do_alone(chapter, monkeypatch, at_a_time):
    other = chapter.with_name("other.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell("print('other')")]), other)
    found = run_together(monkeypatch, [chapter, other], at_a_time)
    assert found[chapter].cells[0].outputs[0].text == "1\n2\n"
    assert found[other].cells[0].outputs[0].text == "other\n"


def test_a_failing_chapter_ends_the_others(chapter, monkeypatch):
    bad = chapter.with_name("bad.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0" + "\n" * 9999)]), bad)
    with pytest.raises(SystemExit, match=r"(?s)bad\.ipynb: a cell failed.*ZeroDiv"):
        run_together(monkeypatch, [chapter, bad], 2)


@pytest.mark.parametrize(
    ("model", "alone"),
    [(None, False), ("pocket-llama", False), ("EleutherAI/gpt-j-6b", True)],
)
def test_a_large_model_has_the_machine_for_itself(monkeypatch, model, alone):
    monkeypatch.delenv("EDUTOOLS_MODEL", raising=False)
    if model is not None:
        monkeypatch.setenv("EDUTOOLS_MODEL", model)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    assert run_notebooks.at_a_time() == (1 if alone else run_notebooks.MOST)
