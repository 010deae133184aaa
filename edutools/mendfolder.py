"""The folder a trained MEND is kept in: networks, settings, and a card."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from edutools.editors import OPTIONS, Editors

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

    Book: sec-mend-training
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = kept.editors.state_dict()
    save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS)
    told = {
        "format": FORMAT,
        "settings": kept.settings,
        "shapes": kept.editors.shapes,
        "record": kept.record,
    }
    text = json.dumps(told, indent=1, ensure_ascii=False)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(kept.record), encoding="utf-8")


def load_mend(folder: str | Path, *, revision: str | None = None) -> Kept:
    """Read a trained MEND from a folder or from the Hub.

    Raises:
        FileNotFoundError: if neither exists.
        ValueError: if a file is damaged or does not fit the settings.

    Book: sec-mend-training
    """
    path = Path(folder)
    if not path.is_dir():
        path = _download(str(folder), revision)
    if not (path / SETTINGS).is_file() or not (path / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no MEND: {SETTINGS} or {WEIGHTS} is missing. Give "
            "a folder written by MEND.save_pretrained."
        )
    try:
        told = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        return _read(told, load_file(path / WEIGHTS))
    except (
        SafetensorError,
        KeyError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"The MEND in {path.name!r} is damaged or not complete "
            f"({str(error).splitlines()[0]}). Copy it again, or train it anew."
        ) from None


def _read(told: dict[str, Any], tensors: dict[str, Any]) -> Kept:
    if told["format"] != FORMAT:
        raise ValueError(f"its format is {told['format']!r}, not {FORMAT!r}")
    shapes = {name: (rows, columns) for name, (rows, columns) in told["shapes"].items()}
    options = {name: told["settings"][name] for name in OPTIONS}
    editors = Editors(shapes, **options)
    editors.load_state_dict(tensors)
    return Kept(told["settings"], editors.requires_grad_(False), told["record"])


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
