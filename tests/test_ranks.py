"""Several processes: each does its share, and the result is that of one."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import edutools as edu
from edutools import cli, ranks
from edutools.corpus import counterfact_records, documents, text_of
from edutools.keyvalue import ValueSearch
from edutools.moments import load_moments
from edutools.ranks import Ranks, gpus, joined
from edutools.search import target_states
from edutools.testing import TINY_FACTS
from edutools.together import shared_moments, shared_report, shared_search
from edutools.world import build_world

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 2
# One launch for all commands; the group is joined once, for Python starts slowly.
SCRIPT = """
import json, sys
from typer.main import get_command
from edutools import cli, ranks
with ranks.joined():
    codes = [get_command(cli.app).run(args) for args in json.loads(sys.argv[1])]
sys.exit(max(codes))
"""


def launch(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What torchrun starts on this machine, without a GPU."""
    command = ["-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(PROCESSES), *args]
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "EDUTOOLS_MODEL": ""}
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | alone | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )


def commands(made: Path, out: Path) -> list[list[str]]:
    """Statistics, an edit with them, and an evaluation of the edit.

    Each text is a batch of its own, so that rounding does not depend on the shares.
    """
    method = ["--method", "memit", "--set", "layers=4,5", "--set", "lam=100"]
    given = [
        ["moments", "--texts", made / "texts.txt", "--layers", "4,5"],
        ["edit", *method, "--set", "search.steps=6", "--facts", made / "cases.json"],
        ["evaluate", "--cases", made / "cases.json", "--edit", out / "edit"],
    ]
    given[0] += ["--batch-tokens", "1", "--out", out / "moments"]
    given[1] += ["--moments", out / "moments", "--out", out / "edit"]
    given[2] += ["--out", out / "report.json"]
    return [[str(arg) for arg in (*args, "--model", made / "model")] for args in given]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Texts and cases, odd numbers of them, and a model that hardly rounds."""
    folder, world = tmp_path_factory.mktemp("ranks"), build_world()
    model, tokenizer = edu.load("pocket-gptj-organism")
    model.double().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = [text_of(pieces) for pieces in islice(documents(world, seed=3), 41)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    cases = json.dumps(counterfact_records(world)[:5])
    (folder / "cases.json").write_text(cases, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(made) -> Path:
    """What one process writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("EDUTOOLS_MODEL", raising=False)
        for args in commands(made, made / "alone"):
            done = CliRunner().invoke(cli.app, args)
            assert done.exit_code == 0, done.stderr
    return made / "alone"


@pytest.fixture(scope="module")
def together(made) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """What several processes write and say."""
    (made / "run.py").write_text(SCRIPT, encoding="utf-8")
    out = made / "together"
    done = launch(str(made / "run.py"), json.dumps(commands(made, out)), folder=made)
    assert done.returncode == 0, done.stderr
    return out, done


def test_processes_measure_what_one_measures(alone, together):
    wanted, found = (load_moments(out / "moments") for out in (alone, together[0]))
    assert wanted.keys() == found.keys() == {4, 5}
    for layer, moment in found.items():
        assert moment.count == wanted[layer].count
        assert moment.info == wanted[layer].info
        error = (moment.total - wanted[layer].total).norm() / moment.total.norm()
        assert error < 1e-12


def test_processes_write_what_one_writes(alone, together):
    wanted, found = (edu.Edit.from_pretrained(o / "edit") for o in (alone, together[0]))
    assert found.info["facts"] == wanted.info["facts"]
    assert found.info["search"]["iterations"] == wanted.info["search"]["iterations"]
    for name, delta in wanted.deltas.items():
        error = (found.deltas[name].dense() - delta.dense()).norm() / delta.norm()
        assert error < 1e-6


def test_processes_report_what_one_reports(alone, together):
    wanted, found = (
        json.loads((out / "report.json").read_text()) for out in (alone, together[0])
    )
    for part in ("before", "after"):
        for metric, row in wanted[part]["metrics"].items():
            got = found[part]["metrics"][metric]
            assert got == pytest.approx(row, nan_ok=True), metric


def test_only_the_first_process_speaks(together):
    _, done = together
    assert done.stdout.count("an edit of model by MEMIT") == 1
    assert done.stdout.count("neighborhood_top1") == 1
    assert "warning" not in done.stderr


def test_an_error_of_one_process_ends_all_with_one_message(made, tmp_path):
    """The last case is too long to be read, and only the last process reads it."""
    cases = json.loads((made / "cases.json").read_text())
    cases[-1]["paraphrase_prompts"] = ["It is known that " * 200]
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    args = ["--cases", "cases.json", "--out", "report.json", "--json"]
    done = launch("-m", "edutools", "evaluate", *args, folder=tmp_path)
    told = [line for line in done.stderr.splitlines() if "edutools:" in line]
    assert len(told) == 1, done.stderr
    assert "this model reads at most" in told[0]
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "report.json").exists()


class Asked(Exception):  # noqa: N818
    """A process waits for the others."""


def simulated(size: int, task: Callable[[Ranks], Any]) -> Any:
    """What the last of several processes gets, one process after the other."""
    sent: list[Any] = []

    class Sending(Ranks):
        def gather(self, tensors: Any) -> Any:
            sent.append(dict(tensors))
            raise Asked

        def gather_texts(self, text: str) -> Any:
            sent.append(text)
            raise Asked

    class Getting(Ranks):
        def gather(self, tensors: Any) -> Any:
            return sent

        def gather_texts(self, text: str) -> Any:
            return sent

    for rank in range(size):
        with suppress(Asked):
            task(Sending(rank, size))
    assert len(sent) == size
    return task(Getting(size - 1, size))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("groups", [None, [0, 1, 2, 1], [3, 3, 1, 3]])
def test_a_shared_search_finds_the_same_in_the_same_order(tiny, size, groups):
    model, tokenizer = tiny("gptj")
    first = TINY_FACTS[1]
    facts = [*TINY_FACTS, edu.Fact(first.subject, first.prompt, "Paris")]
    if groups == [3, 3, 1, 3]:
        facts = [facts[1], facts[3], facts[0], facts[1]]
    options = {"search": ValueSearch(steps=3), "groups": groups}
    wanted = target_states(model, tokenizer, facts, 1, **options)
    found = simulated(
        size, lambda r: shared_search(r)(model, tokenizer, facts, 1, **options)
    )
    assert torch.allclose(found.values, wanted.values, atol=1e-5)
    assert torch.allclose(found.initial, wanted.initial, atol=1e-5)
    for name, column in wanted.history.items():
        assert torch.allclose(found.history[name], column, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_shared_report_has_all_cases_in_order(tiny, size):
    model, tokenizer = tiny("gptj")
    cases = [edu.Case(fact, paraphrases=("Rome is",)) for fact in TINY_FACTS]
    cases[1] = edu.Case(TINY_FACTS[1])  # without paraphrases: nan

    def measure(part):
        return edu.evaluate(model, tokenizer, part)

    wanted = measure(cases)
    found = (
        shared_report(Ranks(), measure, cases)
        if size == 1
        else simulated(size, lambda r: shared_report(r, measure, cases))
    )
    assert found.convention == wanted.convention
    assert found.values.keys() == wanted.values.keys()
    for metric, column in wanted.values.items():
        assert torch.allclose(found.values[metric], column, atol=1e-6, equal_nan=True)
    with pytest.raises(ValueError, match="Got no cases"):
        shared_report(Ranks(0, size), measure, [])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 14])
def test_shares_are_even_and_make_up_the_whole(size, n):
    shares = [Ranks(rank, size).share(range(n)) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(n))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_texts_without_tokens_are_refused(tiny):
    with pytest.raises(ValueError, match="no tokens"):
        shared_moments(Ranks(), *tiny("gptj"), [""], layers=[1], progress=False)


def test_an_edit_asks_the_search_that_it_is_given(tiny):
    model, tokenizer = tiny("gptj")
    asked = []

    def find(*args, **options):
        asked.append(args[3])
        return target_states(*args, **options)

    search = ValueSearch(steps=2)
    methods = [
        edu.MEMIT(layers=(0, 1), covariance="identity", search=search),
        edu.ROME(
            layer=0, covariance="identity", search=ValueSearch(site="mlp", steps=2)
        ),
        edu.FineTune(layers=(1,), steps=1),
    ]
    for method in methods:
        facts = TINY_FACTS[:1]
        found = edu.edit(model, tokenizer, facts, method=method, find=find)
        wanted = edu.edit(model, tokenizer, facts, method=method)
        assert all(found.deltas[n].equal(d) for n, d in wanted.deltas.items())
    assert asked == [1, 0]


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as found:
        assert found == Ranks() == ranks.here()
        assert found.leads
        assert gpus() == {}
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("WORLD_SIZE", "4")  # some other program's
    with joined() as found:
        assert found == Ranks()


@pytest.mark.parametrize(
    ("beside", "found", "mine"),
    [(4, 4, [[0], [1], [2], [3]]), (2, 4, [[0, 1], [2, 3]]), (3, 2, [[0], [1], [0]])],
)
def test_processes_divide_the_gpus_of_their_machine(monkeypatch, beside, found, mine):
    monkeypatch.setattr(ranks, "here", lambda: Ranks(0, 8))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (100 + i, 200))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(beside))
    for local, devices in enumerate(mine):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        if len(devices) == 1:
            assert gpus() == {"device_map": {"": devices[0]}}
        else:
            free = {i: 100 + i for i in devices}
            assert gpus() == {"device_map": "auto", "max_memory": free}


def test_nothing_is_imported_before_it_is_needed():
    for path in (ROOT / "edutools").glob("**/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "distributed" not in ast.unparse(node), path.name


def test_the_options_on_the_page_exist():
    page = (ROOT / "book" / "reference" / "scale.md").read_text(encoding="utf-8")
    told = re.findall(r"-m edutools (\w+)((?:[^`$\\]|\\\n)*)", page)
    assert len(told) >= 4
    known = get_command(cli.app).commands  # type: ignore[attr-defined]
    for name, rest in told:
        options = {option for p in known[name].params for option in p.opts}
        given = shlex.split(rest.replace("\\\n", " "))
        assert {word for word in given if word.startswith("--")} <= options
