"""Parts of a long benchmark: each is timed, kept and told as soon as it is done."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.harness import keep, once
from benchmarks.models import NAMES


class Late(Exception):  # noqa: N818
    """There is no time left for a part."""


@dataclass
class Log:
    """Runs parts of the work one after the other and keeps what they took."""

    given: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def part(
        self,
        phase: str,
        call: Callable[[], Any],
        *,
        units: int = 1,
        unit: str = "call",
        method: str | None = None,
        tell: Callable[[Any], dict[str, Any]] = lambda result: {},
    ) -> Any:
        """Do it, unless time is up; keep seconds, the highest memory, and more."""
        spent = time.perf_counter() - self.begun
        if spent > self.given.deadline:
            note = f"not begun: {spent:.0f} of {self.given.deadline:.0f} s were over"
            self.add(phase, method=method, note=note)
            raise Late(f"{phase} {note}; nothing after it was begun either")
        if self.given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, result = once(call, self.given.device)
        told = {"units": units, "unit": unit, "seconds": seconds, "n": 1}
        self.add(phase, method=method, **told, **self.memory(), **tell(result))
        return result

    def add(self, phase: str, **told: Any) -> None:
        """Keep a row and say it."""
        given = self.given
        about = {"model": NAMES[given.model], "size": given.size, "dtype": given.dtype}
        self.rows.append(about | {"phase": phase} | told)
        keep(f"full_size_{NAMES[given.model]}", self.rows, given)
        where = told.get("method") or ""
        what = told.get("note") or f"{told.get('seconds', 0):8.2f} s"
        at = time.perf_counter() - self.begun
        print(f"[{at:6.1f} s] {phase:16} {where:6} {what}", flush=True)

    def memory(self) -> dict[str, int]:
        """The most that was held: on a GPU by this part, else by the process so far."""
        if self.given.device == "cuda":
            return {"peak_bytes": torch.cuda.max_memory_allocated()}
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"resident_bytes": most * 1024}


@dataclass
class Timed:
    """A function with the seconds that all its calls took together."""

    function: Callable[..., Any]
    device: str
    seconds: float = 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        spent, result = once(lambda: self.function(*args, **options), self.device)
        self.seconds += spent
        return result


@contextmanager
def put(module: Any, name: str, other: Any) -> Iterator[None]:
    """Let a module find another function under a name."""
    before = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, before)
