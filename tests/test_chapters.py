"""The frame of a chapter: what a reader finds in each of them."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import edutools as edu
from scripts import run_notebooks

FRAME = {
    "an admonition 'In this chapter'": r"\{admonition\} In this chapter",
    "what the reader needs, and the time": r"\*You need\*: .+\*Time\*: \d+ minutes",
    "an admonition 'Predict before you run'": r"\{admonition\} Predict before you run",
    "a section 'What can go wrong'": r"^## What can go wrong$",
    "a section 'Key equations'": r"^## Key equations$",
    "a section 'Recall'": r"^## Recall$",
    "a section 'Exercises'": r"^## Exercises$",
    "a section 'Further reading'": r"^## Further reading$",
    "speaker notes": r"^:::\{div\} notes$",
    "a labelled equation": r"^:label: eq-",
}
RECALL, EXERCISES, CHOICES = 3, 4, 2
NO_CHAPTERS = {"how-to-use.ipynb"}


def text(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def missing(notebook: nbformat.NotebookNode) -> list[str]:
    """What the frame wants and the chapter has not."""
    page = text(notebook)
    found = [
        name
        for name, pattern in FRAME.items()
        if not re.search(pattern, page, re.MULTILINE | re.DOTALL)
    ]
    recall = page.partition("\n## Recall\n")[2].partition("\n## ")[0]
    questions = re.split(r"^\*\*\d+\. ", recall, flags=re.MULTILINE)[1:]
    if len(questions) < RECALL:
        found.append(f"{RECALL} questions to recall; there are {len(questions)}")
    if any(question.count(":::{dropdown}") < CHOICES for question in questions):
        found.append("an explanation for each choice of a question")
    exercises = re.findall(
        r"^`{3,}\{exercise(?:-start)?\}.*?:label: (\S+)", page, re.MULTILINE | re.DOTALL
    )
    solved = re.findall(
        r"^`{3,}\{solution(?:-start)?\} (\S+)\n:class: dropdown", page, re.MULTILINE
    )
    if len(exercises) < EXERCISES:
        found.append(f"{EXERCISES} exercises; there are {len(exercises)}")
    if set(exercises) - set(solved):
        found.append(f"hidden solutions of {sorted(set(exercises) - set(solved))}")
    rated = len(
        re.findall(
            r"^\*(?:Pencil|Code|Experiment|Research), .+ minutes\.\*",
            page,
            re.MULTILINE,
        )
    )
    if rated < len(exercises):
        found.append("kind, difficulty, importance and minutes of each exercise")
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    if not re.search(r"^\s*(?:frames|explore\w*)\(", code, re.MULTILINE):
        found.append("an interactive figure")
    if "assert " not in code:
        found.append("a check that can fail")
    return found


def chapters() -> list[Path]:
    return [p for p in run_notebooks.chapters() if p.name not in NO_CHAPTERS]


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_has_its_frame(path):
    assert missing(run_notebooks.read(path)) == []


def test_an_empty_chapter_lacks_everything():
    empty = new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell("1")])
    assert len(missing(empty)) == len(FRAME) + 4


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("## Recall", "## Remember", "a section 'Recall'"),
        (":class: dropdown", "", "hidden solutions"),
        ("*Pencil, ", "*Pen, ", "kind, difficulty"),
        ("**3. ", "3. ", "3 questions"),
    ],
)
def test_what_is_taken_away_is_missed(old, new, complaint):
    notebook = run_notebooks.read(
        next(path for path in chapters() if path.stem == "rewriting-one-fact")
    )
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, new)
    assert any(complaint in found for found in missing(notebook))


def sections() -> set[str]:
    """The labels of all sections of the book."""
    book = run_notebooks.BOOK
    pages = [text(run_notebooks.read(path)) for path in book.rglob("*.ipynb")]
    pages += [path.read_text(encoding="utf-8") for path in book.rglob("*.md")]
    return set(re.findall(r"^\((sec-[a-z0-9-]+)\)=$", "\n".join(pages), re.MULTILINE))


def test_each_docstring_names_a_section_that_exists():
    source = Path(edu.__file__).parent
    named = {
        (label, path.name)
        for path in source.rglob("*.py")
        for label in re.findall(r"Book: (sec-[a-z0-9-]+)", path.read_text("utf-8"))
    }
    assert len(named) > 50
    there = sections()
    assert sorted(pair for pair in named if pair[0] not in there) == []


def test_each_public_name_occurs_in_a_chapter():
    cells = [c.source for path in chapters() for c in run_notebooks.read(path).cells]
    words = set(re.findall(r"\w+", "\n".join(cells)))
    assert sorted(set(edu.__all__) - words) == []
