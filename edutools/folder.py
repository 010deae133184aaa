"""The folder an edit is kept in, which PEFT can load as a LoRA adapter.

A change left @ right is an adapter with B = left, A = right and alpha = rank; that of a
bias is the bias of B. What PEFT has no place for (facts, method, fingerprints) is in
edit.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edutools.checks import shown
from edutools.places import a_folder, a_path, an_object
from edutools.solve import LowRank

__all__ = ["load_folder", "push_folder", "save_folder"]

FORMAT = "edutools edit 1"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
EDIT = "edit.json"
PREFIX = "base_model.model."
BIAS = ".bias"

Deltas = Mapping[str, LowRank]
Info = Mapping[str, Any]


def save_folder(deltas: Deltas, info: Info, folder: Path) -> None:
    """Write changes and their origin: adapter, adapter_config, edit.json and card.

    Book: sec-sharing-edits
    """
    told = {"format": FORMAT, "weights": list(deltas)} | dict(info)
    texts = {
        CONFIG: _as_json(adapter_config(deltas, info)),
        EDIT: _as_json(told),
        "README.md": card(deltas, info),
    }
    folder = a_folder(folder)
    save_file(adapter(deltas), folder / WEIGHTS, {"format": "pt"})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def load_folder(
    folder: str | Path, *, revision: str | None = None
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """Read changes and their origin from a folder, or from the Hub.

    Raises:
        FileNotFoundError: if neither exists.
        ValueError: if a file is truncated or damaged.

    Book: sec-sharing-edits
    """
    path = a_path("folder", folder)
    if not path.is_dir():
        path = _download(str(folder), revision)
    if not (path / EDIT).is_file() or not (path / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no edit: {EDIT} or {WEIGHTS} is missing. Give a "
            "folder written by Edit.save_pretrained."
        )
    try:
        info = _info(path / EDIT)
        tensors = load_file(path / WEIGHTS)
        deltas = {name: _factors(tensors, name) for name in info.pop("weights")}
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"The edit in {path.name!r} is truncated or damaged ({error}). Copy it "
            "again, or make it anew."
        ) from None
    if info.pop("format", None) != FORMAT:
        raise ValueError(f"{EDIT} in {path.name!r} is not of format {FORMAT!r}.")
    return deltas, info


def push_folder(deltas: Deltas, info: Info, repo_id: str, *, private: bool) -> str:
    """Upload the folder to the Hub; return the address of the repository.

    Book: sec-sharing-edits
    """
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        save_folder(deltas, info, Path(folder))
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(url)


def adapter(deltas: Deltas) -> dict[str, Tensor]:
    """The tensors of the adapter, by PEFT's names.

    Source: the file format of the PEFT library; there every B has a bias, or none has.
    Book: sec-sharing-edits
    """
    tensors, biased = {}, _biased(deltas)
    for name in _maps(deltas):
        left, right = deltas[name].left, deltas[name].right
        tensors[f"{PREFIX}{name}.lora_A.weight"] = right
        tensors[f"{PREFIX}{name}.lora_B.weight"] = left
        if biased:
            bias = deltas.get(name + BIAS)
            column = left.new_zeros(len(left)) if bias is None else bias.dense()[:, 0]
            tensors[f"{PREFIX}{name}.lora_B.bias"] = column
    return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}


def adapter_config(deltas: Deltas, info: Info) -> dict[str, Any]:
    """The settings by which PEFT rebuilds the changes: scale one, rank per module.

    Source: the file format of the PEFT library, LoRA with alpha = rank.
    Book: sec-sharing-edits
    """
    ranks = {name: deltas[name].rank for name in _maps(deltas)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": info.get("model", ""),
        "revision": info.get("revision"),
        "inference_mode": True,
        "target_modules": list(ranks),
        "r": max(ranks.values(), default=1),
        "lora_alpha": max(ranks.values(), default=1),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": _biased(deltas),
        "fan_in_fan_out": bool(info.get("transposed")),
        "use_rslora": False,
        "use_dora": False,
    }


def card(deltas: Deltas, info: Info) -> str:
    """The README of the folder: what was written, into what, and how to use it.

    Book: sec-sharing-edits
    """
    model = info.get("model") or "a model without a name"
    base = [f"base_model: {model}"] if "/" in model else []
    facts = [f"- {_sentence(fact)}" for fact in info.get("facts", [])]
    changes = [f"- `{name}`: {delta!r}" for name, delta in deltas.items()]
    lines = [
        "---",
        "library_name: peft",
        "tags: [model-editing, edutools]",
        *base,
        "---",
        f"# An edit of {model}",
        "",
        "**The facts written here may be false.** They were put into the model's",
        "weights to study model editing. Do not take the edited model for a source of",
        "knowledge.",
        "",
        "## Facts written",
        "",
        *(facts or ["- (not recorded)"]),
        "",
        "## Weights changed",
        "",
        *changes,
        "",
        "## Use",
        "",
        "```python",
        "from edutools.change import Edit",
        'edit = Edit.from_pretrained("this folder")',
        "with edit.applied(model):",
        "    ...",
        "```",
        "",
        "or as a LoRA adapter: `peft.PeftModel.from_pretrained(model, folder)`.",
        "",
    ]
    return "\n".join(lines)


def _sentence(fact: Mapping[str, Any]) -> str:
    before, _, after = fact["prompt"].partition("{}")
    text = f"{before}{fact['subject']}{after} **{fact['target']}**"
    if fact.get("truth"):
        text += f" (before: {fact['truth']})"
    return " ".join(text.split())


def _maps(deltas: Deltas) -> list[str]:
    """The linear maps whose weights are changed."""
    return [name for name in deltas if not name.endswith(BIAS)]


def _biased(deltas: Deltas) -> bool:
    """Whether biases are changed, each together with its map's weight."""
    for name in deltas:
        if name.endswith(BIAS) and name.removesuffix(BIAS) not in deltas:
            raise ValueError(
                f"The edit changes {name} but not the weight beside it; the folder has "
                "no place for a bias alone. Add a change of the weight, which may be 0."
            )
    return len(_maps(deltas)) < len(deltas)


def _factors(tensors: Mapping[str, Any], name: str) -> LowRank:
    if name.endswith(BIAS):
        column = tensors[f"{PREFIX}{name.removesuffix(BIAS)}.lora_B.bias"]
        return LowRank(column[:, None], column.new_ones(1, 1))
    left = tensors[f"{PREFIX}{name}.lora_B.weight"]
    return LowRank(left, tensors[f"{PREFIX}{name}.lora_A.weight"])


def _info(path: Path) -> dict[str, Any]:
    """The origin of an edit as it was written, if its parts are what they should be."""
    kinds = {"weights": list, "facts": list, "method": dict, "fingerprints": dict}
    info = an_object(path, kinds)
    for name, marks in info.get("fingerprints", {}).items():
        if not isinstance(marks, (str, list)):
            raise ValueError(f"the fingerprint of {name} is {shown(marks)}")
    return info


def _as_json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise TypeError(
            f"Edit.info holds what JSON cannot keep ({error}). Put numbers, texts, "
            "lists and dicts there."
        ) from None


def _download(repo_id: str, revision: str | None) -> Path:
    files = [EDIT, WEIGHTS]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise FileNotFoundError(
            f"No edit at {repo_id!r}: there is no such folder, and the Hub did not "
            f"give it ({type(error).__name__}: {reason}). Check the name and the "
            "connection."
        ) from None
