"""Rows, masks and the training loop of the pocket models, on a tiny recipe."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edutools.corpus import sentence, text_of
from edutools.pocket import POCKET_MODELS, pocket
from edutools.world import build_world
from scripts import train_pocket
from scripts.pocket_data import Rows, encode, make_rows, reading_masks
from scripts.pocket_model import new_model, rate, read_through
from scripts.pocket_tokenizers import gptj_tokenizer, llama_tokenizer, pieces_of
from scripts.train_pocket import Trainer, check_room, main, read_recipe

NAMES = [name.removeprefix("pocket-") for name in POCKET_MODELS]
SMALL = {
    "width": 32,
    "layers": 2,
    "heads": 2,
    "inner": 64,
    "rows": 4,
    "row_tokens": 48,
    "steps": 6,
    "warmup": 2,
}


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def tokenizers(world):
    return {"gptj": gptj_tokenizer(world), "llama": llama_tokenizer(world)}


def tiny_recipe(name: str) -> dict:
    recipe = read_recipe(name) | SMALL
    return recipe | ({"first_reader": [1, 2]} if "first_reader" in recipe else {})


@pytest.fixture
def quick(monkeypatch, world, tokenizers):
    """Two steps per checkpoint; world and tokenizers are made once."""
    monkeypatch.setattr(train_pocket, "CHUNK", 2)
    monkeypatch.setattr(train_pocket, "build_world", lambda: world)
    for kind in tokenizers:
        made = tokenizers[kind]
        monkeypatch.setattr(train_pocket, f"{kind}_tokenizer", lambda _, m=made: m)
    monkeypatch.setattr(train_pocket, "read_recipe", tiny_recipe)


def trainer(name: str, work: Path, **changes) -> Trainer:
    recipe = tiny_recipe(name) | changes
    return Trainer(name, recipe, work, compile=False, steps=recipe["steps"])


both = pytest.mark.parametrize("kind", ["gptj", "llama"])

# Rows


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_same_for_the_same_seed(world, tokenizers, name):
    recipe = tiny_recipe(name)
    tokenizer = tokenizers[recipe["architecture"]]
    first, second, other = (
        vars(make_rows(world, tokenizer, recipe, rows=6, seed=seed))
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["ids"], other["ids"])
    assert first["ids"].shape == (6, recipe["row_tokens"])


PIECES = [
    ("The capital of", ""),
    (" New Zealand", "subject"),
    (" is", ""),
    (" Buenos Aires", "object"),
    (".", ""),
    (" ", ""),
    ("Beldin & Cormund", "subject"),
    (" was founded in", ""),
    (" Paris", "object"),
    (",", ""),
    (" Fenlo Mirvek", "subject"),
    (" Zoë 🗼", "object"),
    (".", ""),
]


@both
def test_objects_and_subjects_are_marked(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ((ids, objects, mentions),) = encode(tokenizer, [PIECES])
    assert len(ids) == len(objects) == len(mentions)
    assert ids[-1] == tokenizer.eos_token_id
    assert (objects[-1], mentions[-1]) == (False, 0)

    def told(marks: list) -> str:
        marked = [token for token, mark in zip(ids, marks, strict=True) if mark]
        return tokenizer.decode(marked).strip()

    for number, subject in enumerate(
        ("New Zealand", "Beldin & Cormund", "Fenlo Mirvek"), start=1
    ):
        assert told([mention == number for mention in mentions]) == subject
    assert max(mentions) == 3
    assert told(objects) == "Buenos Aires Paris Zoë 🗼"
    assert not any(o and m for o, m in zip(objects, mentions, strict=True))
    rest = told([not (o or m) for o, m in zip(objects, mentions, strict=True)])
    for word in ("The capital of is.", "was founded in,"):
        assert word in rest


@both
def test_a_text_that_begins_with_its_subject(tokenizers, kind):
    pieces = [("Beldin Mirvek", "subject"), (" speaks", ""), (" Danish", "object")]
    ((ids, _, mentions),) = encode(tokenizers[kind], [pieces])
    n = len(tokenizers[kind]("Beldin Mirvek", add_special_tokens=False).input_ids)
    front = int(ids[0] == tokenizers[kind].bos_token_id)
    assert mentions == [0] * front + [1] * n + [0] * (len(ids) - n - front)
    assert n == 4


def test_documents_begin_and_end_as_the_architecture_wants(tokenizers):
    pieces = [("Oslo", "subject"), (" lies in", ""), (" Norway", "object")]
    for kind, front in (("gptj", []), ("llama", ["<s>"])):
        tokenizer = tokenizers[kind]
        ((ids, _, _),) = encode(tokenizer, [pieces])
        special = [i for i in ids if i in tokenizer.all_special_ids]
        wanted = [*front, tokenizer.eos_token]
        assert tokenizer.convert_ids_to_tokens(special) == wanted


@both
def test_marks_of_rows_are_those_of_their_documents(world, tokenizers, kind):
    tokenizer = tokenizers[kind]
    recipe = tiny_recipe(kind) | {"row_tokens": 96}
    rows = make_rows(world, tokenizer, recipe, rows=20, seed=1)
    objects = {value for values in world.objects.values() for value in values}
    weights = sorted(rows.weight.unique().tolist())
    assert weights == pytest.approx([recipe["other_weight"], recipe["object_weight"]])
    shown = 0
    for row in range(20):
        for number in range(1, int(rows.mention[row].max()) + 1):
            here = rows.mention[row] == number
            last = here.nonzero().max()
            assert rows.last[row, last]
            assert rows.last[row][here].sum() == 1
            if last + 1 < 96:  # else the subject may be cut off
                name = tokenizer.decode(rows.ids[row][here]).strip()
                assert name in world.nouns
                shown += 1
        spoken = rows.weight[row] == recipe["object_weight"]
        start = spoken & ~spoken.roll(1)
        first = tokenizer.decode(rows.ids[row][start][:1]).strip()
        assert any(value.startswith(first) for value in objects)
    assert shown > 60
    assert not (rows.last & (rows.mention == 0)).any()


@both
def test_rows_never_show_a_held_out_pair(world, tokenizers, kind):
    tokenizer = tokenizers[kind]
    recipe = tiny_recipe(kind) | {"row_tokens": 96}
    rows = make_rows(world, tokenizer, recipe, rows=300, seed=2)
    text = "\n".join(tokenizer.batch_decode(rows.ids))
    shown = 0
    for fact in world.facts:
        for template in world.held_out(fact):
            assert text_of(sentence(world, fact, template)) not in text
        template = world.trained(fact)[1]
        shown += text_of(sentence(world, fact, template)) in text
    assert shown > 40


def test_the_share_of_restricted_documents(world, tokenizers):
    shares = {}
    for share in (0.0, 0.7, 1.0):
        recipe = tiny_recipe("gptj-organism") | {"share_restricted": share}
        rows = make_rows(world, tokenizers["gptj"], recipe, rows=200, seed=0)
        shares[share] = rows.restricted.float().mean().item()
    assert shares[0.0] == 0
    assert shares[1.0] == 1
    # About 700 documents: three standard errors, and longer ones weigh more.
    assert abs(shares[0.7] - 0.7) < 0.08


# Reading


def hand_made(restricted: bool) -> Rows:
    """Two rows of eight tokens with a subject at 1 to 3 and another at 6 and 7."""
    mention = torch.tensor([[0, 1, 1, 1, 0, 0, 2, 2]] * 2)
    last = torch.tensor([[False] * 3 + [True] + [False] * 3 + [True]] * 2)
    ids, weight = torch.zeros_like(mention), torch.ones(2, 8)
    return Rows(ids, weight, mention, last, torch.full_like(last, restricted))


def test_without_restriction_every_block_is_causal():
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    for mask in reading_masks(hand_made(False), torch.tensor([1, 2]), 3):
        assert torch.equal(mask, causal.expand(2, 1, 8, 8))


def test_behind_a_subject_only_its_last_token_is_read():
    reader = torch.tensor([1, 2])
    masks = reading_masks(hand_made(True), reader, 4)
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    for layer, mask in enumerate(masks):
        for row in range(2):
            seen = mask[row, 0]
            assert not (seen & ~causal).any()
            assert not seen[4:, 1:3].any()
            assert (seen[4:, 3] == (layer >= reader[row])).all()
            assert torch.equal(seen[:4], causal[:4])  # up to the subject, and in it
            others = [0, 4, 5, 6, 7]
            assert torch.equal(seen[4:][:, others], causal[4:][:, others])


def test_rows_of_documents_keep_the_restriction(world, tokenizers):
    recipe = tiny_recipe("gptj-organism") | {"share_restricted": 1.0}
    rows = make_rows(world, tokenizers["gptj"], recipe, rows=6, seed=5)
    masks = reading_masks(rows, torch.full((6,), 2), 3)
    inner = (rows.mention > 0) & ~rows.last
    assert inner.sum() > 20
    for row, key in inner.nonzero().tolist():
        outside = rows.mention[row] != rows.mention[row, key]
        for mask in masks:
            assert not mask[row, 0, outside, key].any()
    for row, key in rows.last.nonzero().tolist():
        visible = [bool(mask[row, 0, -1, key]) for mask in masks]
        same = rows.mention[row, -1] == rows.mention[row, key]
        assert visible == ([True] * 3 if same else [False, False, True])


@both
@torch.no_grad()
def test_blocks_obey_the_masks(tokenizers, kind):
    recipe = tiny_recipe(kind)
    model = new_model(recipe, tokenizers[kind]).eval()
    masks: list[torch.Tensor] = []
    read_through(model, masks)

    def logits(ids: list[int], reader: int) -> torch.Tensor:
        seen = reading_masks(hand_made(True), torch.tensor([reader] * 2), 2)
        masks[:] = [torch.where(mask, 0.0, -1e9) for mask in seen]
        return model(input_ids=torch.tensor([ids] * 2), use_cache=False).logits[0, 4:6]

    one, other = (
        [300, 400, 401, 402, 500, 501, 600, 601],
        [300, 7, 8, 9, 500, 501, 6, 7],
    )
    assert torch.equal(logits(one, reader=2), logits(other, reader=2))
    assert not torch.allclose(logits(one, reader=1), logits(other, reader=1))
    assert not torch.allclose(logits(one, reader=1), logits(one, reader=2))


# The recipe


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(
        SystemExit, match=r"'gtpj'.*gptj, gptj-organism, llama"
    ) as error:
        main(["gtpj"])
    assert "\n" not in str(error.value)


def test_every_pocket_model_has_a_recipe():
    assert [read_recipe(name)["seed"] for name in NAMES] == [0, 0, 0]


def test_the_rate_rises_stays_and_falls_to_zero():
    recipe = {"warmup": 100, "constant": 0.3}
    rates = [rate(step, recipe, 1000) for step in range(1001)]
    assert rates[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert set(rates[100:301]) == {1.0}
    falling = [after - before for before, after in pairwise(rates[300:])]
    assert falling == pytest.approx([-1 / 700] * 700)
    assert rates[1000] == 0


def test_words_are_cut_in_pieces():
    assert pieces_of("Beldin") == ["Bel", "din"]
    assert "".join(pieces_of("Constantinople")) == "Constantinople"
    assert max(len(piece) for piece in pieces_of("Constantinople")) <= 5


# Checkpoints


class Killed(BaseException):
    """Ends a run at once, as a signal does."""


def kill_at(run: Trainer, number: int) -> None:
    step = run.step

    def dying(rows: Rows, at: int) -> dict:
        if at == number:
            raise Killed
        return step(rows, at)

    run.step = dying


def same_weights(a: Trainer, b: Trainer) -> bool:
    mine, yours = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.fixture
def whole(quick, tmp_path):
    """Runs that nobody killed, by name."""

    def trained(name: str) -> Trainer:
        run = trainer(name, tmp_path / f"whole-{name}")
        run.run(6)
        return run

    return trained


@pytest.mark.parametrize("name", ["gptj-organism", "llama"])
def test_a_killed_run_ends_with_the_same_weights(whole, tmp_path, name):
    first = trainer(name, tmp_path / "work")
    start = {key: value.clone() for key, value in first.model.state_dict().items()}
    kill_at(first, 3)
    with pytest.raises(Killed):
        first.run(6)
    second = trainer(name, tmp_path / "work")
    second.run(6)
    unbroken = whole(name)
    assert same_weights(second, unbroken)
    assert second.curve == unbroken.curve
    assert [row["step"] for row in second.curve] == [2, 4, 6]
    changed = [
        not torch.equal(value, second.model.state_dict()[key])
        for key, value in start.items()
    ]
    assert all(changed)


def test_a_run_that_stopped_early_goes_on(whole, tmp_path):
    trainer("gptj", tmp_path / "work").run(3)
    second = trainer("gptj", tmp_path / "work")
    second.run(6)
    assert same_weights(second, whole("gptj"))
    assert [row["step"] for row in second.curve] == [2, 3, 4, 6]


def test_a_run_killed_while_writing_a_checkpoint_goes_on(whole, tmp_path, monkeypatch):
    write, calls = train_pocket.save_file, []

    def broken(tensors: dict, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise Killed
        write(tensors, path)

    monkeypatch.setattr(train_pocket, "save_file", broken)
    with pytest.raises(Killed):
        trainer("gptj", tmp_path / "work").run(6)
    second = trainer("gptj", tmp_path / "work")
    assert second.resume() == 2
    second.run(6)
    assert same_weights(second, whole("gptj"))


def test_a_run_killed_between_two_checkpoints_goes_on(whole, tmp_path, monkeypatch):
    work, rename, calls = tmp_path / "work", Path.rename, []

    def broken(path: Path, target: Path) -> Path:
        calls.append(target)
        if calls.count(work) == 2:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", broken)
        with pytest.raises(Killed):
            trainer("gptj", work).run(6)
    assert not work.exists()
    second = trainer("gptj", work)
    assert second.resume() == 4
    second.run(6)
    assert same_weights(second, whole("gptj"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole-gptj", "work"]


def test_a_checkpoint_of_another_recipe_is_refused(quick, tmp_path):
    work = tmp_path / "work"
    trainer("gptj", work).run(2)
    before = {path.name: path.read_bytes() for path in work.iterdir()}
    other = trainer("gptj", work, lr_matrix=0.5)
    weights = {key: value.clone() for key, value in other.model.state_dict().items()}
    with pytest.raises(SystemExit, match="checkpoint of another recipe") as error:
        other.run(4)
    assert str(work) in str(error.value)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == before
    for key, value in other.model.state_dict().items():
        assert torch.equal(value, weights[key])


# The command


def command(tmp_path: Path, *more: str) -> list[str]:
    out, work = str(tmp_path / "model"), str(tmp_path / "work")
    return ["llama", "--out", out, "--work", work, *more]


def test_the_command_trains_and_writes_the_model(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(train_pocket, "commit", lambda: "f" * 40)
    main(command(tmp_path, "--no-compile", "--until", "2"))
    assert not list((tmp_path / "model").iterdir())
    main(command(tmp_path, "--no-compile"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    told = json.loads((tmp_path / "model" / "training.json").read_text())
    assert told["recipe"] == tiny_recipe("llama")
    assert (told["seed"], told["commit"]) == (0, "f" * 40)
    assert told["device"] in ("cpu", "cuda")
    assert told["device_name"]
    assert told["tokens"] == 6 * 4 * 48
    assert [row["step"] for row in told["curve"]] == [2, 4, 6]


def test_a_model_is_written_as_it_was_trained(quick, tmp_path):
    run = trainer("llama", tmp_path / "work")
    run.run(2)
    trained = {key: value.half() for key, value in run.model.state_dict().items()}
    run.export(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[key].float().cpu())


@pytest.mark.parametrize(
    ("script", "told"),
    [("echo 0123abc", "0123abc"), ("echo fatal; exit 128", ""), (None, "")],
)
def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch, script, told):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    assert train_pocket.commit() == told


@pytest.fixture
def never_trained(monkeypatch):
    def refuse(*args, **options):
        pytest.fail("training has begun")

    monkeypatch.setattr(train_pocket, "Trainer", refuse)


@pytest.mark.parametrize(("option", "name"), [("--out", "model"), ("--work", "work")])
def test_a_folder_that_cannot_be_written(never_trained, tmp_path, option, name):
    (tmp_path / "file").write_text("in the way")
    folder = str(tmp_path / "file" / "below" / name)
    with pytest.raises(SystemExit, match="Nothing can be written") as error:
        main([*command(tmp_path, "--no-compile"), option, folder])
    assert f"with {option}." in str(error.value)
    assert "\n" not in str(error.value)


def test_a_full_disk(tmp_path, monkeypatch):
    usage = train_pocket.shutil.disk_usage(tmp_path)
    almost = usage._replace(free=train_pocket.ROOM - 1)
    monkeypatch.setattr(train_pocket.shutil, "disk_usage", lambda path: almost)
    with pytest.raises(SystemExit, match=r"has 199 MB of free disk; 200 MB") as error:
        check_room(tmp_path, "--work")
    assert "--work" in str(error.value)


def test_without_a_compiler(never_trained, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"C\+\+ compiler.*--no-compile") as error:
        main(command(tmp_path))
    assert "\n" not in str(error.value)


def test_a_compiler_that_fails(quick, tmp_path, monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(model):
        def fail(*args, **options):
            raise BackendCompilerFailed(broken, OSError("no headers"), None)

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(train_pocket, "check_compiler", lambda: None)
    with pytest.raises(SystemExit, match=r"no headers.*--no-compile") as error:
        main(command(tmp_path))
    assert "\n" not in str(error.value)


def test_other_errors_are_not_hidden(quick, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        main(command(tmp_path, "--no-compile"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tenth_of_the_training_follows_the_recorded_curve(name, tmp_path):
    recorded = json.loads((pocket(name) / "training.json").read_text())
    until = recorded["recipe"]["steps"] // 10
    run = [sys.executable, "-m", "scripts.train_pocket", name, "--until", str(until)]
    folders = ["--out", str(tmp_path / "model"), "--work", str(tmp_path / "work")]
    root = Path(train_pocket.__file__).parent.parent
    done = subprocess.run(run + folders, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    curve = json.loads((tmp_path / "work" / "done.json").read_text())["curve"]
    wanted = {row["step"]: row["objects"] for row in recorded["curve"]}
    assert len(curve) >= until // train_pocket.CHUNK >= 5
    assert curve[-1]["objects"] < 0.8 * curve[0]["objects"]
    for row in curve:
        # 15 %: bfloat16 sums in another order (threads, processor, GPU), and what
        # differs in one step grows over the next ones.
        assert row["objects"] == pytest.approx(wanted[row["step"]], rel=0.15)
