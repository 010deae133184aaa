"""House rules that no tool checks."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "edutools").glob("**/*.py"))


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def test_no_module_is_longer_than_300_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > 300} == {}


def test_no_function_is_longer_than_40_lines():
    long = {
        f"{path.name}:{function.name}": body_length(function)
        for path in MODULES
        for function in functions(path.read_text())
        if body_length(function) > 40
    }
    assert long == {}


def test_the_length_of_a_function_is_that_of_its_body():
    (function,) = functions(
        'def f(\n    x,\n):\n    """Say."""\n    y = x\n    return y\n'
    )
    assert body_length(function) == 2


def test_everything_public_has_a_docstring():
    silent = [
        f"{path.name}:{node.name}"
        for path in MODULES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not any(ast.unparse(d) == "overload" for d in node.decorator_list)
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_api_page_shows_every_module():
    text = (ROOT / "book" / "reference" / "api.md").read_text()
    shown = [
        line.split("::")[1].strip()
        for line in text.splitlines()
        if line.startswith(".. automodule::")
    ]
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in MODULES
        if not path.name.startswith("_")
    ]
    assert sorted(shown) == modules


IMPORT = """
import logging, random, sys, time
start = time.process_time()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
before = torch.random.get_rng_state(), random.getstate(), list(logging.root.handlers)
loaded, between = set(sys.modules), time.process_time()
import edutools
theirs, ours = between - start, time.process_time() - between
after = torch.random.get_rng_state(), random.getstate(), list(logging.root.handlers)
assert torch.equal(before[0], after[0]) and before[1:] == after[1:], "state changed"
new = {name.split(".")[0] for name in set(sys.modules) - loaded}
print(ours, theirs, *sorted(new))
"""
SECONDS, SHARE = 0.2, 0.04  # the share is for slow and busy machines


def imported() -> tuple[float, float, set[str]]:
    """What `import edutools` adds to torch and transformers, and what those need.

    In seconds of the processor, once Python has kept what it compiles.
    """
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
    )
    assert not done.returncode, done.stderr
    ours, theirs, *packages = done.stdout.split()
    return float(ours), float(theirs), set(packages)


def test_importing_is_quiet_light_and_quick():
    heavy = {"matplotlib", "ipywidgets", "pandas", "datasets", "peft", "accelerate"}
    needed = []
    for _ in range(4):  # the first time compiles
        ours, theirs, packages = imported()
        assert "edutools" in packages
        assert not packages & {"typer", *heavy}
        needed.append((ours, theirs))
        if ours < max(SECONDS, SHARE * theirs):
            return
    pytest.fail(f"import edutools needs {needed} seconds, ours and the others'")
