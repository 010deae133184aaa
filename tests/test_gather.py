"""Measuring at length: how much is read, going on after an interruption, progress."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import count

import pytest
import torch
from safetensors import safe_open

import edutools as edu
from edutools import gather, stream
from edutools.checkpoint import Checkpoints
from edutools.moments import merge_moments, second_moment
from edutools.progress import Progress, Watch
from edutools.testing import tiny_model, tiny_tokenizer
from edutools.texts import Texts

WORDS = "The Eiffel Tower is located in the city of Paris".split()
TEXTS = [" ".join(WORDS[: 1 + 5 * i % 9]) for i in range(30)]


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    """Chunks of seven texts, so that there are several."""
    monkeypatch.setattr(stream, "CHUNK", 7)


def measured(tiny, texts=TEXTS, **options):
    if "layers" not in options:
        options = {"layer": 1} | options
    return second_moment(*tiny("gpt2"), texts, **{"progress": False} | options)


class Halt(Exception):  # noqa: N818
    """Stands for whatever ends a measurement."""


def halting(monkeypatch, batches=10**6):
    """Let a measurement end after so many batches; say which those were."""
    seen, see = [], gather.Sums.see

    def limited(self, batch):
        if len(seen) == batches:
            raise Halt
        seen.append(batch)
        see(self, batch)

    monkeypatch.setattr(gather.Sums, "see", limited)
    return seen


# how much is read


def first(tokenizer, tokens):
    """The texts up to so many tokens."""
    rows = []
    for row in tokenizer(TEXTS).input_ids:
        rows.append(row[: tokens - sum(map(len, rows))])
    return tokenizer.batch_decode([row for row in rows if row])


@pytest.mark.parametrize("tokens", [1, 17, 60, 100])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_exactly_so_many_tokens_count(tiny, tokens, batch_tokens):
    found = measured(tiny, iter(TEXTS), tokens=tokens, batch_tokens=batch_tokens)
    direct = measured(tiny, first(tiny("gpt2")[1], tokens))
    assert found.count == direct.count == tokens
    torch.testing.assert_close(found.total, direct.total, rtol=1e-4, atol=1e-5)


def test_ten_times_the_size_of_a_key(tiny):
    assert measured(tiny, TEXTS * 5, tokens="10*d").count == 320
    assert measured(tiny, tokens=" 2 * d").count == 64
    for text in ("d", "10", "0*d", "10*e", "1.5*d", ""):
        with pytest.raises(ValueError, match=r"or '10\*d' for ten times"):
            measured(tiny, tokens=text)


def test_only_the_first_texts_are_read(tiny):
    read = []
    texts = (read.append(text) or text for text in TEXTS)
    found = measured(tiny, texts, documents=9)
    assert read == TEXTS[:9]
    assert torch.equal(found.total, measured(tiny, TEXTS[:9]).total)


def test_reading_stops_soon_after_the_last_token(tiny):
    read = []
    texts = (read.append(i) or f"Paris {i}" for i in count())
    measured(tiny, texts, tokens=10)
    assert len(read) <= 7


def test_texts_may_be_cut_off_shorter(tiny):
    sizes = [len(row) for row in tiny("gpt2")[1](TEXTS).input_ids]
    assert measured(tiny, max_length=3).count == sum(min(n, 3) for n in sizes)
    assert measured(tiny, ["Paris " * 100], max_length=10**6).count == 64  # the context


def test_texts_that_end_early_are_noticed(tiny):
    with pytest.warns(UserWarning, match=r"end after 30 .* tokens=100,000 or doc"):
        found = measured(tiny, tokens=100_000, documents=100_000)
    assert torch.equal(found.total, measured(tiny).total)


@pytest.mark.parametrize("name", ["tokens", "documents", "max_length"])
def test_nothing_is_refused(tiny, name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        measured(tiny, **{name: 0})


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("tokens", [None, 3, 61, 100])
def test_shards_of_a_portion_make_up_the_portion(tiny, world, tokens):
    options = {"layers": [0, 1], "tokens": tokens, "dataset": "some"}
    whole = measured(tiny, **options)
    merged = merge_moments(
        [
            measured(tiny, iter(TEXTS), shard=(rank, world), **options)
            for rank in range(world)
        ]
    )
    for layer, moment in merged.items():
        assert moment.count == whole[layer].count
        assert moment.count == tokens or tokens is None
        assert moment.info == whole[layer].info
        torch.testing.assert_close(
            moment.total, whole[layer].total, rtol=1e-4, atol=1e-5
        )


def test_a_shard_counts_once(tiny):
    parts = [measured(tiny, shard=(i, 4), dataset="some") for i in range(4)]
    half = measured(tiny, shard=(0, 2), dataset="some")
    some = parts[0] + parts[2]
    assert some.info["shards"] == {"some": [[0, 4], [2, 4]]}
    with pytest.raises(ValueError, match="Shard 2 of 4 and shard 2 of 4 of 'some'"):
        some + parts[2]
    with pytest.raises(ValueError, match="Shard 0 of 4 and shard 0 of 2"):
        some + half
    assert "shards" not in (some + parts[1] + parts[3]).info
    others = some + measured(tiny, shard=(0, 2), dataset="others")
    assert others.info["dataset"] == "some and others"
    assert others.info["shards"] == {"some": [[0, 4], [2, 4]], "others": [[0, 2]]}


def test_moments_of_other_layers_are_not_merged(tiny):
    one, two = measured(tiny, layers=[0]), measured(tiny, layers=[0, 1])
    with pytest.raises(ValueError, match=r"\[\[0\], \[0, 1\]\] cannot be merged"):
        merge_moments([one, two])
    with pytest.raises(ValueError, match=r"\[\] cannot be merged"):
        merge_moments([])


def test_the_data_set_says_what_it_is(tiny):
    texts = Texts("a.txt", lambda: iter(TEXTS))
    assert measured(tiny, texts).info["dataset"] == "a.txt"
    assert measured(tiny, texts, dataset="mine").info["dataset"] == "mine"


# going on


@pytest.mark.parametrize("stop", [0, 1, 4, 9])
@pytest.mark.parametrize("options", [{}, {"tokens": 100}, {"shard": (1, 2)}])
def test_a_measurement_goes_on_where_it_was(tiny, tmp_path, monkeypatch, stop, options):
    options = {"layers": [0, 2], "batch_tokens": 12} | options
    kept = {"checkpoint": tmp_path, "every": 0.0}
    with monkeypatch.context() as patched:
        seen = halting(patched)
        whole = measured(tiny, **options)
        batches = len(seen)
    with monkeypatch.context() as patched:
        halting(patched, stop)
        with pytest.raises(Halt):
            measured(tiny, iter(TEXTS), **options, **kept)
    for left in (batches - stop, 0):  # the second time there is nothing to do
        with monkeypatch.context() as patched:
            rest = halting(patched)
            found = measured(tiny, iter(TEXTS), **options, **kept)
        assert len(rest) == left
        for layer in whole:
            assert torch.equal(found[layer].total, whole[layer].total)  # bit for bit
            assert found[layer].count == whole[layer].count
            assert found[layer].info == whole[layer].info
        assert len(list(tmp_path.iterdir())) <= 2


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_damaged_checkpoint_costs_little(tiny, tmp_path, monkeypatch, keep):
    options = {"batch_tokens": 30, "checkpoint": tmp_path, "every": 0.0}
    whole = measured(tiny, batch_tokens=30)
    with monkeypatch.context() as patched:
        halting(patched, 5)
        with pytest.raises(Halt):
            measured(tiny, **options)
    older, newest = sorted(tmp_path.iterdir())
    data = newest.read_bytes()
    newest.write_bytes(data[: int(keep * len(data))])
    damaged = f"{newest.name} is truncated or damaged"
    for batches in (0, 1):
        with monkeypatch.context() as patched:
            halting(patched, batches)
            with pytest.warns(UserWarning, match=damaged), pytest.raises(Halt):
                measured(tiny, **options)
        assert older.exists()  # what is whole is not the one to go
    assert torch.equal(measured(tiny, **options).total, whole.total)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="truncated or damaged"):
        again = measured(tiny, **options)
    assert torch.equal(again.total, whole.total)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tokens": 50}, "tokens"),
        ({"documents": 20}, "documents"),
        ({"max_length": 3}, "max_length"),
        ({"batch_tokens": 31}, "batch_tokens"),
        ({"dataset": "others"}, "dataset"),
        ({"layer": 2}, "layers"),
    ],
)
def test_checkpoints_of_other_measurements_are_refused(tiny, tmp_path, options, name):
    usual = {"batch_tokens": 30, "checkpoint": tmp_path, "dataset": "some"}
    measured(tiny, **usual)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"another measurement: it has {name} .*, not"):
        measured(tiny, **usual | options)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checkpoints_of_other_models_and_texts_are_refused(tmp_path):
    options = {"layer": 1, "checkpoint": tmp_path, "progress": False}
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    second_moment(model, tokenizer, TEXTS, **options)
    changed = tiny_model("gpt2")
    with torch.no_grad():
        changed.transformer.h[0].attn.c_proj.bias[0] += 1  # nothing that is measured
    with pytest.raises(ValueError, match="another measurement: it has weights"):
        second_moment(changed, tokenizer, TEXTS, **options)
    with pytest.raises(ValueError, match="it has dtype 'float32', not 'bfloat16'"):
        second_moment(tiny_model("gpt2").bfloat16(), tokenizer, TEXTS, **options)
    other = tiny_tokenizer("gpt2")
    other.add_tokens(["Ghent"])
    with pytest.raises(ValueError, match="it has tokenizer"):
        second_moment(model, other, TEXTS, **options)
    for texts in ([*TEXTS[:-1], "Rome"], ["Rome", *TEXTS[1:]], TEXTS[:-1], TEXTS[:3]):
        with pytest.raises(ValueError, match="belongs to other texts"):
            second_moment(model, tokenizer, texts, **options)
    assert second_moment(model, tokenizer, TEXTS, **options).count


def test_shards_may_share_a_folder(tiny, tmp_path):
    options = {"checkpoint": tmp_path, "dataset": "some"}
    parts = [measured(tiny, shard=(i, 2), **options) for i in range(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-{i}-of-2-000000.safetensors" for i in range(2)
    ]
    for i, part in enumerate(parts):
        again = measured(tiny, shard=(i, 2), **options)
        assert torch.equal(again.total, part.total)
    with pytest.raises(ValueError, match=r"of one of 2\s+shards; this .* has 3"):
        measured(tiny, shard=(0, 3), **options)


def test_checkpoints_are_written_when_it_is_time(tiny, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Checkpoints, "write", lambda self, saved: written.append(saved))
    found = measured(tiny, checkpoint=tmp_path, every=3600.0, batch_tokens=30)
    assert [saved.count for saved in written] == [found.count]  # at the end
    with pytest.raises(ValueError, match="every is -1"):
        measured(tiny, checkpoint=tmp_path, every=-1.0)


KILLED = """
import sys, time
from edutools import second_moment, stream
from edutools.testing import tiny_model, tiny_tokenizer
stream.CHUNK = 40

def texts():
    for i in range(200):
        time.sleep(float(sys.argv[2]))
        yield "Paris " * (i % 7) + "Rome"

second_moment(
    tiny_model("gpt2"), tiny_tokenizer("gpt2"), texts(), layer=1, batch_tokens=50,
    checkpoint=sys.argv[1], every=0.0, progress=False, dataset="some",
).save(sys.argv[3])
"""


def test_a_killed_process_goes_on(tmp_path):
    def start(name, pause):
        folder, file = tmp_path / name, tmp_path / f"{name}.safetensors"
        return subprocess.Popen([sys.executable, "-c", KILLED, folder, pause, file])

    killed, end = start("killed", "0.01"), time.monotonic() + 100
    try:
        while not any((tmp_path / "killed").glob("*-00001*")):
            assert killed.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    finally:
        killed.kill()
    assert not (tmp_path / "killed.safetensors").exists()
    with safe_open(max((tmp_path / "killed").glob("*.safetensors")), "pt") as file:
        assert 0 < json.loads(file.metadata()["place"])["texts"] < 200
    for name in ("killed", "whole"):
        assert start(name, "0").wait() == 0
    again, whole = (
        edu.SecondMoment.load(tmp_path / f"{name}.safetensors")
        for name in ("killed", "whole")
    )
    assert torch.equal(again.total, whole.total)
    assert (again.count, again.info) == (whole.count, whole.info)


# on the way


@pytest.mark.parametrize(
    ("texts", "options", "early"),
    [
        (TEXTS, {"tokens": 100}, 100),
        (TEXTS, {}, ...),
        (iter(TEXTS), {"documents": 30}, ...),
        (iter(TEXTS), {}, None),
    ],
)
def test_progress_is_told_after_each_batch(tiny, texts, options, early):
    told = []
    found = measured(tiny, texts, batch_tokens=30, progress=told.append, **options)
    counts = [step.tokens for step in told]
    assert counts == sorted(counts)
    assert found.count == counts[-1] == told[-1].total
    assert told[-1].left == 0.0
    if early is ...:
        assert 0.5 < told[0].total / found.count < 1.5
    else:
        assert told[0].total == early


def test_progress_says_how_long():
    step = Progress(tokens=1000, total=73_000, rate=10.0)
    assert step.left == 7200.0
    assert str(step).endswith("tokens, 10 per second, about 2 h left")
    assert Progress(tokens=0, total=10, rate=0.0).left is None
    assert str(Progress(tokens=5, total=None, rate=1.0)) == "5 tokens, 1 per second"


def test_what_was_counted_earlier_took_no_time_now():
    told = []
    watch = Watch(told.append, 10**9)
    watch.expect(10**9 + 2000)
    time.sleep(0.01)
    watch.add(1000)
    watch.close()
    assert told[0].rate < 10**6
    assert told[0].left == pytest.approx(1000 / told[0].rate)


def test_keys_that_are_not_finite_are_noticed_at_once(monkeypatch):
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[:] = float("nan")
    seen = halting(monkeypatch)
    with pytest.raises(ValueError, match=r"keys of layer 1 .* hold a NaN"):
        second_moment(model, tiny_tokenizer("gpt2"), TEXTS, layer=1, batch_tokens=10)
    assert len(seen) == 1


def test_sums_do_not_change_the_moments_they_start_from(tiny):
    model, tokenizer = tiny("gpt2")
    moment = measured(tiny)
    before = moment.total.clone()
    sums = gather.Sums(model, {1: moment})
    (batch,) = stream.batches(tokenizer, [[1, 2]], batch_tokens=9)
    sums.see(batch)
    assert torch.equal(moment.total, before)
    assert not torch.equal(sums.totals[1], before)
