"""Data sets of the Hub, each at a state that cannot change."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "CONFIGS",
    "HUB",
    "PINNED",
    "commit_of",
    "reaching",
    "rows",
    "split_address",
]

HUB = "hub:"

# The state in which a data set of the Hub is read.
PINNED = {
    "azhx/counterfact": "c01c413f856ee38f5c080c9fc5e87aff478e2ff9",
    "wikimedia/wikipedia": "b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
}
# The part that is read of a data set with several.
CONFIGS = {"wikimedia/wikipedia": "20231101.en"}


def split_address(address: str) -> tuple[str, str]:
    """The data set, and the file in it or '', that an address on the Hub names.

    Raises:
        ValueError: if it names no data set.

    Book: sec-evaluation

    >>> split_address("hub:owner/name/data/file.json")
    ('owner/name', 'data/file.json')
    """
    parts = address.removeprefix(HUB).split("/")
    if len(parts) < 2 or not all(parts):
        raise ValueError(
            f"{address!r} names no data set. Write 'hub:owner/name', or "
            "'hub:owner/name/file.json' for a file in it."
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def commit_of(name: str, revision: str | None) -> str:
    """The commit at which a data set is read.

    Raises:
        ValueError: if the revision is no commit, or left out of a data set that is not
            `PINNED`.

    Book: sec-evaluation
    """
    commit = PINNED.get(name) if revision is None else revision
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(
            f"{name!r} must be read at a fixed state: revision must be a commit of 40 "
            f"hexadecimal digits, got {revision!r}. Its page on the Hub lists them "
            f"under 'Files and versions'. Known without one: {', '.join(PINNED)}."
        )
    return commit


def rows(dataset: str, *, split: str, commit: str, **more: Any) -> Iterable[Any]:
    """The rows of a data set, each a mapping.

    Args:
        dataset: owner and name.
        split: such as 'train'.
        commit: the state.
        more: further options of `datasets.load_dataset`: its name, streaming.

    Raises:
        RuntimeError: if the package `datasets` is not installed.
        FileNotFoundError: if the Hub does not give them.

    Book: sec-evaluation
    """
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError(
            f"To read {dataset!r} from the Hub the package datasets is needed. Install "
            "it with pip install 'edutools[data]', or give a file."
        ) from None
    with reaching(f"{dataset} ({split})", commit):
        return load_dataset(dataset, split=split, revision=commit, **more)


@contextmanager
def reaching(what: str, commit: str) -> Iterator[None]:
    """Say in one line what the Hub did not give.

    Raises:
        FileNotFoundError: if anything goes wrong inside.

    Book: sec-evaluation
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"The Hub did not give {what} at {commit} ({type(error).__name__}: "
            f"{reason}). Check name, split, revision and connection, or give a file."
        ) from error
