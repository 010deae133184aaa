"""How far a measurement has come: a bar, or numbers for whoever asks."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from tqdm.auto import tqdm

__all__ = ["Progress", "Watch"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a measurement has come.

    Attributes:
        tokens: counted so far.
        total: how many there will be, about; None if nobody can know.
        rate: tokens per second; 0 before the first.

    Book: sec-second-moment

    >>> print(Progress(tokens=4096, total=163_840, rate=200.0))
    4,096 of about 163,840 tokens, 200 per second, about 13 min left
    """

    tokens: int
    total: int | None
    rate: float

    @property
    def left(self) -> float | None:
        """Seconds that are left, about; None if nobody can know."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.tokens) / self.rate

    def __str__(self) -> str:
        of = "" if self.total is None else f" of about {self.total:,}"
        text = f"{self.tokens:,}{of} tokens, {self.rate:,.0f} per second"
        return text if self.left is None else f"{text}, about {_time(self.left)} left"


class Watch:
    """Counts tokens, and shows or tells how many.

    Args:
        progress: whether to show a bar where there is a terminal; or what is to be
            called with a `Progress` after each batch.
        start: tokens counted earlier, which took no time now.

    Book: sec-second-moment
    """

    def __init__(self, progress: bool | Callable[[Progress], None], start: int) -> None:
        self._tell = progress if callable(progress) else None
        self._bar = tqdm(
            desc="second moment",
            unit=" tokens",
            unit_scale=True,
            initial=start,
            disable=None if progress is True else True,
        )
        self._start, self._began = start, perf_counter()
        self.tokens, self.total = start, None

    def expect(self, total: int | None) -> None:
        """Take note of how many tokens there will be."""
        self.total = self._bar.total = total

    def add(self, tokens: int) -> None:
        """Count tokens that have just been seen."""
        self.tokens += tokens
        self._bar.update(tokens)
        if self._tell is not None:
            rate = (self.tokens - self._start) / (perf_counter() - self._began)
            self._tell(Progress(tokens=self.tokens, total=self.total, rate=rate))

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
