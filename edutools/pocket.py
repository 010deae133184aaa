"""The models that ship with the package, and the one choice of model that all chapters share."""

import difflib
import os
from importlib.resources import files
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

__all__ = ["POCKET_MODELS", "load", "pocket"]

POCKET_MODELS = ("pocket-gptj", "pocket-gptj-organism", "pocket-llama")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


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
    full = name if name.startswith("pocket-") else f"pocket-{name}"
    if full not in POCKET_MODELS:
        near = difflib.get_close_matches(full, POCKET_MODELS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"No pocket model {name!r}.{hint} The package ships {', '.join(POCKET_MODELS)}."
        )
    return Path(str(files("edutools"))) / "data" / "models" / full


def load(name: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a chapter runs on, in evaluation mode, and its tokenizer.

    Large models go to the GPU where there is one, in the precision they are stored in; everything
    else is left to `AutoModelForCausalLM.from_pretrained`.

    Args:
        name: a pocket model, a folder, or the id of a model on the Hub. By default what the
            environment variable EDUTOOLS_MODEL says, and "pocket-gptj" if it says nothing.

    Raises:
        ValueError: if the folder holds no model.
        RuntimeError: if the model is gated or cannot be reached.

    Book: sec-pocket-models
    """
    name = name or os.environ.get("EDUTOOLS_MODEL") or "pocket-gptj"
    source = str(pocket(name)) if name.startswith("pocket-") else name
    folder = Path(source).expanduser()
    if folder.is_dir():
        _check_folder(folder, name)
        source = str(folder)
    elif source.startswith((".", "/", "~")):
        raise ValueError(
            f"EDUTOOLS_MODEL or `name` is {name!r}, but there is no such folder. Give a folder "
            f"with config.json and *.safetensors, a Hub id such as 'EleutherAI/gpt-j-6b', or one "
            f"of {', '.join(POCKET_MODELS)}."
        )
    options = {"device_map": "auto"} if torch.cuda.is_available() else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except OSError as error:
        raise RuntimeError(_unreachable(name, error)) from error
    return model.eval(), tokenizer


def _check_folder(folder: Path, name: str) -> None:
    has_weights = any(any(folder.glob(pattern)) for pattern in WEIGHTS)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if has_weights else ["weights (*.safetensors)"]
    if missing:
        raise ValueError(
            f"The folder {name!r} holds no {' and no '.join(missing)}. A model folder is what "
            "`save_pretrained` writes: config.json, *.safetensors and the tokenizer's files. "
            "Point EDUTOOLS_MODEL at such a folder; pickled weights (*.bin) are not read."
        )


def _unreachable(name: str, error: OSError) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    gated = "gated" in str(error).lower() or "401" in str(error)
    advice = (
        "It is gated: accept its licence on its Hub page, then log in once with "
        "`hf auth login` (or set HF_TOKEN)."
        if gated
        else "Check the spelling and the connection. Without a network, download it once "
        "elsewhere with `hf download` and point EDUTOOLS_MODEL at the folder."
    )
    return (
        f"The model {name!r} cannot be loaded ({first}). {advice} "
        "Unset EDUTOOLS_MODEL to run on the pocket model that ships with the package."
    )
