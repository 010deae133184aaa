"""The models that ship with the package, and the one choice that chapters share."""

import difflib
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edutools.checks import shown
from edutools.places import a_path

__all__ = ["POCKET_MODELS", "chosen", "load", "pocket"]

POCKET_MODELS = ("pocket-gptj", "pocket-gptj-organism", "pocket-llama")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZERS = ("tokenizer*.json", "tokenizer.model", "vocab.json")


def pocket(name: str) -> Path:
    """The folder of a model that ships with the package.

    Args:
        name: "gptj", "gptj-organism" or "llama", with or without "pocket-" in front.

    Returns:
        A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` accept.

    Raises:
        ValueError: if there is no such model.

    Book: sec-pocket-models

    >>> pocket("gptj").name
    'pocket-gptj'
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text; got {shown(name)}.")
    full = name if name.startswith("pocket-") else f"pocket-{name}"
    if full not in POCKET_MODELS:
        short = {known.removeprefix("pocket-"): known for known in POCKET_MODELS}
        near = difflib.get_close_matches(full.removeprefix("pocket-"), short, n=1)
        hint = f" Did you mean {short[near[0]]!r}?" if near else ""
        raise ValueError(
            f"No pocket model {name!r}.{hint} "
            f"The package ships {', '.join(POCKET_MODELS)}."
        )
    return Path(str(files("edutools"))) / "data" / "models" / full


def chosen(name: str | Path | None = None) -> str:
    """The full name of a model, by default of the one that chapters run on.

    Args:
        name: a pocket model, with or without "pocket-" in front, a folder, or the id of
            a model on the Hub. By default what the environment variable EDUTOOLS_MODEL
            says, and "pocket-gptj-organism" if it says nothing.

    Book: sec-pocket-models

    >>> chosen("llama")
    'pocket-llama'
    """
    if name is not None:
        a_path("name", name)
        name = os.fspath(name)  # a leading './' tells a folder from a name on the Hub
    name = name or os.environ.get("EDUTOOLS_MODEL") or "pocket-gptj-organism"
    return f"pocket-{name}" if f"pocket-{name}" in POCKET_MODELS else name


def load(
    name: str | Path | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a chapter runs on, in evaluation mode, and its tokenizer.

    Large models go to the GPU where there is one, in the precision they are stored in;
    everything else is left to `AutoModelForCausalLM.from_pretrained`.

    Args:
        name: as of `chosen`.
        options: of `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        ValueError: if there is no such pocket model, or the folder holds no model.
        RuntimeError: if the model is gated, damaged or cannot be reached.

    Book: sec-pocket-models
    """
    name = chosen(name)
    ours = name.startswith("pocket-")
    source = str(pocket(name)) if ours else _folder_or_id(name)
    large = torch.cuda.is_available() and not ours
    options = ({"device_map": "auto"} if large else {}) | options
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, SafetensorError) as error:
        raise RuntimeError(_advice(name, source, error)) from error
    return model.eval(), tokenizer


def _folder_or_id(name: str) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder, name)
        return str(folder)
    if name.startswith((".", "/", "~")):
        raise ValueError(
            f"EDUTOOLS_MODEL or `name` is {name!r}, but there is no such folder. Give "
            "a folder with config.json and *.safetensors, a Hub id such as "
            f"'EleutherAI/gpt-j-6b', or one of {', '.join(POCKET_MODELS)}."
        )
    return name


def _check_folder(folder: Path, name: str) -> None:
    wanted = {
        "config.json": ("config.json",),
        "weights (*.safetensors)": WEIGHTS,
        "tokenizer (tokenizer.json)": TOKENIZERS,
    }
    missing = [
        what
        for what, patterns in wanted.items()
        if not any(any(folder.glob(pattern)) for pattern in patterns)
    ]
    if missing:
        raise ValueError(
            f"The folder {name!r} holds no {' and no '.join(missing)}. A model folder "
            "is what `save_pretrained` writes: config.json, *.safetensors and the "
            "tokenizer's files. Point EDUTOOLS_MODEL at such a folder; pickled weights "
            "(*.bin) are not read."
        )


def _advice(name: str, source: str, error: Exception) -> str:
    """One paragraph: which model, what happened, what to do."""
    text = str(error).strip() or type(error).__name__
    if "gated repo" in text or "401 Client Error" in text:
        todo = (
            "It is gated: accept its licence on its Hub page, then log in once with "
            "`hf auth login` (or set HF_TOKEN)."
        )
    elif Path(source).is_dir():
        todo = "Its files are damaged or incomplete; copy or download them again."
    else:
        todo = (
            "Check the spelling and the connection. Without a network, download it "
            "once elsewhere with `hf download` and point EDUTOOLS_MODEL at the folder."
        )
    first = text.splitlines()[0].rstrip(".")
    return (
        f"The model {name!r} cannot be loaded ({first}). {todo} Unset EDUTOOLS_MODEL "
        "to run on the pocket model that ships with the package."
    )
