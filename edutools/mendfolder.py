"""The folder a trained MEND is kept in: networks, settings, and a card."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edutools.checks import shown
from edutools.editors import OPTIONS, Editors
from edutools.places import a_folder, a_path, an_object

__all__ = ["Kept", "load_mend", "push_mend", "save_mend"]

FORMAT = "edutools mend 1"
WEIGHTS = "editors.safetensors"
SETTINGS = "mend.json"


@dataclass(frozen=True, eq=False)
class Kept:
    """What a folder holds.

    Attributes:
        settings: of the MEND, as plain values.
        editors: the networks.
        record: where they come from.

    Book: sec-mend-training
    """

    settings: dict[str, Any]
    editors: Editors
    record: dict[str, Any]


def save_mend(kept: Kept, folder: Path) -> None:
    """Write networks, settings and card.

    Raises:
        OSError: if the folder cannot be made or written to.

    Book: sec-mend-training
    """
    told = {
        "format": FORMAT,
        "settings": kept.settings,
        "shapes": kept.editors.shapes,
        "record": kept.record,
    }
    text = json.dumps(told, indent=1, ensure_ascii=False)
    folder = a_folder(folder)
    tensors = kept.editors.state_dict()
    save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(kept.record), encoding="utf-8")


def load_mend(
    folder: str | Path,
    *,
    revision: str | None = None,
    check: Callable[[Any], object] = lambda settings: None,
) -> Kept:
    """Read a trained MEND from a folder or from the Hub.

    Args:
        folder: its path, or its id on the Hub.
        revision: on the Hub.
        check: refuses settings that are none of a MEND.

    Raises:
        FileNotFoundError: if neither exists.
        ValueError: if a file is damaged or does not fit the settings.

    Book: sec-mend-training
    """
    path = a_path("folder", folder)
    if not path.is_dir():
        path = _download(str(folder), revision)
    if not (path / SETTINGS).is_file() or not (path / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no MEND: {SETTINGS} or {WEIGHTS} is missing. Give "
            "a folder written by MEND.save_pretrained."
        )
    file = SETTINGS
    try:
        told = _told(path / SETTINGS, check)
        file = WEIGHTS
        editors = _editors(told, load_file(path / WEIGHTS))
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The MEND in {path.name!r} is damaged or not complete ({file}: {reason}). "
            "Copy it again, or train it anew."
        ) from None
    return Kept(told["settings"], editors, told["record"])


def _told(path: Path, check: Callable[[Any], object]) -> dict[str, Any]:
    """What the file of settings says, if its parts go together."""
    kinds = {"format": str, "settings": dict, "shapes": dict, "record": dict}
    told = an_object(path, kinds)
    if told.get("format") != FORMAT:
        raise ValueError(f"its format is {told.get('format')!r}, not {FORMAT!r}")
    missing = [part for part in kinds if part not in told] or [
        name for name in ("layers", *OPTIONS) if name not in told["settings"]
    ]
    if missing:
        raise ValueError(f"it lacks {missing[0]!r}")
    check(told["settings"])
    marks = told["record"].get("embedding")
    if marks is not None and not isinstance(marks, (str, list)):
        raise ValueError(f"the part 'embedding' is {shown(marks)}")
    told["shapes"] = {name: _shape(name, at) for name, at in told["shapes"].items()}
    _check_layers(told["settings"]["layers"], list(told["shapes"]))
    return told


def _check_layers(layers: list[int], names: list[str]) -> None:
    """Refuse names of weights that do not lie in these layers, equally many in each."""
    for i, name in enumerate(names):
        layer = layers[i * len(layers) // len(names)]
        if len(names) % len(layers) or str(layer) not in name.split("."):
            raise ValueError(f"the layers are {layers}, but the networks change {name}")


def _shape(name: str, value: Any) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(size) is int and size > 0 for size in value)
    ):
        raise ValueError(f"the shape of {name} is {shown(value)}")
    return value[0], value[1]


def _editors(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Editors:
    """The networks, if the file holds them all and only numbers."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds a NaN or an infinity")
    options = {name: told["settings"][name] for name in OPTIONS}
    editors = Editors(told["shapes"], **options)
    editors.load_state_dict(dict(tensors))
    return editors.requires_grad_(False)


def push_mend(kept: Kept, repo_id: str, *, private: bool) -> str:
    """Upload the folder to the Hub; return the address of the repository.

    Book: sec-mend-training
    """
    with TemporaryDirectory() as folder:
        save_mend(kept, Path(folder))
        api = HfApi()
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(url)


def _card(record: dict[str, Any]) -> str:
    model = record.get("model") or "a model without a name"
    lines = [
        "---",
        "library_name: edutools",
        "tags: [model-editing, mend]",
        *([f"base_model: {model}"] if "/" in model else []),
        "---",
        f"# MEND for {model}",
        "",
        "Editor networks that turn the gradient of a fact into the change of weights",
        f"that writes it into {model}. They fit no other model.",
        "",
        f"Trained on {record.get('cases', 'an unknown number of')} edits; settings and",
        "held-out losses are in `mend.json`.",
        "",
        "```python",
        "import edutools as edu",
        "",
        'mend = edu.MEND.from_pretrained("this folder")',
        "change = edu.edit(model, tokenizer, [fact], method=mend)",
        "```",
        "",
    ]
    return "\n".join(lines)


def _download(repo_id: str, revision: str | None) -> Path:
    files = [SETTINGS, WEIGHTS]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FileNotFoundError(
            f"No MEND at {repo_id!r}: there is no such folder, and the Hub did not "
            f"give it ({type(error).__name__}: {reason}). Check the name and the "
            "connection."
        ) from None
