"""Files of records, good and bad, and data sets of the Hub."""

import copy
import json
import pickle
import re
import sys
import types
from dataclasses import replace

import pytest

import edutools as edu
from edutools import records
from edutools.facts import Case, Fact, ZsreCase
from edutools.records import PINNED, load_cases, load_facts, load_zsre
from tests.test_facts import QUESTION, RECORD, without

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CASE, ZSRE = Case.from_counterfact(RECORD), ZsreCase.from_zsre(QUESTION)


def rewritten(**changes):
    return RECORD | {"requested_rewrite": RECORD["requested_rewrite"] | changes}


# Every way in which a record may be bad, and what the reason must name.
BAD_CASES = {
    "null": (None, "must be an object; got None"),
    "a text": ("text", "must be an object; got 'text'"),
    "a list": ([RECORD], "must be an object"),
    "empty": ({}, "key 'requested_rewrite' is missing"),
    "another schema": (QUESTION, "key 'requested_rewrite' is missing"),
    "no rewrite": (RECORD | {"requested_rewrite": None}, "must be an object; got None"),
    "no subject": (
        without(RECORD, "requested_rewrite", "subject"),
        "key 'subject' is missing in 'requested_rewrite'",
    ),
    "no target": (
        without(RECORD, "requested_rewrite", "target_new", "str"),
        "key 'str' is missing in 'target_new'",
    ),
    "target no object": (
        rewritten(target_new="Rome"),
        "'target_new' must be an object",
    ),
    "no paraphrases": (without(RECORD, "paraphrase_prompts"), "'paraphrase_prompts'"),
    "subject a number": (rewritten(subject=3), "subject"),
    "subject empty": (rewritten(subject=" "), "Fact.subject must not be empty"),
    "target empty": (
        rewritten(target_new={"str": ""}),
        "Fact.target must not be empty",
    ),
    "no slot": (rewritten(prompt="It is in"), "exactly one '{}'"),
    "two slots": (rewritten(prompt="{} and {}"), "exactly one '{}'"),
    "relation a number": (rewritten(relation_id=5), "relation"),
    "neighborhood a text": (
        RECORD | {"neighborhood_prompts": "one"},
        "neighborhood_prompts must be a list of texts",
    ),
    "neighborhood of numbers": (
        RECORD | {"neighborhood_prompts": [1]},
        "must hold texts only; got 1",
    ),
    "an empty paraphrase": (
        RECORD | {"paraphrase_prompts": ["a", ""]},
        "must hold no empty text",
    ),
}
BAD_ZSRE = {
    "null": (None, "must be an object; got None"),
    "another schema": (RECORD, "is missing"),
    "no answers": (QUESTION | {"answers": []}, "'answers' is empty"),
    "answers a text": (QUESTION | {"answers": "Ada"}, "answers must be a list"),
    "answers of numbers": (QUESTION | {"answers": [1]}, "must hold texts only"),
    "no subject": (without(QUESTION, "subject"), "key 'subject' is missing"),
    "subject elsewhere": (QUESTION | {"subject": "Ada"}, "must hold the subject 'Ada'"),
    "subject otherwise spelled": (QUESTION | {"subject": "linux"}, "spelled alike"),
    "a slot": (QUESTION | {"src": "Who made {} of Linux?"}, "no '{}'"),
    "rephrase empty": (QUESTION | {"rephrase": ""}, "rephrase must not be empty"),
    "unrelated a number": (QUESTION | {"loc": 1}, "loc must be text"),
    "unrelated answer null": (QUESTION | {"loc_ans": None}, "unrelated_answer"),
}
BAD_FACTS = {
    "null": (None, "must be an object"),
    "no target": ({"subject": "a", "prompt": "{} is"}, r"missing: ['target']"),
    "misspelled": (
        {"subject": "a", "prompt": "{} is", "target": "b", "truht": "c"},
        r"unknown: ['truht']",
    ),
    "two slots": ({"subject": "a", "prompt": "{} {}", "target": "b"}, "exactly one"),
    "bad rewrite": ({"requested_rewrite": {}}, "key 'subject' is missing"),
}
ALL_BAD = [
    pytest.param(load, good, item, record, reason, id=f"{load.__name__}: {name}")
    for load, good, item, bad in (
        (load_cases, RECORD, CASE, BAD_CASES),
        (load_zsre, QUESTION, ZSRE, BAD_ZSRE),
        (load_facts, RECORD, CASE.fact, BAD_FACTS),
    )
    for name, (record, reason) in bad.items()
]


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize(("load", "good", "item", "bad", "reason"), ALL_BAD)
def test_a_bad_record_is_named_and_the_others_are_kept(
    tmp_path, load, good, item, bad, reason
):
    path = write(tmp_path / "file.json", [good, bad, good])
    with pytest.warns(UserWarning, match=r"file\.json: 1 of 3 records") as told:
        loaded = load(path, strict=False)
    assert loaded == [item, item]
    (refused,) = loaded.refused
    assert refused.index == 1
    assert reason in refused.reason
    assert len(told) == 1
    assert str(refused) in str(told[0].message)
    with pytest.raises(
        ValueError, match=rf"file\.json, record 1: .*{re.escape(reason)}"
    ):
        load(path, strict=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("load", "record", "item"),
    [(load_cases, RECORD, CASE), (load_zsre, QUESTION, ZSRE)],
)
def test_good_files_are_read_in_order_and_silently(tmp_path, load, record, item):
    path = write(tmp_path / "file.json", [record, record])
    loaded = load(path)
    assert loaded == [item, item]
    assert loaded.refused == ()
    assert load(str(path)) == loaded
    assert repr(loaded) == "Loaded(2 of file.json, 0 refused)"
    assert loaded[:1] == [item]
    for again in (copy.copy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert (again, again.source) == (loaded, "file.json")


def test_a_warning_shows_the_first_reasons_and_counts_the_rest(tmp_path):
    path = write(tmp_path / "file.json", [RECORD, *range(5)])
    with pytest.warns(UserWarning, match="5 of 6") as told:
        loaded = load_cases(path)
    text = str(told[0].message)
    assert [f"record {i}:" in text for i in range(1, 6)] == [True] * 3 + [False] * 2
    assert "And 2 more." in text
    assert [refused.index for refused in loaded.refused] == [1, 2, 3, 4, 5]


def test_reasons_stay_short(tmp_path):
    path = write(tmp_path / "file.json", [RECORD, "long " * 10_000])
    with pytest.warns(UserWarning, match="1 of 2") as told:
        loaded = load_cases(path)
    assert len(loaded.refused[0].reason) < 320
    assert len(str(told[0].message)) < 600


@pytest.mark.parametrize("load", [load_cases, load_zsre, load_facts])
def test_a_file_of_another_schema_is_refused_as_a_whole(tmp_path, load):
    path = write(tmp_path / "file.json", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(ValueError, match=r"record 0: .* missing"):
        load(path)
    if load is not load_facts:
        with pytest.raises(ValueError, match="2 records and none that can be read"):
            load(path)


@pytest.mark.parametrize("load", [load_cases, load_zsre, load_facts])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'[{"case_id": 1,', "is not JSON, or is cut off"),
        (b"", "is not JSON, or is cut off"),
        (b"a,b\n1,2\n", "is not JSON, or is cut off"),
        (b"[" * 100_000, "is not JSON, or is cut off"),
        (b"[1" + b"0" * 5000 + b"]", "is not JSON, or is cut off"),
        (b'{"a": 1}', "must hold a list of records; got a dict"),
        (b"null", "must hold a list of records; got a NoneType"),
        (b"[]", "0 records and none that can be read"),
        ("[“é”]".encode("latin-1", "replace"), "is not text in UTF-8"),
        ('[{"a": "é"}]'.encode("utf-16"), "is not text in UTF-8"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_bad_files_are_refused(tmp_path, load, content, complaint):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.json.*{complaint}"):
        load(tmp_path / "file.json")


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "file.json").write_text(json.dumps([RECORD]), encoding="utf-8-sig")
    assert load_cases(tmp_path / "file.json") == [CASE]


@pytest.mark.parametrize("load", [load_cases, load_zsre, load_facts])
def test_missing_files_and_folders_are_named(tmp_path, load):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"No file '{path}'"):
            load(path)


def test_facts_are_read_in_their_own_schema_and_in_that_of_counterfact(tmp_path):
    own = {"subject": "Ada", "prompt": "{} is", "target": "x"}
    path = write(tmp_path / "facts.json", [own, own | {"truth": "y"}, RECORD])
    ada = Fact("Ada", "{} is", "x")
    assert load_facts(path) == [ada, Fact("Ada", "{} is", "x", "y"), CASE.fact]


def test_a_rewrite_is_a_fact_without_the_prompts_that_test_it(tmp_path):
    record = {"requested_rewrite": RECORD["requested_rewrite"], "paraphrase_prompts": 3}
    assert load_facts(write(tmp_path / "facts.json", [record])) == [CASE.fact]


def test_the_loaders_are_at_the_top():
    assert edu.load_cases is load_cases
    assert edu.load_zsre is load_zsre
    assert edu.load_facts is load_facts


# The Hub, without a network.


@pytest.fixture
def hub(monkeypatch):
    """What `datasets` was asked for; it gives two records and a bad one."""
    asked = []

    def load_dataset(name, *, split, revision):
        asked.append((name, split, revision))
        if name == "owner/gone":
            raise ConnectionError("no route\nto the host")
        return iter([RECORD, QUESTION, RECORD])

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


def test_a_data_set_is_read_at_its_pinned_revision(hub):
    with pytest.warns(UserWarning, match=r"azhx/counterfact \(train\) at c01c413f856e"):
        loaded = load_cases("hub:azhx/counterfact")
    assert hub == [("azhx/counterfact", "train", PINNED["azhx/counterfact"])]
    assert loaded == [CASE, CASE]
    assert [refused.index for refused in loaded.refused] == [1]


def test_split_and_revision_are_passed_on(hub):
    with pytest.warns(UserWarning, match="2 of 3"):
        loaded = load_zsre("hub:owner/name", split="test", revision=COMMIT)
    assert hub == [("owner/name", "test", COMMIT)]
    assert loaded == [ZSRE]
    assert loaded.source == f"owner/name (test) at {COMMIT[:12]}"


def test_pins_are_commits():
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in PINNED.values())


@pytest.mark.parametrize(
    "revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "0"]
)
def test_a_revision_that_may_move_is_refused(hub, revision):
    with pytest.raises(ValueError, match=f"40 hexadecimal digits, got {revision!r}"):
        load_cases("hub:owner/name", revision=revision)
    assert hub == []


@pytest.mark.parametrize(
    "address", ["hub:", "hub:name", "hub:owner/", "hub:/a", "hub:a//b"]
)
def test_addresses_that_name_nothing_are_refused(hub, address):
    with pytest.raises(ValueError, match=f"'{address}' names no data set"):
        load_cases(address, revision=COMMIT)


def test_what_the_hub_does_not_give_is_said_in_one_line(hub):
    with pytest.raises(FileNotFoundError, match="owner/gone") as told:
        load_cases("hub:owner/gone", revision=COMMIT)
    assert "ConnectionError: no route)" in str(told.value)
    assert "\n" not in str(told.value)


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"pip install 'edutools\[data\]'"):
        load_cases("hub:azhx/counterfact")


def test_options_of_the_hub_do_not_fit_files(tmp_path):
    path = write(tmp_path / "file.json", [RECORD])
    for options in ({"split": "train"}, {"revision": COMMIT}):
        with pytest.raises(ValueError, match="belong to data sets of the Hub"):
            load_cases(path, **options)


def test_a_file_on_the_hub_is_read_as_one_here(tmp_path, monkeypatch):
    asked = []

    def download(name, file, *, repo_type, revision):
        asked.append((name, file, repo_type, revision))
        return str(write(tmp_path / "zsre.json", [QUESTION]))

    monkeypatch.setattr(records, "hf_hub_download", download)
    loaded = load_zsre("hub:owner/name/data/zsre.json", revision=COMMIT)
    assert asked == [("owner/name", "data/zsre.json", "dataset", COMMIT)]
    assert loaded == [ZSRE]
    assert loaded.source == f"data/zsre.json of owner/name at {COMMIT[:12]}"
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_zsre("hub:owner/name/zsre.json", split="test", revision=COMMIT)


def test_a_file_that_the_hub_does_not_give(monkeypatch):
    def download(*args, **options):
        raise OSError("offline")

    monkeypatch.setattr(records, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"a\.json of owner/name .*OSError"):
        load_cases("hub:owner/name/a.json", revision=COMMIT)


def test_tables_are_read_as_files_are(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = sys.modules["pyarrow"].Table.from_pylist(
        [RECORD, rewritten(prompt="no slot"), without(RECORD, "generation_prompts")]
    )
    folder = tmp_path / "azhx" / "counterfact" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)  # a folder of that name stands for the Hub
    with pytest.warns(UserWarning, match="1 of 3"):
        loaded = load_cases("hub:azhx/counterfact")
    assert loaded == [CASE, replace(CASE, generation=())]
    assert "exactly one" in loaded.refused[0].reason
