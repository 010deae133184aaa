"""A table of what there is to teach each chapter with: slides and sheets.

`{material}` lists the chapters in the order of the book. Their slides and
sheets lie beside them (scripts/make_slides.py, make_sheets.py). A link to a
PDF is put by scripts/make_pdf.py once the file is there.
"""

from html import escape
from pathlib import PurePosixPath

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

HEAD = ("Chapter", "Slides", "Exercises", "With solutions")


class Place(nodes.General, nodes.Element):
    """Where the table is to stand."""


class Material(SphinxDirective):
    """Keeps the place until all titles and numbers are known."""

    def run(self) -> list[nodes.Node]:
        """Leave a mark in the page."""
        self.env.material_pages = {
            *getattr(self.env, "material_pages", ()),
            self.env.docname,
        }
        return [Place()]


def chapters(env: BuildEnvironment) -> list[str]:
    """List the notebooks in the order of the table of contents."""
    found, waiting = [], [env.config.root_doc]
    while waiting:
        name = waiting.pop()
        if env.doc2path(name).endswith(".ipynb"):
            found.append(name)
        waiting += reversed(env.toctree_includes.get(name, []))
    return found


def row(app: Sphinx, page: str, chapter: str, *, exercises: bool) -> str:
    """Write one line of the table, with addresses seen from `page`."""
    env = app.builder.env
    address = app.builder.get_relative_uri(page, chapter)
    stem = address.removesuffix(".html")
    number = ".".join(
        map(str, env.toc_secnumbers.get(chapter, {}).get("", ()))
    )
    title = escape(f"{number}. {env.titles[chapter].astext()}".lstrip(". "))
    name = escape(PurePosixPath(chapter).name)
    cells = [
        f'<a class="reference internal" href="{address}">{title}</a>',
        f'<a class="reference internal" href="{stem}.slides.html" '
        f'aria-label="Slides of {name}">slides</a>',
    ]
    for kind, word in (("exercises", "sheet"), ("solutions", "sheet")):
        cells.append(
            f'<a class="reference internal" href="{stem}.{kind}.html" '
            f'aria-label="Sheet of {kind}, {name}">{word}</a> '
            f'<span class="edu-pdf" data-file="{stem}.{kind}.pdf"></span>'
            if exercises
            else ""
        )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def fill(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the table where the mark is."""
    registry = getattr(app.builder.env, "sphinx_exercise_registry", {})
    with_exercises = {entry["docname"] for entry in registry.values()}
    for mark in list(doctree.findall(Place)):
        rows = [
            row(app, page, chapter, exercises=chapter in with_exercises)
            for chapter in chapters(app.builder.env)
        ]
        head = "".join(f'<th scope="col">{word}</th>' for word in HEAD)
        table = (
            '<div class="pst-scrollable-table-container">'
            '<table class="table">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
            "</table></div>"
        )
        mark.replace_self(nodes.raw("", table, format="html"))


def with_table(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Write the pages with a table afresh: titles may have changed."""
    return sorted(getattr(env, "material_pages", ()))


def setup(app: Sphinx) -> dict:
    """Register the directive and the step that fills it."""
    app.add_node(Place)
    app.add_directive("material", Material)
    app.connect("doctree-resolved", fill)
    app.connect("env-updated", with_table)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
