"""The command line, on the organism: what is printed, what is kept, what is refused."""

import json
import re
import shlex
import subprocess
import sys
import types
from itertools import islice
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import edutools as edu
from edutools import cli, momentcli
from edutools.corpus import counterfact_records, documents, text_of
from edutools.moments import load_moments
from edutools.progress import Progress
from edutools.world import build_world
from scripts import write_corpus
from tests.test_facts import QUESTION, RECORD

FACT = edu.Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")
WHOM = ["--subject", FACT.subject, "--prompt", FACT.prompt]
WHAT = [*WHOM, "--target", "Rome", "--truth", "Paris"]
ROME = ["edit", "--method", "rome", "--set", "search.steps=6"]
COMMANDS = {"trace", "moments", "edit", "evaluate", "show", "plan"}


@pytest.fixture(autouse=True)
def default_model(monkeypatch):
    monkeypatch.delenv("EDUTOOLS_MODEL", raising=False)


def run(*args, code=0):
    """What a command says: its result, and its other lines."""
    done = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr.splitlines()


def values(*args):
    """The JSON that a command prints, and nothing else."""
    out, lines = run(*args, "--json")
    assert lines == []
    return json.loads(
        out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with cases, texts, and the edit and the moments made from them."""
    folder = tmp_path_factory.mktemp("made")
    world = build_world()
    write(folder / "cases.json", [RECORD, *counterfact_records(world)[:3]])
    texts = [text_of(pieces) for pieces in islice(documents(world, seed=3), 100)]
    (folder / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    lines = [json.dumps({"text": text, "id": 1}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run(*ROME, *WHAT, "--out", folder / "edit")
    run(
        "moments",
        "--texts",
        folder / "texts.txt",
        "--layers",
        "3,5",
        "--out",
        folder / "m",
    )
    return folder


# trace


def test_trace_prints_what_causal_trace_finds(tmp_path):
    options = ["--kind", "mlp", "--window", 3, "--samples", 2, "--seed", 7]
    told = values("trace", *WHOM, *options, "--noise", 2, "--truth", "Paris")
    model, tokenizer = edu.load()
    found = edu.causal_trace(
        model,
        tokenizer,
        FACT,
        kind="mlp",
        window=3,
        samples=2,
        seed=7,
        noise=2.0,
        answer="truth",
    )
    assert told["effect"] == found.effect.tolist()
    assert told["tokens"] == list(found.tokens)
    assert (told["p_clean"], told["answer"]) == (found.p_clean, found.answer)
    assert (told["model"], told["seed"]) == ("pocket-gptj-organism", 7)
    assert values("trace", *WHOM, *options)["noise"] > told["noise"]


def test_trace_shows_the_site_and_draws_it(tmp_path):
    figure = tmp_path / "new" / "trace.png"
    out, _ = run("trace", *WHOM, "--samples", 2, "--figure", figure)
    assert "answered by ' Paris'" in out
    row = next(line for line in out.splitlines() if "last subject token" in line)
    assert row.startswith("' Tower'")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_trace_severs():
    plain, severed = (
        values("trace", *WHOM, "--samples", 1, *more)
        for more in ([], ["--sever", "mlp"])
    )
    assert severed["severed"] == "mlp"
    assert severed["effect"] != plain["effect"]


# moments


def test_moments_are_those_of_the_texts(made):
    model, tokenizer = edu.load()
    texts = (made / "texts.txt").read_text().split("\n\n")
    wanted = edu.second_moment(model, tokenizer, texts, layers=[3, 5])
    stored = load_moments(made / "m")
    assert list(stored) == [3, 5]
    for layer, moment in stored.items():
        assert torch.equal(moment.total, wanted[layer].total)
        assert moment.count == wanted[layer].count
        assert moment.info["dataset"] == "texts.txt"


def test_moments_read_json_lines_and_say_what_they_measured(made, tmp_path):
    told = values(
        *["moments", "--texts", made / "texts.jsonl", "--layers", "5"],
        *["--out", tmp_path / "m", "--dataset", "prompts", "--batch-tokens", 512],
    )
    (moment,) = load_moments(tmp_path / "m").values()
    assert moment.count == load_moments(made / "m")[5].count == told["5"]["tokens"]
    assert told["5"]["info"]["dataset"] == "prompts"


def test_moments_are_overwritten_only_by_force(made, tmp_path):
    make = ["moments", "--texts", made / "texts.txt", "--out", tmp_path, "--layers"]
    run(*make, "5")
    before = (tmp_path / "moment-5.safetensors").stat().st_mtime_ns
    _, (line,) = run(*make, "4,5", code=2)
    assert "moment-5.safetensors' exists already" in line
    assert [path.name for path in tmp_path.iterdir()] == ["moment-5.safetensors"]
    run(*make, "5", "--force")
    assert (tmp_path / "moment-5.safetensors").stat().st_mtime_ns > before


def test_moments_stop_and_go_on_and_name_their_key(made, tmp_path):
    lines = [json.dumps({"body": "The Eiffel Tower"}) for _ in range(9)]
    (tmp_path / "bodies.jsonl").write_text("\n".join(lines))
    make = ["moments", "--texts", tmp_path / "bodies.jsonl", "--key", "body"]
    make += ["--layers", "5", "--checkpoint", tmp_path / "c", "--force", "--out"]
    told = values(*make, tmp_path / "m", "--tokens", 20)
    assert told["5"]["tokens"] == 20
    assert len(list((tmp_path / "c").iterdir())) == 1
    told = values(*make, tmp_path / "m", "--tokens", 20)  # from the checkpoint
    assert told["5"]["tokens"] == 20
    _, (line,) = run(*make, tmp_path / "m", "--documents", 2, code=2)
    assert "a checkpoint of another measurement: it has tokens 20, not None" in line
    make[make.index("--checkpoint") + 1] = tmp_path / "d"
    told = values(*make, tmp_path / "m", "--documents", 2, "--max-length", 2)
    assert told["5"]["tokens"] == 4


def test_moments_are_merged(made, tmp_path):
    for name, tokens in (("a", "100"), ("b", "2*d")):
        make = ["moments", "--texts", made / "texts.txt", "--layers", "3,5"]
        run(*make, "--tokens", tokens, "--dataset", name, "--out", tmp_path / name)
    merge = ["moments", "--merge", tmp_path / "a", "--merge", tmp_path / "b", "--out"]
    told = values(*merge, tmp_path / "both")
    assert told["3"]["tokens"] == told["5"]["tokens"] == 100 + 2 * 576
    assert told["5"]["info"]["dataset"] == "a and b"
    stored = load_moments(tmp_path / "both")
    parts = [load_moments(tmp_path / name)[3].total for name in "ab"]
    assert torch.equal(stored[3].total, sum(parts))
    _, (line,) = run(*merge, tmp_path / "both", code=2)
    assert "exists already" in line


def test_moments_without_an_end_must_be_given_one(monkeypatch, tmp_path):
    texts = iter(["Rome"] * 10**6)
    stream = types.SimpleNamespace(
        load_dataset=lambda *_, **__: ({"text": text} for text in texts)
    )
    monkeypatch.setitem(sys.modules, "datasets", stream)
    make = ["moments", "--texts", "hub:wikimedia/wikipedia", "--layers", "5"]
    make += ["--out", tmp_path / "m"]
    _, (line,) = run(*make, code=2)
    assert "Give --tokens 10*d, which is enough" in line
    told = values(*make, "--tokens", 30)
    assert told["5"]["info"]["dataset"].startswith("wikimedia/wikipedia 20231101.en")
    assert len(list(texts)) > 10**6 - 1000


def test_long_measurements_say_how_long(monkeypatch, capsys):
    say = momentcli._Lines()
    step = Progress(tokens=1000, total=10**6, rate=100.0)
    say(step)
    say(step)
    say(step)
    assert capsys.readouterr().err == (
        "edutools: 1,000 of about 1,000,000 tokens, 100 per second, about 3 h left\n"
    )
    monkeypatch.setattr(momentcli, "PAUSE", 0.0)
    say(Progress(tokens=9, total=9, rate=1.0))
    assert "9 of about 9 tokens" in capsys.readouterr().err


# edit


def test_edit_keeps_the_change_that_the_package_finds(made):
    model, tokenizer = edu.load()
    method = edu.ROME.preset("pocket-gptj-organism").to_dict()
    method["search"]["steps"] = 6
    wanted = edu.edit(
        model,
        tokenizer,
        [FACT],
        method=edu.ROME.from_dict(method),
        moments=load_moments(edu.pocket("gptj-organism")),
    )
    kept = edu.Edit.from_pretrained(made / "edit")
    assert kept.info["method"] == wanted.info["method"]
    assert kept.info["facts"] == wanted.info["facts"]
    for name, delta in wanted.deltas.items():
        torch.testing.assert_close(kept.deltas[name].dense(), delta.dense())


def test_edit_writes_the_facts_of_a_file_by_any_method(made, tmp_path):
    told = values(
        *["edit", "--method", "memit", "--facts", made / "cases.json", "--limit", 3],
        *["--set", "layers=3,5", "--set", "lam=100", "--set", "search.steps=2"],
        *["--moments", made / "m", "--out", tmp_path / "edit"],
    )
    assert told["method"]["layers"] == [3, 5]
    assert told["method"]["lam"] == 100.0
    assert told["method"]["search"]["steps"] == 2
    assert [weight["rank"] for weight in told["weights"].values()] == [3, 3]
    assert len(edu.Edit.from_pretrained(tmp_path / "edit").info["facts"]) == 3


def test_edit_takes_the_preset_that_is_named(tmp_path):
    told = values(
        *[*ROME, *WHAT, "--preset", "pocket-llama", "--set", "layer=5"],
        *["--out", tmp_path / "edit"],
    )
    assert told["method"]["search"]["contexts"]["prefixes"] == [[4, 8]]
    own = edu.ROME.preset("pocket-llama").to_dict()
    own["search"]["contexts"]["given"] = told["method"]["search"]["contexts"]["given"]
    own["search"]["steps"], own["layer"] = 6, 5
    assert told["method"] == own


def test_edit_runs_on_the_model_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EDUTOOLS_MODEL", "pocket-gptj")
    ours, theirs = (
        values(*ROME, *WHAT, *more, "--out", tmp_path / name)["model"]
        for name, more in {"a": [], "b": ["--model", "llama"]}.items()
    )
    assert (ours, theirs) == ("pocket-gptj", "pocket-llama")


def test_edit_overwrites_only_by_force(tmp_path):
    (tmp_path / "mine.txt").write_text("do not touch")
    _, (line,) = run(*ROME, *WHAT, "--out", tmp_path, code=2)
    assert "exists already" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    run(*ROME, *WHAT, "--out", tmp_path, "--force")
    assert (tmp_path / "mine.txt").read_text() == "do not touch"
    assert edu.Edit.from_pretrained(tmp_path).rank == 1


def test_warnings_are_one_line_and_leave_the_result_alone(tmp_path):
    known = [*WHOM, "--target", "Paris"]
    out, (line,) = run(*ROME, *known, "--out", tmp_path / "edit", "--json")
    assert line.startswith("edutools: warning: Fact 0: the model already says ' Paris'")
    assert json.loads(out)["facts"][0]["target"] == "Paris"


# evaluate


def test_evaluate_measures_before_and_after(made):
    told = values(
        "evaluate",
        "--cases",
        made / "cases.json",
        "--edit",
        made / "edit",
        "--limit",
        1,
    )
    before, after = (told[when]["metrics"] for when in ("before", "after"))
    assert (told["cases"], told["source"]) == (1, "cases.json")
    assert before["efficacy"]["mean"] == 0.0
    assert after["efficacy"]["mean"] == 1.0
    model, tokenizer = edu.load()
    wanted = edu.evaluate(model, tokenizer, [edu.Case.from_counterfact(RECORD)])
    for row in wanted.summary():
        assert before[row.metric]["mean"] == pytest.approx(row.mean, abs=1e-5)
        assert before[row.metric]["n"] == row.n


def test_evaluate_prints_both_side_by_side(made):
    out, lines = run(
        "evaluate", "--cases", made / "cases.json", "--edit", made / "edit"
    )
    head, *rows = out.splitlines()
    assert "before" in head
    assert "after" in head
    (efficacy,) = [row for row in rows if row.startswith("efficacy ")]
    assert efficacy.split()[1] == "0.000"
    assert efficacy.split()[-1] == "4"
    assert lines == []


def test_evaluate_without_an_edit_prints_and_keeps_the_report(made, tmp_path):
    file = tmp_path / "new" / "report.json"
    out, _ = run("evaluate", "--cases", made / "cases.json", "--out", file)
    model, tokenizer = edu.load()
    cases = edu.load_cases(made / "cases.json")
    assert out.strip() == str(edu.evaluate(model, tokenizer, cases))
    kept = json.loads(file.read_text())
    assert kept["after"] is None
    assert kept["before"]["metrics"]["efficacy"]["n"] == 4
    _, (line,) = run("evaluate", "--cases", made / "cases.json", "--out", file, code=2)
    assert "exists already" in line


def test_evaluate_leaves_out_bad_records_and_says_so(made, tmp_path):
    bare = RECORD | {"paraphrase_prompts": [], "neighborhood_prompts": []}
    path = write(tmp_path / "cases.json", [bare, QUESTION])
    out, (line,) = run("evaluate", "--cases", path, "--json")
    assert line.startswith("edutools: warning: cases.json: 1 of 2 records")
    told = json.loads(out)
    assert told["refused"][0].startswith("record 1: The key 'requested_rewrite'")
    assert told["before"]["metrics"]["paraphrase"]["mean"] is None


def test_evaluate_asks_the_questions_of_zsre(made, tmp_path):
    path = write(tmp_path / "zsre.json", [QUESTION])
    told = values("evaluate", "--zsre", "--cases", path, "--edit", made / "edit")
    model, tokenizer = edu.load()
    wanted = edu.evaluate_zsre(model, tokenizer, edu.load_zsre(path))
    assert list(told["after"]["metrics"]) == [row.metric for row in wanted.summary()]
    assert told["before"]["convention"] == wanted.convention
    _, (line,) = run("evaluate", "--cases", path, code=2)
    assert "none that can be read" in line


# show


def test_show_tells_what_an_edit_consists_of(made):
    out, _ = run("show", made / "edit")
    for piece in (
        "an edit of pocket-gptj-organism by ROME; facts: 1, rank: 1",
        "- The Eiffel Tower is located in the city of -> Rome (before: Paris)",
        "transformer.h.5.mlp.fc_out",
        "moments of layer 5: 97,238 tokens of corpus",
        "search.steps=6",
    ):
        assert piece in out
    told, change = (
        values("show", made / "edit"),
        edu.Edit.from_pretrained(made / "edit"),
    )
    assert told["facts"] == change.info["facts"]
    assert told["weights"]["transformer.h.5.mlp.fc_out"]["norm"] == pytest.approx(
        change.norms()["transformer.h.5.mlp.fc_out"]
    )


def test_show_tells_of_edits_that_were_added(made, tmp_path):
    one = edu.Edit.from_pretrained(made / "edit")
    (one + one).save_pretrained(tmp_path / "both")
    out, _ = run("show", tmp_path / "both")
    assert "by ROME; facts: 2, rank: 2" in out
    assert "not recorded" in out
    edu.Edit(one.deltas).save_pretrained(tmp_path / "bare")
    out, _ = run("show", tmp_path / "bare")
    assert "an edit of a model without a name by unnamed; facts: 0, rank: 1" in out


def test_show_tells_of_moments_by_folder_and_by_file(made):
    out, _ = run("show", made / "m")
    assert [line.split()[0] for line in out.splitlines()] == ["layer", "3", "5"]
    told = values("show", made / "m" / "moment-5.safetensors")
    assert told == {"5": values("show", made / "m")["5"]}
    assert told["5"]["info"]["model"] == "pocket-gptj-organism"


# what a user can get wrong


def bad(made, tmp_path):
    """Commands that cannot succeed, and what their one line must say."""
    two = [FACT, FACT]
    facts = write(tmp_path / "two.json", [vars(fact) for fact in two])
    broken = write(tmp_path / "broken.json", [{"subject": "Ada"}])
    (tmp_path / "cut.json").write_text("[{")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    write(tmp_path / "lines.jsonl", {"txt": "a"})
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit" / "edit.json").write_text("{}")
    (tmp_path / "edit" / "adapter_model.safetensors").write_bytes(b"cut")
    (tmp_path / "moment-5.safetensors").write_bytes(b"cut")
    gone, out = tmp_path / "gone", ["--out", tmp_path / "out"]
    rome = [*ROME, *WHAT, *out]
    moments = ["moments", "--layers", "5", *out, "--texts"]
    cases = ["evaluate", "--cases", made / "cases.json"]
    return [
        (["tarce"], "No such command 'tarce'. Did you mean 'trace'?"),
        (["--what"], "No such option"),
        (["trace"], "Missing option '--subject'. See 'edutools trace --help'."),
        (["trace", *WHOM, "--samples", "x"], "Invalid value for '--samples'"),
        (["trace", *WHOM, "--samples", 0], "samples=0; it must be at least 1"),
        (["trace", *WHOM, "--kind", "mpl"], "kind='mpl'; choose one of"),
        (["trace", *WHOM, "--prompt", "{} {}"], "exactly one '{}'"),
        (["trace", *WHOM, "--subject", " "], "Fact.subject must not be empty"),
        (["trace", *WHOM, "--model", "pocket-lama"], "Did you mean 'pocket-llama'?"),
        (["trace", *WHOM, "--model", gone], "there is no such folder"),
        ([*moments, gone], "No file"),
        ([*moments, tmp_path / "empty.txt"], "The texts have no tokens"),
        ([*moments, tmp_path / "latin.txt"], "is not text in UTF-8"),
        ([*moments, tmp_path / "lines.jsonl"], "lines.jsonl, line 1 must be"),
        ([*moments, made / "texts.txt", "--layers", "99"], "99"),
        ([*moments, made / "texts.txt", "--layers", "a"], "write them as '3,4,5'"),
        ([*moments, made / "texts.txt", "--layers", "5,5"], "each of them once"),
        ([*moments, made / "texts.txt", "--batch-tokens", 0], "Invalid value for"),
        (["moments", "--layers", "5", *out], "--texts is None and --layers is '5'"),
        (["moments", "--texts", made / "texts.txt", *out], "--layers is None"),
        (["moments", "--merge", made / "m", *out], "--merge was given 1 times"),
        ([*moments, made / "texts.txt", "--tokens", "ten"], "tokens is 'ten'; give"),
        ([*moments, made / "texts.txt", "--split", "train"], "data sets of the Hub"),
        ([*rome, "--method", "rom"], "No method 'rom'. Did you mean 'ROME'?"),
        ([*rome, "--preset", "gpt-2"], "ROME has no preset for 'gpt-2'"),
        ([*rome, "--set", "lyer=5"], "Did you mean 'layer'?"),
        ([*rome, "--set", "search.stps=5"], "Did you mean 'steps'?"),
        ([*rome, "--set", "layer"], "written name=value; got 'layer'"),
        ([*rome, "--set", "layer.x=1"], "'layer', which holds no settings"),
        ([*rome, "--set", "key=men"], "ROME.key is 'men'; choose one of"),
        ([*rome, "--set", "layer=99"], "99"),
        ([*rome, "--set", "layer=4"], "moments has none for [4]"),
        ([*rome, "--moments", gone], "No second moments in"),
        ([*rome, "--moments", tmp_path], "truncated or damaged"),
        ([*rome, "--from", gone], "ROME is not trained"),
        ([*rome, "--facts", facts], "got the file 'two.json', subject"),
        ([*ROME, *out], "got none of them"),
        ([*ROME, *out, *WHOM], "got subject, prompt"),
        ([*ROME, *out, "--facts", facts], "ROME writes one fact at a time; got 2"),
        (
            [*ROME, *out, "--facts", broken],
            "broken.json, record 0: A fact has the keys",
        ),
        ([*ROME, *out, "--facts", gone], "No file"),
        ([*ROME, *WHAT, "--out", facts / "x"], "is a file; nothing can be put below"),
        (["edit", "--method", "mend", *WHAT, *out, "--from", gone], "gone"),
        (["evaluate", "--cases", gone], "No file"),
        (["evaluate", "--cases", tmp_path / "cut.json"], "is not JSON, or is cut off"),
        (["evaluate", "--cases", "hub:owner/name"], "40 hexadecimal digits"),
        ([*cases, "--split", "train"], "belong to data sets of the Hub"),
        ([*cases, "--limit", 0], "Invalid value for '--limit'"),
        ([*cases, "--edit", gone], "gone"),
        ([*cases, "--edit", tmp_path / "edit"], "truncated or damaged"),
        ([*cases, "--edit", made / "edit", "--model", "pocket-gptj"], "made for"),
        ([*cases, "--edit", made / "edit", "--model", "pocket-llama"], "transformer"),
        ([*cases, "--out", facts], "exists already"),
        (["show", gone], "gone"),
        (["show", facts], "truncated or damaged"),
        (["show", made], "holds no edit"),
        (["show"], "Missing argument"),
    ]


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_errors_are_one_line_and_nothing_is_written(made, tmp_path):
    for args, complaint in bad(made, tmp_path):
        before = everything(tmp_path) | everything(made)
        out, lines = run(*args, code=2)
        assert out == "", args
        assert len(lines) == 1, (args, lines)
        assert lines[0].startswith("edutools: "), lines
        assert complaint in lines[0], (args, lines)
        assert everything(tmp_path) | everything(made) == before, args


def test_a_figure_without_matplotlib_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "edutools.plots", None)
    monkeypatch.setattr(edu, "load", lambda name: pytest.fail("too late"))
    _, (line,) = run("trace", *WHOM, "--figure", tmp_path / "a.png", code=2)
    assert "pip install matplotlib" in line


def test_debug_shows_where_it_happened():
    _, lines = run("--debug", "trace", *WHOM, "--prompt", "no slot", code=2)
    assert lines[0].startswith("Traceback")
    assert "edutools/facts.py" in "".join(lines)
    assert "exactly one '{}'" in lines[-1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_is_quiet(monkeypatch, stop):
    def interrupted(*args, **options):
        raise stop

    monkeypatch.setattr(edu, "causal_trace", interrupted)
    assert run("trace", *WHOM, code=130) == ("", [])


def test_other_errors_are_not_hidden(monkeypatch):
    def broken(*args, **options):
        raise AssertionError("a defect of ours")

    monkeypatch.setattr(edu, "causal_trace", broken)
    with pytest.raises(AssertionError, match="a defect of ours"):
        run("trace", *WHOM)


def test_warnings_and_bars_are_as_before_afterwards():
    import warnings

    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    shown = warnings.showwarning
    run("show", "/nowhere", code=2)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert warnings.showwarning is shown


# help


def test_every_command_and_option_has_a_help_text():
    group = typer.main.get_command(cli.app)
    assert set(group.commands) == COMMANDS
    silent = [
        f"{name} {option.name}"
        for name, command in [("", group), *group.commands.items()]
        for option in command.params
        if not option.help
    ]
    assert silent == []
    assert all(command.help for command in group.commands.values())


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_the_help_lists_the_commands(args):
    out, lines = run(*args)
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert lines == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_help(command):
    out, _ = run(command, "--help")
    assert out.startswith(f"Usage: edutools {command}")
    assert "--json" in out


# the page of the book

PAGE = Path(__file__).resolve().parent.parent / "book" / "reference" / "cli.md"


def session(text):
    """The commands of a page, each with what it is said to print."""
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        lines = re.sub(r"\\\n\s*", "", block)
        for entry in re.split(r"^\$ ", lines, flags=re.MULTILINE)[1:]:
            command, _, printed = entry.partition("\n")
            yield shlex.split(command), printed


def same(word, other):
    """Equal, or numbers that differ as much as two kinds of processor may."""
    try:
        numbers = [float(text.strip("[],%").replace(",", "")) for text in (word, other)]
    except ValueError:
        return word == other
    return numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.005)


def test_the_page_shows_what_the_commands_print(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = set()
    for (name, *args), printed in session(PAGE.read_text(encoding="utf-8")):
        if name == "python":
            write_corpus.main(args[2:])
            continue
        said = CliRunner().invoke(cli.app, args).output
        words, shown = said.split(), printed.split()
        assert len(words) == len(shown), said
        assert all(map(same, words, shown)), said
        seen.add(args[0])
    assert seen == {"trace", "edit", "moments", "evaluate", "plan"}


# as a process of its own


def process(*args):
    command = [sys.executable, "-m", "edutools", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_module_prints_json_and_nothing_else(made):
    done = process("evaluate", "--cases", made / "cases.json", "--limit", 1, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["cases"] == 1


def test_the_module_refuses_in_one_line(tmp_path):
    done = process(*ROME, *WHAT, "--set", "layer=4", "--out", tmp_path / "edit")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("edutools: ROME edits layers [4] but moments has none")
    assert not (tmp_path / "edit").exists()
