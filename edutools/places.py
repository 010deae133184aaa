"""Where results are kept: paths that are given, what is read and written there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edutools.checks import shown

__all__ = ["a_file", "a_folder", "a_path", "an_object", "no_file"]


def a_path(name: str, value: Any) -> Path:
    """The value as a path.

    Raises:
        TypeError: if it is none.

    Book: sec-errors
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path or its text; got {shown(value)}.")
    return Path(value)


def a_file(value: Any) -> Path:
    """The path of a file to write, its folder made if it is not there.

    Raises:
        TypeError: if it is no path.
        OSError: if it is a folder, or its folder cannot be made or written to.

    Book: sec-errors
    """
    path = a_path("path", value)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Name a file in it.")
    a_folder(path.parent)
    return path


def a_folder(value: Any) -> Path:
    """The path of a folder to write into, made if it is not there.

    Raises:
        TypeError: if it is no path.
        FileExistsError: if it is a file, or below one.
        OSError: if it cannot be made or written to.

    Book: sec-errors
    """
    path = no_file(a_path("folder", value))
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path, os.W_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise OSError(
            f"{str(path)!r} cannot be written to ({reason}). Name another folder."
        )
    return path


def no_file(path: Path) -> Path:
    """The path, if a folder may be made there.

    Raises:
        FileExistsError: if it is a file, or below one.

    Book: sec-errors
    """
    file = next((p for p in (path, *path.parents) if p.is_file()), None)
    if file is not None:
        raise FileExistsError(
            f"{str(file)!r} is a file; nothing can be put below it. Name a folder."
        )
    return path


def an_object(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        kinds: of parts that it may have.

    Raises:
        ValueError: if it is damaged, no object, or a part is of another kind.

    Book: sec-errors
    """
    told = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        raise ValueError(f"{path.name} holds no object")
    for name, kind in kinds.items():
        if not isinstance(told.get(name, kind()), kind):
            raise ValueError(f"the part {name!r} is {shown(told[name])}")
    return told
