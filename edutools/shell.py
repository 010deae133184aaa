"""A group of commands whose errors are one line and whose talk is kept from results."""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import typer
from transformers.utils import logging as hf_logging
from typer.core import TyperGroup

from edutools.ranks import Elsewhere, joined

__all__ = ["Commands", "quiet"]

NAME = "edutools"
# What a user can mend: everything that our own checks and missing files raise.
ERRORS = (ValueError, LookupError, TypeError, OSError, RuntimeError)


class Commands(TyperGroup):
    """The commands; a user's error is one line and exit code 2.

    Of several processes the first one speaks; of their errors the first is told.

    Book: sec-command-line
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> Any:
        """Run a command and leave with its exit code."""
        given = list(sys.argv[1:] if args is None else args)
        sys.exit(self.run(given or ["--help"]))

    def run(self, args: list[str]) -> int:
        """Run a command; return its exit code."""
        debug = False
        try:
            with (
                joined(calm=(typer.Exit, typer.Abort)) as ranks,
                nullcontext() if ranks.leads else _silent(),
                self.make_context(NAME, args) as context,
                quiet(),
            ):
                debug = bool(context.params.get("debug"))
                self.invoke(context)
        except typer.Exit as leave:
            return leave.exit_code
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except Elsewhere:  # the other process says why
            return 2
        except Exception as error:
            if not isinstance(error, ERRORS) and not hasattr(error, "format_message"):
                raise
            if debug:
                traceback.print_exception(error)
            else:
                _say(_in_one_line(error))
            return 2
        return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings as one line each; bars only where someone can watch them.

    Book: sec-command-line
    """
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        hf_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _warn
        try:
            yield
        finally:
            hf_logging.set_verbosity(verbosity)
            if bars:
                hf_logging.enable_progress_bar()


@contextmanager
def _silent() -> Iterator[None]:
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def _warn(message: Warning | str, *place: Any) -> None:
    _say(f"warning: {' '.join(str(message).split())}")


def _say(text: str) -> None:
    typer.echo(f"{NAME}: {text}", err=True)


def _in_one_line(error: Exception) -> str:
    """The message of an error; of a wrong option also where its help is."""
    hint = ""
    if hasattr(error, "format_message"):
        text = error.format_message()  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        hint = f" See '{context.command_path} --help'." if context else ""
    elif isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.strerror}: {str(error.filename)!r}"
    else:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
    return " ".join(f"{text or type(error).__name__}{hint}".split())
