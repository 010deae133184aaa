"""Checks of what a public function is given, made before its work starts.

Settings are checked by the types of their fields, so that a wrong value from a file or
a command line is refused where it enters, and not deep inside the work.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "choice",
    "number",
    "of_kind",
    "several",
    "shown",
    "typed",
]

T = TypeVar("T")

SHOWN = 80  # characters of a value in a message
ONE = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
    NoneType: "None",
}
MANY = {int: "whole numbers", float: "numbers", str: "texts"}
NOUNS = {"str": "text", "int": "layer", "ZsreCase": "case"}


def shown(value: Any) -> str:
    """The value as a message shows it: on one line, and not too long.

    Book: sec-errors

    >>> len(shown(list(range(100)))), shown("a\\nb")
    (84, "'a\\\\nb'")
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip(' ,')} ..."


def typed(settings: Any) -> None:
    """Refuse settings with a field of another type than it was declared with.

    An int will do for a float and a list for a tuple; True is no number, and a float
    must be finite.

    Args:
        settings: a dataclass.

    Raises:
        TypeError: names the first such field.
        ValueError: if a number is nan or infinite.

    Book: sec-errors
    """
    kind = type(settings)
    hints = get_type_hints(kind)
    for field in fields(settings):
        value = getattr(settings, field.name)
        _check(f"{kind.__name__}.{field.name}", value, hints[field.name])


def number(
    name: str,
    value: Any,
    kind: type = float,
    *,
    least: float | None = None,
    positive: bool = False,
) -> None:
    """Refuse what is no number, is not finite, or is too small.

    Args:
        name: of the argument, as the reader knows it.
        value: what was given.
        kind: `int` for a whole number, `float` for any.
        least: the smallest one allowed.
        positive: whether 0 is too small.

    Raises:
        TypeError: if it is no such number.
        ValueError: if it is not finite or too small.

    Book: sec-errors
    """
    _check(name, value, kind)
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")
    if positive and not value > 0:
        raise ValueError(f"{name} is {value}; it must be positive.")


def several(name: str, items: Any, kind: type[T]) -> list[T]:
    """The items as a list, if each of them is of the kind.

    Args:
        name: of the argument, in the plural.
        items: any iterable but text and mappings.
        kind: of each item.

    Raises:
        TypeError: if it is a single one, or an item is something else.

    Book: sec-errors

    >>> several("texts", (text for text in ("a", "b")), str)
    ['a', 'b']
    """
    noun = NOUNS.get(kind.__name__, kind.__name__.lower())
    if isinstance(items, kind):
        raise TypeError(f"{name} must be several {noun}s, not one. Pass [{noun}].")
    if isinstance(items, (str, Mapping)) or not isinstance(items, Iterable):
        raise TypeError(
            f"{name} must be a list, each item {_words(kind)}; got {shown(items)}."
        )
    items = list(items)
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise TypeError(f"{name}[{i}] must be {_words(kind)}; got {shown(item)}.")
    return items


def choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        ValueError: names the field and lists what is allowed.

    Book: sec-errors
    """
    if value not in allowed:
        raise ValueError(
            f"{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}."
        )


def of_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Refuse what is not of the kind, such as a class where one of its objects belongs.

    Raises:
        TypeError: shows the example.

    Book: sec-errors
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be {_words(kind)} such as {example}; got {shown(value)}."
        )


def _check(name: str, value: Any, hint: Any) -> None:
    if not _fits(hint, value):
        raise TypeError(f"{name} is {shown(value)}; it must be {_words(hint)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number.")


def _fits(hint: Any, value: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(option, value) for option in inside)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        wanted = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return len(value) == len(wanted) and all(map(_fits, wanted, value))
    if hint is float:
        hint = (int, float)
    if hint is Any or isinstance(value, bool):
        return hint in (bool, Any)
    kind = origin or hint
    return not isinstance(kind, (type, tuple)) or isinstance(value, kind)


def _words(hint: Any) -> str:
    """What a type is called in a message."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inside))
    if origin is tuple and inside[-1] is Ellipsis:
        return f"a tuple of {_plural(inside[0])}"
    if origin is tuple:
        return f"{len(inside)} {_plural(inside[0])}"
    an = "an" if hint.__name__[0] in "AEIO" else "a"
    return ONE.get(hint) or f"{an} {hint.__name__}"


def _plural(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"tuples of {_words(hint)}"
    return MANY.get(hint) or f"{hint.__name__} objects"
