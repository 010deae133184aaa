"""What blocks are given in the place of a cache of keys and values.

Axes: batch rows of a pass · tokens it runs · before those it leaves out · keys all of
them.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, cat

__all__ = ["Joined", "Kept"]

Heads = Float[Tensor, "batch heads tokens d_head"]
AllHeads = Float[Tensor, "batch heads keys d_head"]


class Kept:
    """Keeps keys and values of the first tokens of a pass.

    Attributes:
        pair: these keys and values, once a block has asked for them.
        shapes: rows and tokens of each call.

    Book: sec-rome-value
    """

    def __init__(self, before: int):
        self._before = before
        self.pair: tuple[Tensor, ...] = ()
        self.shapes: list[tuple[int, int]] = []

    def update(
        self, key: Heads, value: Heads, *_args: Any, **_kwargs: Any
    ) -> tuple[Heads, Heads]:
        """Return what came in, as if there were no cache."""
        self.shapes.append((key.shape[0], key.shape[2]))
        first = (part[:, :, : self._before] for part in (key, value))
        self.pair = tuple(part.detach().clone() for part in first)
        return key, value


class Joined:
    """Puts kept keys and values before the new ones.

    Book: sec-rome-value
    """

    def __init__(
        self,
        key: Float[Tensor, "batch heads before d_head"],
        value: Float[Tensor, "batch heads before d_head"],
    ):
        self._key, self._value = key, value

    def update(
        self, key: Heads, value: Heads, *_args: Any, **_kwargs: Any
    ) -> tuple[AllHeads, AllHeads]:
        """Keys and values of the tokens before the window and in it."""
        old = self._key.to(key.device), self._value.to(value.device)
        return cat([old[0], key], 2), cat([old[1], value], 2)
