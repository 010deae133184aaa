"""pyproject.toml, environment.yml and constraints.txt say the same, and it is true."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in requirements}


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return by_name([line for line in lines if not line.startswith("#")])


def specifiers(lines: list[str]) -> dict[str, str]:
    return {name: str(r.specifier) for name, r in by_name(lines).items()}


def of_conda() -> tuple[list[str], list[str]]:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())[
        "dependencies"
    ]
    (of_pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return [entry for entry in dependencies if isinstance(entry, str)], of_pip


def test_conda_gives_python_and_pip_and_leaves_the_rest_to_pip():
    own, _ = of_conda()
    assert own == [f"python{PROJECT['requires-python']}", "pip"]


def test_environment_yml_says_what_pyproject_says():
    _, of_pip = of_conda()
    options = [line for line in of_pip if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e .[book,test]"]
    named = [line for line in of_pip if not line.startswith("-")]
    wanted = [*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["test"]]
    assert specifiers(named) == specifiers(wanted)


def test_constraints_are_exact_plain_versions():
    for name, requirement in constraints().items():
        (only,) = requirement.specifier
        assert only.operator == "==", name
        assert "+" not in only.version, f"{name}: a build of one index only"
        assert not requirement.url, name


def test_constraints_lie_within_the_ranges():
    pinned = constraints()
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in EXTRAS.values() for line in extra),
    ]
    for name, requirement in by_name(lines).items():
        (only,) = pinned[name].specifier
        assert requirement.specifier.contains(only.version), f"{name} {only.version}"


def closure(roots: list[Requirement]) -> set[str]:
    """All distributions that the requirements bring along, as installed here."""
    seen, waiting = set(), list(roots)
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(requirement.name) or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in extras
            ):
                waiting.append(needed)
    return {name for name, _ in seen}


def test_constraints_name_everything_that_is_installed_along():
    lines = [*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["test"]]
    missing = closure([Requirement(line) for line in lines]) - set(constraints())
    # A build of torch for GPUs brings libraries along that this one does not have.
    assert {name for name in missing if not name.startswith(("nvidia", "cuda"))} <= {
        "triton"
    }


def test_installed_versions_are_those_of_the_constraints():
    lines = [*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["test"]]
    pinned = constraints()
    for name in by_name(lines):
        installed = metadata.version(name)
        assert pinned[name].specifier.contains(installed), f"{name} {installed}"


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == metadata.version("edutools")
    assert citation["license"] == PROJECT["license"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_carries_the_data(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "edutools"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    files = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert "edutools/py.typed" in files
    assert files <= wheel


def test_the_wheel_carries_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"edutools", f"edutools-{PROJECT['version']}.dist-info"}


RESULT = "benchmarks/results/full_size_x-cuda.json"


@pytest.fixture
def sources(tmp_path) -> Path:
    """A folder with what the build needs, a line of code and one measured result."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("edutools/__init__.py", RESULT, "benchmarks/harness.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


def built(sources: Path, kind: str) -> list[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", "made"]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    (path,) = (sources / "made").iterdir()
    if kind == "wheel":
        return zipfile.ZipFile(path).namelist()
    return [name.partition("/")[2] for name in tarfile.open(path).getnames()]


def test_the_wheel_carries_the_results_inside_the_package(sources):
    assert "edutools/data/results/full_size_x-cuda.json" in built(sources, "wheel")


def test_the_wheel_carries_the_results_of_studies(sources):
    place = sources / "experiments" / "results"
    place.mkdir(parents=True)
    (place / "lam-pocket-llama.json").write_text("{}")
    (place.parent / "lam.py").write_text("")
    assert "edutools/data/studies/lam-pocket-llama.json" in built(sources, "wheel")


def test_a_wheel_can_be_built_where_nothing_was_measured(sources):
    shutil.rmtree(sources / "benchmarks")
    assert "edutools/__init__.py" in built(sources, "wheel")


def test_the_source_archive_carries_the_results(sources):
    names = built(sources, "sdist")
    assert RESULT in names
    assert "benchmarks/harness.py" not in names
