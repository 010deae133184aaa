"""The checker that holds every call in the tests to the shapes in its signature."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

# Methods are decorated one by one, where `Self` has no meaning to the checker; an
# int will do where a float is asked for.
check = beartype(
    conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True)
)
