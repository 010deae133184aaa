"""Setting up on a machine that lacks something: one line of advice, and a stop."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("sh", "awk", "cat", "cksum", "dirname", "tr", "df", "mkdir", "touch", "chmod")


@pytest.fixture
def machine(tmp_path):
    """A folder with the project's files and a PATH of few commands."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "project" / "scripts").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
        shutil.copy(ROOT / name, tmp_path / "project" / name)
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    add(tmp_path, "df", "echo head; echo disk 99999999 1 88888888 1% /")
    return tmp_path


def add(machine: Path, name: str, script: str) -> None:
    """Give the machine a command."""
    path = machine / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def set_up(machine: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [machine / "bin" / "sh", "scripts/setup.sh", "book,test"],
        cwd=machine / "project",
        env={"PATH": str(machine / "bin"), **environment},
        capture_output=True,
        text=True,
    )


# A Python that knows venv, makes one with a pip that notes its arguments.
PYTHON = """case "$*" in
*-m\\ venv*) mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"; chmod +x "$3/bin/python" ;;
*-m\\ pip*) echo "$*" >>pip.log ;;
esac"""


def advice(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_without_python(machine):
    assert "Python 3.11 or newer is needed" in advice(set_up(machine))


def test_with_an_old_python_only(machine):
    add(machine, "python3", "exit 1")
    line = advice(set_up(machine))
    assert "Python 3.11 or newer is needed" in line
    assert "make PYTHON=" in line


def test_a_later_name_is_found_behind_an_old_python(machine):
    add(machine, "python3", "exit 1")
    add(machine, "python3.12", PYTHON)
    assert set_up(machine).returncode == 0


def test_without_the_venv_module(machine):
    add(machine, "python3", 'case "$*" in *ensurepip*) exit 1 ;; esac')
    assert "apt install python3-venv" in advice(set_up(machine))


def test_without_room(machine):
    add(machine, "python3", PYTHON)
    add(machine, "df", "echo head; echo disk 9 1 5242880 1% /")
    assert "needs up to 6 GB of disk and 5 GB are free" in advice(set_up(machine))
    assert not (machine / "project" / ".venv").exists()


def pip_calls(machine: Path) -> list[str]:
    log = machine / "project" / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def test_torch_is_installed_first_and_all_is_constrained(machine):
    add(machine, "python3", PYTHON)
    done = set_up(machine)
    assert done.returncode == 0, done.stderr
    first, second = pip_calls(machine)
    assert first.endswith("--constraint constraints.txt torch")
    assert second.endswith("--constraint constraints.txt --editable .[book,test]")


def test_a_second_call_does_nothing(machine):
    add(machine, "python3", PYTHON)
    set_up(machine)
    before = pip_calls(machine)
    assert set_up(machine).stdout == ""
    assert pip_calls(machine) == before


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(machine, name):
    add(machine, "python3", PYTHON)
    set_up(machine)
    with (machine / "project" / name).open("a") as file:
        file.write("\n")
    set_up(machine)
    assert len(pip_calls(machine)) == 4


def test_a_failed_install_is_tried_again(machine):
    failing = PYTHON.replace("*-m\\ pip*)", '*-m\\ pip*) [ -z "$BROKEN" ] || exit 1;')
    add(machine, "python3", failing)
    assert set_up(machine, BROKEN="yes").returncode == 1
    assert set_up(machine).returncode == 0
    assert len(pip_calls(machine)) == 2


def test_make_lists_its_targets():
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    for target in ("book", "test", "check", "slides", "pdf", "clean", "setup"):
        assert f"\n{target} " in f"\n{done.stdout}"
