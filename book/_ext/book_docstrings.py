"""Show the closing lines of a docstring, `Source:` and `Book:`, as lines of their own.

`Book: some-label` becomes a link to the section with that label.
"""

import re

from sphinx.application import Sphinx

CLOSING = re.compile(r"^(\s*)(Source|Book):\s+(.*)$")


def part_closing_lines(*event: object) -> None:
    """Set each closing line apart; link the label after `Book:`."""
    lines = event[-1]
    assert isinstance(lines, list)
    shown: list[str] = []
    for line in lines:
        found = CLOSING.match(line)
        if not found:
            shown.append(line)
            continue
        indent, word, rest = found.groups()
        if word == "Book":
            labels = [label.strip(" .`") for label in rest.split(",")]
            rest = ", ".join(f":ref:`{label} <{label}>`" for label in labels)
        shown += ["", f"{indent}**{word}:** {rest}"]
        if word == "Book":
            shown.append("")
    lines[:] = shown


def setup(app: Sphinx) -> dict:
    """Register after napoleon, which rewrites the sections."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", part_closing_lines, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
