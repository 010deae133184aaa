"""Texts from files and from the Hub, one after the other, without holding them all."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from edutools.checks import shown
from edutools.hub import CONFIGS, HUB, commit_of, reaching, rows, split_address
from edutools.places import a_path

__all__ = ["Texts", "read_texts"]

HUB_ONLY = ("config", "split", "revision")


@dataclass(frozen=True)
class Texts:
    """Texts that are read anew each time one goes through them.

    Attributes:
        source: what they are: a file, or a data set with its revision and split.
        read: begins to read.
        endless: whether there may be more than anyone wants to read.

    Book: sec-second-moment
    """

    source: str
    read: Callable[[], Iterator[str]]
    endless: bool = False

    def __iter__(self) -> Iterator[str]:
        return self.read()

    def __repr__(self) -> str:
        return f"Texts of {self.source}"


def read_texts(
    source: str | Path,
    *,
    key: str = "text",
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Texts:
    """Read the texts of a file, or of a data set of the Hub.

    Args:
        source: a file with a text in each line; a .jsonl file with an object in each
            line; a .parquet file, which needs the package `pyarrow`; or a data set of
            the Hub such as 'hub:wikimedia/wikipedia', which needs the package
            `datasets` and is read as it arrives. Empty lines count for nothing.
        key: where objects and tables hold the text.
        config: of a data set; of Wikipedia '20231101.en' by default.
        split: of a data set; 'train' by default.
        revision: commit of a data set. May be left out for those named in
            `hub.PINNED`, of which Wikipedia is one.

    Returns:
        An iterable of texts; `.source` says what they are.

    Raises:
        FileNotFoundError: if there is no such file, or the Hub does not give the data
            set (also while reading).
        ValueError: if the options do not belong to the source, the revision is not a
            commit; while reading, if there is no text (with its line or row).
        RuntimeError: if a package is needed and not installed.

    Book: sec-command-line
    """
    options = dict(zip(HUB_ONLY, (config, split, revision), strict=True))
    if isinstance(source, str) and source.startswith(HUB):
        return _on_hub(source, key, **options)
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        raise ValueError(
            "config, split and revision belong to data sets of the Hub, such as "
            f"'hub:wikimedia/wikipedia'; got {shown(given)} for {str(source)!r}. Leave "
            "them out."
        )
    file = a_path("source", source)
    if not file.is_file():
        raise FileNotFoundError(
            f"No file {str(file)!r}. Give a text file with a text in each line, a "
            ".jsonl or .parquet file, or 'hub:owner/name' for a data set of the Hub."
        )
    if file.suffix == ".parquet":
        return Texts(file.name, _table(file, key))
    return Texts(file.name, lambda: _lines(file, key))


def _lines(file: Path, key: str) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and file.suffix == ".jsonl":
                    yield _text(_object(line), key, f"{file.name}, line {number}")
                elif line.strip():
                    yield line.strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file.name} is not text in UTF-8 ({error.reason}). Save it in UTF-8."
        ) from None


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.strip()


def _text(record: Any, key: str, place: str) -> str:
    text = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(
            f"{place} must be an object with a text under {key!r}; got "
            f"{shown(record)}. Name the right key."
        )
    return text


def _table(file: Path, key: str) -> Callable[[], Iterator[str]]:
    try:
        from pyarrow import ArrowException  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import (  # pyright: ignore[reportMissingImports]
            ParquetFile,
        )
    except ImportError:
        raise RuntimeError(
            f"To read {file.name!r} the package pyarrow is needed. Install it with pip "
            "install 'edutools[data]', or write the texts to a .jsonl file."
        ) from None

    def read() -> Iterator[str]:
        number = count(1)
        try:
            with ParquetFile(file) as table:
                if key not in table.schema_arrow.names:
                    raise ValueError(
                        f"{file.name} has no column {key!r}. It has "
                        f"{', '.join(table.schema_arrow.names)}."
                    )
                for part in table.iter_batches(columns=[key]):
                    for row in part.to_pylist():
                        yield _text(row, key, f"{file.name}, row {next(number)}")
        except (ArrowException, OSError) as error:
            raise ValueError(
                f"{file.name} is no table of Parquet, or is cut off "
                f"({str(error).splitlines()[0]}). Copy it again."
            ) from None

    return read


def _on_hub(
    source: str, key: str, config: str | None, split: str | None, revision: str | None
) -> Texts:
    name, file = split_address(source)
    if file:
        raise ValueError(
            f"{source!r} is a file on the Hub; texts are read from data sets. Write "
            f"'hub:{name}', or download the file."
        )
    commit, split = commit_of(name, revision), split or "train"
    config = config or CONFIGS.get(name)
    what = f"{name} {config} ({split})" if config else f"{name} ({split})"

    more = {"name": config} if config else {}
    found = rows(name, split=split, commit=commit, streaming=True, **more)

    def read() -> Iterator[str]:
        for number, row in enumerate(_arriving(found, what, commit), start=1):
            yield _text(row, key, f"{what}, row {number}")

    return Texts(f"{what} at {commit[:12]}", read, endless=True)


def _arriving(found: Iterable[Any], what: str, commit: str) -> Iterator[Any]:
    with reaching(what, commit):
        yield from found
