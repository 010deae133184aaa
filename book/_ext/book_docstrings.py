"""Docstrings as this project writes them, made ready for the API page.

- `Source:` and `Book:` at the end become lines of their own; a label after
  `Book:` becomes a link to that section.
- A bar is a norm, as in |x|, never a substitution.
- What a property's docstring says before a colon is text, not a type.
"""

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

CLOSING = re.compile(r"^(\s*)(Source|Book):\s+(.*)$")
DIRECTIVE = re.compile(r"^(\s*)\.\. [\w:-]+::")
IN_BACKTICKS = re.compile(r"(`[^`]*`)")


def prepare(*event: object) -> None:
    """Rewrite the lines of one docstring in place, after napoleon."""
    kind, lines = event[1], event[-1]
    assert isinstance(lines, list)
    if kind == "property":
        lines[:] = with_first_line_whole(lines)
    lines[:] = [new for line in with_plain_bars(lines) for new in apart(line)]


def with_first_line_whole(lines: list[str]) -> list[str]:
    """Put back what napoleon took for the type of a property.

    >>> with_first_line_whole(["the first one.", "", ":type: Two answers"])
    ['Two answers: the first one.', '']
    """
    kinds = [line for line in lines if line.startswith(":type: ")]
    if not kinds:
        return lines
    first, *rest = [line for line in lines if line not in kinds]
    return [f"{kinds[0].removeprefix(':type: ')}: {first}", *rest]


def with_plain_bars(lines: list[str]) -> Iterator[str]:
    r"""Escape the bars of running text, but not of examples and directives.

    >>> first, _, last = with_plain_bars(["|x| and `|`", "", ">>> a | b"])
    >>> print(first, last)
    \|x\| and `|` >>> a | b
    """
    block: int | None = None
    example = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent <= block:
            block = None
        example = bool(line.strip()) and (
            example or line.lstrip().startswith(">>>")
        )
        if block is None and not example:
            parts = IN_BACKTICKS.split(line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            yield "".join(parts)
        else:
            yield line
        if block is None and DIRECTIVE.match(line):
            block = indent


def apart(line: str) -> list[str]:
    """Set a closing line apart and link the labels of `Book:`.

    >>> apart("Book: sec-rome")
    ['', '**Book:** :ref:`sec-rome <sec-rome>`', '']
    """
    found = CLOSING.match(line)
    if not found:
        return [line]
    indent, word, rest = found.groups()
    if word == "Source":
        return ["", f"{indent}**Source:** {rest}"]
    labels = [label.strip(" .`") for label in rest.split(",")]
    links = ", ".join(f":ref:`{label} <{label}>`" for label in labels)
    return ["", f"{indent}**Book:** {links}", ""]


def setup(app: Sphinx) -> dict:
    """Register after napoleon, which rewrites the sections."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", prepare, priority=900)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
