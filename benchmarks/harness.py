"""How the benchmarks measure: sides in turn, medians with spread, and where it was.

A script has `main(argv)`, takes its arguments with `arguments` and `read`, times its
sides with `timed`, and keeps the rows with `keep`:
``python -m benchmarks.solve --device cuda --repeats 9``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
LEAST = 5  # repeats behind a number that is kept in RESULTS
PACKAGES = ("edutools", "torch", "transformers")


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark can be told; add the benchmark's own."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=LEAST)
    parser.add_argument("--threads", type=int, help="of torch; default: as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="for the results")
    return parser


def read(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, least: int = LEAST
) -> argparse.Namespace:
    """The arguments, after a look whether this machine can follow them.

    `least` repeats stand behind what is kept among the published results.
    """
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no GPU")
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}; it must be at least 1")
    if given.repeats < least and given.folder.resolve() == RESULTS:
        parser.error(
            f"--repeats {given.repeats} is too few for numbers that are kept; use at "
            f"least {least}, or another --folder for a trial"
        )
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def once(call: Callable[[], Any], device: torch.device | str) -> tuple[float, Any]:
    """Seconds that a call took, and what it returned."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - start, result


def timed(
    sides: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device | str = "cpu",
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Time the sides in turn (A B, B A, A B, ...) and say how long each took.

    Args:
        sides: what to time, by name; called without arguments, results are dropped.
        repeats: how often each side is timed.
        device: is synchronised before and after each call.
        warmup: how often each side is called before, untimed.
        before: is called before every call of a side, untimed.

    Returns:
        For each side what `spread` says of its seconds, and `peak_bytes`: the most that
        was allocated on a GPU during one of its calls (None on a CPU).
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int] = {}
    for turn in range(-warmup, repeats):
        for name in list(sides) if turn % 2 == 0 else reversed(sides):
            if before is not None:
                before()
            if torch.device(device).type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            spent, _ = once(sides[name], device)
            if torch.device(device).type == "cuda":
                peak = torch.cuda.max_memory_allocated(device)
                peaks[name] = max(peak, peaks.get(name, 0))
            if turn >= 0:
                seconds[name].append(spent)
    return {
        name: spread(found) | {"peak_bytes": peaks.get(name)}
        for name, found in seconds.items()
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, largest and quartiles of some values, and the values."""
    low, high = values[0], values[0]
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "q1": low,
        "q3": high,
        "n": len(values),
        "values": list(values),
    }


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> dict[str, Any]:
    """How many times as long one side took as the other, turn by turn.

    `of_medians` is the number to quote; the rest is the spread of the pairs.
    """
    pairs = [a / b for a, b in zip(slow["values"], fast["values"], strict=True)]
    return {"of_medians": slow["median"] / fast["median"]} | spread(pairs)


def surroundings(device: torch.device | str) -> dict[str, Any]:
    """Hardware, versions, threads and the commit that was measured."""
    return {
        "device": _device(torch.device(device)),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "commit": _git("rev-parse", "HEAD"),
        "clean": not _git(
            "status", "--porcelain", "-uno", "edutools", "benchmarks/*.py"
        ),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def keep(
    name: str, rows: Sequence[Mapping[str, Any]], given: argparse.Namespace
) -> Path:
    """Write rows, settings and surroundings to NAME.json (NAME-cuda.json on a GPU).

    The file is replaced in one step, so it is never half written; a long benchmark can
    call this after every row.
    """
    settings = {name: value for name, value in vars(given).items() if name != "folder"}
    told = {
        "benchmark": name,
        "settings": settings,
        "surroundings": surroundings(given.device),
        "rows": list(rows),
    }
    given.folder.mkdir(parents=True, exist_ok=True)
    end = "" if given.device == "cpu" else f"-{given.device}"
    path = given.folder / f"{name}{end}.json"
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(told, indent=1, allow_nan=False, default=str)
    partial.write_text(f"{text}\n", encoding="utf-8")
    partial.replace(path)
    return path


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _cpu() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*command: str) -> str:
    done = subprocess.run(
        ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"
