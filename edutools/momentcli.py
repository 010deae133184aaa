"""The command `moments`: measure second moments over texts, or merge some."""

import sys
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

import edutools as edu
from edutools import options, tables
from edutools.flags import Force, Json, Model, flag
from edutools.moments import SecondMoment, load_moments, merge_moments, save_moments
from edutools.progress import Progress
from edutools.ranks import gpus, here
from edutools.texts import Texts, read_texts
from edutools.together import shared_moments

__all__ = ["moments_command"]

PAUSE = 60.0  # seconds between two lines about progress


def moments_command(
    *,
    texts: Annotated[
        str | None,
        flag(
            "--texts",
            text="A text in each line; .jsonl, .parquet; or hub:owner/name.",
        ),
    ] = None,
    layers: Annotated[
        str | None, flag("--layers", text="Such as 3,4,5 or 3-5.")
    ] = None,
    out: Annotated[Path, flag("--out", text="Folder, a file for each layer.")],
    model: Model = None,
    tokens: Annotated[
        str | None,
        flag("--tokens", text="How many, or 10*d for ten times the size of a key."),
    ] = None,
    documents: Annotated[
        int | None, flag("--documents", min=1, text="How many texts.")
    ] = None,
    max_length: Annotated[
        int | None, flag("--max-length", min=1, text="Tokens a text is cut off at.")
    ] = None,
    key: Annotated[
        str, flag("--key", text="Key or column that holds the text.")
    ] = "text",
    config: Annotated[
        str | None, flag("--config", text="Of a data set of the Hub.")
    ] = None,
    split: Annotated[
        str | None, flag("--split", text="Of a data set of the Hub.")
    ] = None,
    revision: Annotated[
        str | None, flag("--revision", text="Of a data set of the Hub: a commit.")
    ] = None,
    dataset: Annotated[
        str | None,
        flag("--dataset", text="Name of the texts.  [default: their source]"),
    ] = None,
    checkpoint: Annotated[
        Path | None, flag("--checkpoint", text="Folder to go on from when interrupted.")
    ] = None,
    batch_tokens: Annotated[
        int, flag("--batch-tokens", min=1, text="Tokens per forward pass.")
    ] = 4096,
    merge: Annotated[
        list[Path] | None,
        flag("--merge", text="Merge folders of moments instead; to be repeated."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure the second moments of a model's keys over texts, or merge some."""
    if merge:
        found = _merged(merge, texts, layers)
        _fresh(out, found, force=force)
    else:
        source = {"key": key, "config": config, "split": split, "revision": revision}
        lines, wanted = _asked(texts, layers, tokens, documents, source)
        _fresh(out, wanted, force=force)
        loaded, tokenizer = edu.load(model, **gpus())
        found = shared_moments(
            here(),
            loaded,
            tokenizer,
            lines,
            layers=wanted,
            dataset=dataset or lines.source,
            tokens=int(tokens) if tokens and tokens.isdecimal() else tokens,
            documents=documents,
            max_length=max_length,
            checkpoint=checkpoint,
            batch_tokens=batch_tokens,
            progress=sys.stderr.isatty() or _Lines(),
        )
    if here().leads:
        save_moments(found, out)
    text = tables.describe_moments(found)
    typer.echo(tables.dumped(tables.moment_values(found)) if as_json else text)


def _merged(
    folders: list[Path], texts: str | None, layers: str | None
) -> dict[int, SecondMoment]:
    if len(folders) < 2 or texts is not None or layers is not None:
        raise ValueError(
            f"--merge was given {len(folders)} times. Give it at least twice, and "
            "neither --texts nor --layers."
        )
    return merge_moments([load_moments(folder) for folder in folders])


def _asked(
    texts: str | None,
    layers: str | None,
    tokens: str | None,
    documents: int | None,
    source: dict[str, Any],
) -> tuple[Texts, list[int]]:
    """Texts and layers, if they say enough."""
    if texts is None or layers is None:
        raise ValueError(
            f"--texts is {texts!r} and --layers is {layers!r}. Give both to measure, "
            "or --merge to merge what was measured."
        )
    wanted, lines = options.layer_list(layers), read_texts(texts, **source)
    if lines.endless and tokens is None and documents is None:
        raise ValueError(
            f"{texts!r} may hold more texts than anyone wants to measure. Give "
            "--tokens 10*d, which is enough, or --documents 100000, as in the papers."
        )
    return lines, wanted


def _fresh(out: Path, layers: Any, *, force: bool) -> None:
    for layer in layers:
        options.fresh(out / f"moment-{layer}.safetensors", force=force)


class _Lines:
    """Says how long it will take, if it is long, and now and then how far it is."""

    def __init__(self) -> None:
        self._calls, self._last = 0, monotonic()

    def __call__(self, progress: Progress) -> None:
        self._calls += 1
        long = (progress.left or 0) > PAUSE and self._calls == 2  # the first warms up
        if here().leads and (long or monotonic() - self._last >= PAUSE):
            self._last = monotonic()
            typer.echo(f"edutools: {progress}", err=True)
