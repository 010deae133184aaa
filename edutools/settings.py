"""Frozen settings as plain dicts and back, and the table of presets.

Unknown names raise: to drop one silently would change numbers.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from typing import Any, TypeVar, get_type_hints

from edutools.checks import shown

__all__ = ["preset_row", "presets", "read", "write"]

T = TypeVar("T")


def write(settings: Any) -> Any:
    """Turn nested frozen dataclasses and tuples into dicts and lists, for JSON.

    Book: sec-methods
    """
    if is_dataclass(settings):
        return {f.name: write(getattr(settings, f.name)) for f in fields(settings)}
    if isinstance(settings, tuple):
        return [write(item) for item in settings]
    return settings


def read(kind: type[T], data: Any) -> T:
    """Build a frozen dataclass from what `write` gave; nested ones too.

    Raises:
        TypeError: if the data are not a mapping.
        ValueError: if a name is unknown (the nearest known one is suggested), or the
            dataclass refuses a value.

    Book: sec-methods
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} needs names and values; got {data!r}.")
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{kind.__name__} has no setting {name!r}.{hint} "
                f"Known: {', '.join(known)}."
            )
    return kind(**{name: _value(hints[name], value) for name, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else read(hint, value)
    return _frozen(value)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value


def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """The table of presets: method -> model -> settings with their source.

    Book: sec-methods
    """
    text = files("edutools").joinpath("presets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def preset_row(method: str, model: str) -> dict[str, Any]:
    """The settings of a method for a model, without their source.

    Args:
        method: its name, such as 'MEMIT'.
        model: its name; an owner in front is dropped and case does not matter.

    Raises:
        ValueError: if there is no such row; lists those there are.

    Book: sec-methods
    """
    if not isinstance(model, str):
        raise TypeError(f"model must be the name of one; got {shown(model)}.")
    rows = presets().get(method, {})
    name = model.rstrip("/").split("/")[-1].lower()
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{method} has no preset for {model!r}.{hint} Known: "
            f"{', '.join(rows) or 'none'}. Give the settings yourself."
        )
    return {key: value for key, value in rows[name].items() if key != "source"}
