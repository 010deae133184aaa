"""Facts and cases from files in the published schemas, and from the Hub.

A malformed record does not spoil the rest: it is left out, and listed with its index
and the reason.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download

from edutools.facts import Case, Fact, ZsreCase
from edutools.hub import HUB, PINNED, commit_of, reaching, rows, split_address
from edutools.places import a_path

__all__ = ["PINNED", "Loaded", "Refused", "load_cases", "load_facts", "load_zsre"]

T = TypeVar("T")

FACT = ("subject", "prompt", "target", "truth")
SHOWN = 3  # reasons in a warning
LENGTH = 300  # characters of a reason


@dataclass(frozen=True)
class Refused:
    """A record that could not be read: where it stands, counted from 0, and why.

    Book: sec-evaluation
    """

    index: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.index}: {self.reason}"


class Loaded(list[T]):
    """A list of the records that could be read, in their order.

    Attributes:
        refused: those that could not, with the reason.
        source: the file, or the data set with its revision and split.

    Book: sec-evaluation
    """

    def __init__(
        self, items: Iterable[T], *, refused: tuple[Refused, ...], source: str
    ) -> None:
        super().__init__(items)
        self.refused = refused
        self.source = source

    def __repr__(self) -> str:
        return f"Loaded({len(self)} of {self.source}, {len(self.refused)} refused)"


def load_cases(
    source: str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    strict: bool = False,
) -> Loaded[Case]:
    """Read evaluation cases in the CounterFact schema.

    multi-CounterFact is a selection of CounterFact's records in the same schema.

    Args:
        source: a JSON file such as 'counterfact.json' or 'multi_counterfact.json'; or a
            data set of the Hub, 'hub:azhx/counterfact', which needs the package
            `datasets`; or a JSON file on the Hub, 'hub:owner/name/file.json'.
        split: of a data set; 'train' by default, 'train+test' for both.
        revision: commit of a data set or file of the Hub. May be left out for those
            named in `PINNED`.
        strict: stop at the first malformed record.

    Returns:
        A list of cases; `.refused` says which records were left out, and why.

    Raises:
        FileNotFoundError: if there is no such file or data set.
        ValueError: if it is not a JSON list of records, no record can be read, the
            revision is not a commit, or a record is malformed (`strict`).
        RuntimeError: if `datasets` is needed and not installed.

    Warns:
        UserWarning: if records were left out.

    Source: Meng et al. 2022 (ROME), Meng et al. 2023 (MEMIT), the published files.
    Book: sec-evaluation
    """
    records, name = _open(source, split, revision)
    return _read(records, Case.from_counterfact, name=name, strict=strict)


def load_zsre(
    source: str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    strict: bool = False,
) -> Loaded[ZsreCase]:
    """Read question-answering cases in the zsRE schema, as 'zsre_mend_eval.json'.

    Arguments, result and errors are those of `load_cases`.

    Source: Mitchell et al. 2022 (MEND), the published file. The released MEMIT code
        leaves the marker 'nq question: ' in front of the unrelated question.
    Book: sec-evaluation
    """
    records, name = _open(source, split, revision)
    return _read(records, ZsreCase.from_zsre, name=name, strict=strict)


def load_facts(source: str | Path, *, strict: bool = True) -> Loaded[Fact]:
    """Read facts to be written from a JSON file.

    Args:
        source: a list of objects with subject, prompt, target and, if known, truth; or
            of CounterFact records, whose other keys are not looked at.
        strict: stop at the first malformed record.

    Raises:
        FileNotFoundError, ValueError: as `load_cases`.

    Book: sec-facts
    """
    records, name = _open(source, None, None)
    return _read(records, _fact, name=name, strict=strict)


def _fact(record: Mapping[str, Any]) -> Fact:
    if "requested_rewrite" in record:
        fit = {"paraphrase_prompts": [], "neighborhood_prompts": []}
        rewrite = {"requested_rewrite": record["requested_rewrite"]}
        return Case.from_counterfact(rewrite | fit).fact
    missing = [key for key in FACT[:3] if key not in record]
    unknown = sorted(set(record) - set(FACT))
    if missing or unknown:
        raise ValueError(
            f"A fact has the keys subject, prompt, target and perhaps truth; missing: "
            f"{missing}, unknown: {unknown}."
        )
    return Fact(**record)


def _open(
    source: str | Path, split: str | None, revision: str | None
) -> tuple[Iterable[Any], str]:
    """The records as they are, and a name for them."""
    if isinstance(source, str) and source.startswith(HUB):
        return _from_hub(source, split, revision)
    if split is not None or revision is not None:
        raise ValueError(
            f"split and revision belong to data sets of the Hub, such as "
            f"'hub:azhx/counterfact'; got split={split!r}, revision={revision!r} for "
            f"{str(source)!r}. Leave them out."
        )
    path = a_path("source", source)
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {str(path)!r}. Give the path of a JSON file that holds a list "
            "of records, or 'hub:owner/name' for a data set of the Hub."
        )
    return _records_of(path), path.name


def _records_of(path: Path) -> list[Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not text in UTF-8 ({error}). Save it in UTF-8."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is not JSON, or is cut off ({error}). Copy it again."
        ) from None
    if not isinstance(records, list):
        raise ValueError(
            f"{path.name} must hold a list of records; got a {type(records).__name__}."
        )
    return records


def _read(
    records: Iterable[Any],
    read: Callable[[Mapping[str, Any]], T],
    *,
    name: str,
    strict: bool,
) -> Loaded[T]:
    kept: list[T] = []
    refused: list[Refused] = []
    for index, record in enumerate(records):
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"It must be an object; got {record!r}.")
            kept.append(read(record))
        except (ValueError, TypeError) as error:
            found = Refused(index, _shortened(str(error)))
            if strict:
                raise ValueError(f"{name}, record {index}: {found.reason}") from None
            refused.append(found)
    if not kept:
        first = f" First of them, {refused[0]}" if refused else ""
        raise ValueError(
            f"{name} holds {len(refused)} records and none that can be read.{first}"
        )
    if refused:
        _warn(refused, len(kept) + len(refused), name)
    return Loaded(kept, refused=tuple(refused), source=name)


def _warn(refused: list[Refused], total: int, name: str) -> None:
    told = " ".join(map(str, refused[:SHOWN]))
    more = f" And {len(refused) - SHOWN} more." if len(refused) > SHOWN else ""
    warnings.warn(
        f"{name}: {len(refused)} of {total} records are malformed and were left out; "
        f".refused lists them, strict=True stops at the first. {told}{more}",
        stacklevel=4,
    )


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} ..."


def _from_hub(
    address: str, split: str | None, revision: str | None
) -> tuple[Iterable[Any], str]:
    name, file = split_address(address)
    commit = commit_of(name, revision)
    if not file:
        split = split or "train"
        return rows(
            name, split=split, commit=commit
        ), f"{name} ({split}) at {commit[:12]}"
    if split is not None:
        raise ValueError(
            f"{file!r} is a file; it has no split {split!r}. Leave it out."
        )
    with reaching(f"{file} of {name}", commit):
        path = hf_hub_download(name, file, repo_type="dataset", revision=commit)
    return _records_of(Path(path)), f"{file} of {name} at {commit[:12]}"
