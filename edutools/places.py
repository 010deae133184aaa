"""Where results are kept: paths that are given, and folders that can be written to."""

import os
from pathlib import Path
from typing import Any

from edutools.checks import shown

__all__ = ["a_file", "a_folder", "a_path"]


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
    path = a_path("folder", value)
    file = next((p for p in (path, *path.parents) if p.is_file()), None)
    if file is not None:
        raise FileExistsError(
            f"{str(file)!r} is a file; nothing can be put below it. Name a folder."
        )
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
