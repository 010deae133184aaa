"""Options that several commands have."""

from typing import Annotated, Any

import typer

__all__ = ["Force", "Json", "Limit", "Model", "flag"]


def flag(name: str, *, text: str, **more: Any) -> Any:
    """An option of a command, with its line of help.

    Book: sec-command-line
    """
    return typer.Option(name, help=text, **more)


MODEL = flag(
    "--model",
    text="A pocket model, a folder, or an id on the Hub.  [default: what "
    "EDUTOOLS_MODEL says, else pocket-gptj-organism]",
)
Model = Annotated[str | None, MODEL]
Json = Annotated[bool, flag("--json", text="Print JSON instead of a table.")]
Limit = Annotated[int | None, flag("--limit", min=1, text="Only the first of them.")]
Force = Annotated[bool, flag("--force", text="Overwrite what is there.")]
