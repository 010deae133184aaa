"""Texts from files and, without a network, from the Hub."""

import json
import sys
import types
from itertools import islice

import pytest

from edutools.hub import PINNED
from edutools.texts import read_texts

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_texts_are_read_line_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n  two \r\n“three”", encoding="utf-8")
    texts = read_texts(tmp_path / "a.txt")
    assert list(texts) == ["one", "two", "“three”"] == list(texts)  # anew each time
    assert texts.source == "a.txt"
    lines = [json.dumps({"text": " a\nb", "id": 3}), "", json.dumps({"text": ""})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert list(read_texts(tmp_path / "a.jsonl")) == [" a\nb", ""]


def test_another_key_may_hold_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1, "body": "b"}')
    assert list(read_texts(str(tmp_path / "a.jsonl"), key="body")) == ["b"]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", "null", '"text"', "{}", '{"text": 3}']
)
def test_lines_without_a_text_are_named_by_their_number(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n')
    texts = iter(read_texts(str(tmp_path / "a.jsonl")))
    assert next(texts) == "a"
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 must be an object"):
        next(texts)


def test_a_missing_file_of_texts_is_refused_before_it_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file"):
        read_texts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "options", [{"split": "train"}, {"revision": COMMIT}, {"config": "en"}]
)
def test_options_of_the_hub_do_not_fit_files(tmp_path, options):
    (tmp_path / "a.txt").write_text("a")
    (name,) = options
    with pytest.raises(ValueError, match=f"belong to data sets of the Hub.*'{name}'"):
        read_texts(tmp_path / "a.txt", **options)


def test_tables_need_a_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeError, match=r"pip install 'edutools\[data\]'"):
        read_texts(tmp_path / "a.parquet")


def test_tables_are_read_part_by_part(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = sys.modules["pyarrow"].Table.from_pylist(
        [{"text": f"text {i}", "id": i} for i in range(70_000)]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    texts = read_texts(tmp_path / "a.parquet")
    assert list(islice(texts, 2)) == ["text 0", "text 1"]
    assert sum(1 for _ in texts) == 70_000
    with pytest.raises(ValueError, match=r"no column 'body'\. It has text, id"):
        next(iter(read_texts(tmp_path / "a.parquet", key="body")))
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 must be .* under 'id'"):
        next(iter(read_texts(tmp_path / "a.parquet", key="id")))
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:1000])
    with pytest.raises(ValueError, match="no table of Parquet, or is cut off"):
        next(iter(texts))


class Column(types.SimpleNamespace):
    """What pyarrow reads, as far as it is asked for."""

    def to_pylist(self):
        return self.rows


def test_tables_are_read_as_pyarrow_gives_them(tmp_path, monkeypatch):
    class Table:
        def __init__(self, file):
            self.schema_arrow = types.SimpleNamespace(names=["text", "id"])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def iter_batches(self, columns):
            for part in ([{"text": "a"}, {"text": "b"}], [{"text": None}]):
                yield Column(rows=part)

    arrow = types.SimpleNamespace(ArrowException=KeyError)
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    fake = types.SimpleNamespace(ParquetFile=Table)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert list(islice(read_texts(tmp_path / "a.parquet"), 2)) == ["a", "b"]
    with pytest.raises(ValueError, match=r"a\.parquet, row 3 must be an object"):
        list(read_texts(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=r"no column 'body'\. It has text, id"):
        list(read_texts(tmp_path / "a.parquet", key="body"))


@pytest.fixture
def hub(monkeypatch):
    """What `datasets` was asked for; it gives two texts and then loses the line."""
    asked = []

    class Stream:
        def __iter__(self):
            yield {"text": "one", "title": "One"}
            yield {"text": "two", "title": None}
            raise ConnectionError("no route\nto the host")

    def load_dataset(path, **options):
        asked.append((path, options))
        if path == "owner/gone":
            raise ConnectionError("gone")
        return Stream()

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


def test_wikipedia_is_read_as_it_arrives_at_its_pinned_revision(hub):
    texts = read_texts("hub:wikimedia/wikipedia")
    commit = PINNED["wikimedia/wikipedia"]
    options = {"split": "train", "revision": commit, "streaming": True}
    assert hub == [("wikimedia/wikipedia", options | {"name": "20231101.en"})]
    assert list(islice(texts, 2)) == ["one", "two"] == list(islice(texts, 2))
    source = f"wikimedia/wikipedia 20231101.en (train) at {commit[:12]}"
    assert texts.source == source
    assert texts.endless


def test_the_parts_of_a_data_set_are_chosen(hub):
    texts = read_texts(
        "hub:owner/name", key="title", config="c", split="test", revision=COMMIT
    )
    options = {"name": "c", "split": "test", "revision": COMMIT, "streaming": True}
    assert hub == [("owner/name", options)]
    assert next(iter(texts)) == "One"
    with pytest.raises(ValueError, match=r"owner/name c \(test\), row 2 must be an"):
        list(texts)
    read_texts("hub:owner/name", revision=COMMIT)
    assert "name" not in hub[-1][1]


def test_a_line_that_breaks_is_said_in_one(hub):
    with pytest.raises(FileNotFoundError, match="owner/name") as told:
        list(read_texts("hub:owner/name", revision=COMMIT))
    assert "ConnectionError: no route)" in str(told.value)
    with pytest.raises(FileNotFoundError, match="ConnectionError: gone"):
        read_texts("hub:owner/gone", revision=COMMIT)


def test_what_the_hub_must_be_asked_for(hub, monkeypatch):
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        read_texts("hub:owner/name")
    with pytest.raises(ValueError, match="is a file on the Hub"):
        read_texts("hub:owner/name/a.txt", revision=COMMIT)
    with pytest.raises(ValueError, match="names no data set"):
        read_texts("hub:name", revision=COMMIT)
    assert hub == []
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"pip install 'edutools\[data\]'"):
        read_texts("hub:wikimedia/wikipedia")
