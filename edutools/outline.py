"""A model without its weights: shapes and types, from a name, a folder or the Hub."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from edutools.pocket import POCKET_MODELS, chosen, pocket

__all__ = ["DTYPES", "outline", "published", "published_name"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def published() -> dict[str, dict[str, Any]]:
    """Sizes of published models by name, each with its source.

    Book: sec-planning

    >>> published()["llama-2-7b"]["intermediate_size"]
    11008
    """
    text = files("edutools").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def published_name(name: str) -> str | None:
    """The name under which `published` knows a model; None if it does not.

    An owner in front, '-hf' at the end, hyphens and case do not matter.

    Book: sec-planning

    >>> published_name("meta-llama/Llama-2-7b-hf"), published_name("gptj-6b")
    ('llama-2-7b', 'gpt-j-6b')
    """
    known = {_plain(full): full for full in published()}
    return known.get(_plain(name.rstrip("/").split("/")[-1]))


def _plain(name: str) -> str:
    return name.lower().removesuffix("-hf").replace("-", "")


def outline(
    name: str | Path | None = None, *, dtype: str | None = None
) -> PreTrainedModel:
    """A model on the meta device: every module, no weights, no memory.

    Args:
        name: as of `pocket.chosen`. The models of `published` need no network.
        dtype: of the weights; by default what they are stored in.

    Raises:
        ValueError: if the type is unknown, or there is no such model.
        RuntimeError: if its configuration cannot be read.

    Book: sec-planning

    >>> model = outline("gpt-j-6b", dtype="bfloat16")
    >>> sum(p.numel() for p in model.parameters()), model.device
    (6050882784, device(type='meta'))
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"dtype is {dtype!r}; choose one of {', '.join(map(repr, DTYPES))}."
        )
    full = chosen(name)
    config = _config(full)
    kind = DTYPES[dtype] if dtype else getattr(config, "dtype", None) or torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
    model.name_or_path = full
    return model.eval().requires_grad_(False)


def _config(name: str) -> Any:
    folder = Path(name).expanduser()
    known = None if folder.is_dir() else published_name(name)
    if known is not None:
        row = published()[known]
        kind, dtype = row.pop("model_type"), DTYPES[row.pop("dtype")]
        del row["source"]
        return AutoConfig.for_model(kind, **row, dtype=dtype)
    source = str(pocket(name)) if name in POCKET_MODELS else name
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else source)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise RuntimeError(
            f"The configuration of {name!r} cannot be read ({first}). Give a folder "
            "with a config.json, a pocket model, or one whose sizes are known: "
            f"{', '.join(published())}."
        ) from None
