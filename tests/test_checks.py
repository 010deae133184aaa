"""Checks of arguments and settings: what passes, and what they say."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from edutools.checks import choice, number, of_kind, several, shown, typed


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: int = 1
    rate: float = 1.0
    name: str = "a"
    on: bool = True
    layers: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[int, int], ...] = ()
    three: tuple[float, float, float] = (1.0, 2.0, 3.0)
    bound: float | None = None
    inner: Inner = Inner()
    table: dict[str, Any] | None = None
    anything: Any = None
    listed: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rate": 2, "bound": 3},
        {"layers": [4, 5], "pairs": [[1, 2], (3, 4)]},
        {"three": (1, 2.5, 3), "bound": 0.5},
        {"layers": (), "table": {"a": 1}},
        {"anything": True, "on": False},
        {"listed": "c"},  # a hint that is not understood is not checked
    ],
)
def test_settings_of_the_declared_types_pass(given):
    assert typed(Settings(**given)) is None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"count": 1.0},
            TypeError,
            "Settings.count is 1.0; it must be a whole number.",
        ),
        ({"count": True}, TypeError, "count is True; it must be a whole number"),
        ({"rate": "1"}, TypeError, "rate is '1'; it must be a number"),
        ({"rate": False}, TypeError, "rate is False; it must be a number"),
        ({"name": 1}, TypeError, "name is 1; it must be text"),
        ({"on": 1}, TypeError, "on is 1; it must be True or False"),
        ({"layers": 5}, TypeError, "layers is 5; it must be a tuple of whole numbers"),
        ({"layers": (1, "2")}, TypeError, "layers is (1, '2'); it must be a tuple of"),
        (
            {"pairs": ((1, 2, 3),)},
            TypeError,
            "must be a tuple of tuples of 2 whole num",
        ),
        ({"three": (1.0, 2.0)}, TypeError, "three is (1.0, 2.0); it must be 3 numbers"),
        ({"bound": "x"}, TypeError, "bound is 'x'; it must be a number or None"),
        ({"inner": 0.5}, TypeError, "inner is 0.5; it must be an Inner"),
        ({"inner": Inner}, TypeError, "it must be an Inner"),
        ({"table": [1]}, TypeError, "table is [1]; it must be a dict or None"),
        ({"rate": float("nan")}, ValueError, "rate is nan; it must be a finite number"),
        (
            {"bound": float("-inf")},
            ValueError,
            "bound is -inf; it must be a finite num",
        ),
    ],
)
def test_others_are_named(given, error, message):
    with pytest.raises(error) as caught:
        typed(Settings(**given))
    assert message in str(caught.value)


def test_numbers_have_bounds():
    assert number("n", 0, int, least=0) is None
    assert number("x", 1e-9, positive=True) is None
    for call, message in (
        (lambda: number("n", 0, int, least=1), "n is 0; it must be at least 1."),
        (lambda: number("x", 0.0, positive=True), "x is 0.0; it must be positive."),
        (lambda: number("x", float("inf")), "x is inf; it must be a finite number."),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value) == message


def test_several_things_come_as_a_list():
    assert several("facts", (Inner() for _ in range(2)), Inner) == [Inner(), Inner()]
    assert several("texts", {"a"}, str) == ["a"]
    for items, message in (
        (Inner(), "parts must be several inners, not one. Pass [inner]."),
        ({"a": Inner()}, "parts must be a list, each item an Inner; got {'a': Inner("),
        (3, "parts must be a list, each item an Inner; got 3."),
        ([Inner(), 3], "parts[1] must be an Inner; got 3."),
    ):
        with pytest.raises(TypeError) as caught:
            several("parts", items, Inner)
        assert message in str(caught.value)


def test_choices_and_kinds_are_named():
    assert choice("mode", "a", ("a", "b")) is None
    assert of_kind("part", Inner(), Inner, "Inner()") is None
    with pytest.raises(ValueError, match="mode is 'c'; choose one of 'a', 'b'"):
        choice("mode", "c", ("a", "b"))
    with pytest.raises(
        TypeError, match=r"part must be an Inner such as Inner\(\); got 3"
    ):
        of_kind("part", 3, Inner, "Inner()")


def test_long_values_are_shortened_and_lines_joined():
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("word " * 99)) < 90
    assert shown("word " * 99).endswith("word ...")


class Folded:
    def __repr__(self):
        return "Folded(\n  1,\n  2)"


def test_values_are_shown_on_one_line():
    assert shown(Folded()) == "Folded( 1, 2)"
