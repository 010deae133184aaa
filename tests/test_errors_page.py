"""The errors page of the book: every message is on it, and nothing else."""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "reference" / "errors.md"
MODULES = sorted((ROOT / "edutools").glob("**/*.py"))
VALUE = "\0"  # stands in a message where a value is put in
BUILTIN = {
    name
    for name, found in vars(builtins).items()
    if isinstance(found, type) and issubclass(found, Exception)
}
# Raised to steer the program; nobody reads a message of theirs.
SILENT = {"_Stop", "KeyboardInterrupt"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def own_errors(trees: dict[str, ast.Module]) -> set[str]:
    """The exception classes of the package."""
    found: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            bases = node.bases if isinstance(node, ast.ClassDef) else []
            if any(getattr(base, "id", "") in BUILTIN for base in bases):
                found.add(node.name)
    return found


def templates(node: ast.expr, module: ast.Module) -> list[str]:
    """The texts that an expression can give, with `VALUE` for what is put in.

    A call of a function of the module gives what that function returns, a name what is
    assigned to it.
    """
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            pieces = [
                part.value if isinstance(part, ast.Constant) else VALUE
                for part in parts
            ]
            return ["".join(pieces)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [
                first + second
                for first in templates(left, module)
                for second in templates(right, module)
            ]
        case ast.IfExp(body=first, orelse=second):
            return templates(first, module) + templates(second, module)
        case ast.Call(func=ast.Name(id=name)):
            return [
                text
                for function in ast.walk(module)
                if isinstance(function, Function) and function.name == name
                for inside in ast.walk(function)
                if isinstance(inside, ast.Return) and inside.value is not None
                for text in templates(inside.value, module)
            ] or [VALUE]
        case ast.Name(id=name):
            return [
                text
                for inside in ast.walk(module)
                if isinstance(inside, ast.Assign)
                and any(getattr(to, "id", "") == name for to in inside.targets)
                for text in templates(inside.value, module)
            ] or [VALUE]
    return [VALUE]


def named(call: ast.expr) -> str:
    return ast.unparse(call).split(".")[-1]


def said(tree: ast.Module, errors: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of every message that a module can give."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if named(node.func) in errors or ast.unparse(node.func) == "warnings.warn":
            for text in templates(node.args[0], tree) if node.args else [VALUE]:
                yield node.lineno, " ".join(text.split())


def messages(sources: dict[str, str]) -> dict[str, str]:
    """Place -> message, for all modules."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    errors = (BUILTIN | own_errors(trees)) - SILENT
    return {
        f"{name}:{line}#{i}": text
        for name, tree in trees.items()
        for i, (line, text) in enumerate(said(tree, errors))
    }


def entries(page: str) -> list[tuple[str, list[str], str]]:
    """Label, patterns and text of every entry of the page."""
    found = re.findall(r"(?m)^\((err-[\w-]+)\)=\n(`.*)\n: ((?:.+\n?|\n(?=  ))*)", page)
    return [
        (label, [code for _, code in re.findall(r"(`+)(.+?)\1(?!`)", terms)], text)
        for label, terms, text in found
    ]


def fits(pattern: str, message: str) -> bool:
    """Whether a message is of the form that a pattern shows; '...' is anything."""
    parts = [re.escape(part) for part in " ".join(pattern.split()).split("...")]
    return re.fullmatch(".*".join(parts), message, re.DOTALL) is not None


SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in MODULES
}
MESSAGES = messages(SOURCES)
ENTRIES = entries(PAGE.read_text(encoding="utf-8"))
PATTERNS = [pattern for _, patterns, _ in ENTRIES for pattern in patterns]


@pytest.mark.parametrize("place", MESSAGES)
def test_every_message_is_on_the_page(place):
    message = MESSAGES[place]
    shown = message.replace(VALUE, "...")
    assert any(fits(p, message) for p in PATTERNS), f"{place}: {shown!r} is missing"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_of_the_page_is_a_message(pattern):
    assert any(fits(pattern, message) for message in MESSAGES.values())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_says_too_little(pattern):
    """One that fits a tenth of all messages would hide that others are missing."""
    matched = sum(fits(pattern, message) for message in MESSAGES.values())
    assert matched <= len(MESSAGES) / 10
    assert len(re.sub(r"[\W\d_]", "", pattern)) >= 2


def test_every_raise_gives_a_message_that_is_looked_at():
    """An error made by a function counts where the function makes it."""
    trees = {name: ast.parse(text) for name, text in SOURCES.items()}
    errors = BUILTIN | own_errors(trees) | SILENT
    strange = []
    for name, tree in trees.items():
        makers = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, Function)
            and any(
                isinstance(inside, ast.Return)
                and isinstance(inside.value, ast.Call)
                and named(inside.value.func) in errors
                for inside in ast.walk(node)
            )
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if named(raised) not in errors | makers:
                strange.append(f"{name}:{node.lineno} {ast.unparse(node.exc)}")
    assert strange == []


def test_every_entry_says_cause_and_cure_and_can_be_linked():
    text = PAGE.read_text(encoding="utf-8")
    labels = [label for label, _, _ in ENTRIES]
    assert len(ENTRIES) == text.count("\n(err-") >= 100
    assert len(set(labels)) == len(labels)
    for label, patterns, body in ENTRIES:
        assert patterns, label
        assert re.search(r"\*Cause\.\*.+\*Cure\.\*.+", body, re.DOTALL), label


def test_the_warnings_are_marked():
    warned = re.findall(r"(?m)^(`.*) \(warning\)$", PAGE.read_text(encoding="utf-8"))
    calls = sum(text.count("warnings.warn(") for text in SOURCES.values())
    assert len(warned) == calls


def test_the_page_stands_in_the_reference_before_the_package():
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    (files,) = (
        [chapter["file"] for chapter in part["chapters"]]
        for part in parts
        if part["caption"] == "Reference"
    )
    assert files.index("book/reference/api") == files.index("book/reference/errors") + 1


def test_what_the_page_offers_to_catch_exists():
    for name in re.findall(r"\{exc\}`edutools\.(\w+\.\w+)`", PAGE.read_text()):
        module, error = name.split(".")
        assert f"class {error}(" in SOURCES[f"edutools/{module}.py"]


# the instruments themselves

CODE = """
import warnings
class Lost(ValueError): ...
def _made(x):
    return Lost(f"{x} is lost")
def _text(x):
    return f"Told by {x}: " + "in part"
def f(x, y):
    if x:
        raise ValueError(f"x is {x}; " "it must be 0.")
    if y:
        raise _made(y)
    warnings.warn("odd", stacklevel=2)
    message = "kept" if x else f"kept {y}"
    raise RuntimeError(message)
def g(x):
    raise TypeError(_text(x)) from None
"""


def test_messages_are_found_wherever_they_are_built():
    found = {text.replace(VALUE, "...") for text in messages({"m": CODE}).values()}
    assert found == {
        "... is lost",
        "x is ...; it must be 0.",
        "odd",
        "kept",
        "kept ...",
        "Told by ...: in part",
    }


def test_patterns_fit_what_they_say():
    message = f"x is {VALUE}; it must be 0."
    assert fits("x is ...", message)
    assert fits("x is ...; it must be 0.", message)
    assert fits("... it must be 0.", message)
    assert not fits("x is", message)
    assert not fits("x is 5; it must be 0.", message)
    assert not fits("y is ...", message)


def test_entries_are_read_from_the_page():
    page = (
        "(err-a)=\n`one ...`, ``two `x` ...``\n: *Cause.* A.\n  *Cure.* B:\n\n"
        "  ```python\n  c\n  ```\n\n(err-b)=\n`three` (warning)\n: *Cause.* D.\n"
    )
    (first, second) = entries(page)
    assert first[:2] == ("err-a", ["one ...", "two `x` ..."])
    assert "```python" in first[2]
    assert second == ("err-b", ["three"], "*Cause.* D.\n")
