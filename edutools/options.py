"""What a command line is given, as values: texts, layers, settings, facts, moments."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edutools.effects import Trace
from edutools.facts import Fact
from edutools.finetune import KINDS, FineTune
from edutools.method import Method
from edutools.moments import SecondMoment, load_moments
from edutools.pocket import POCKET_MODELS, pocket
from edutools.records import load_facts

__all__ = [
    "facts_of",
    "fresh",
    "heatmap",
    "layer_list",
    "method_of",
    "moments_of",
    "with_setting",
]


def layer_list(text: str) -> list[int]:
    """Read '3,4,5' or '3-5' as layers.

    Raises:
        ValueError: if it is neither.

    Book: sec-command-line

    >>> layer_list("0,3-5")
    [0, 3, 4, 5]
    """
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"Layers are {text!r}; write them as '3,4,5' or '3-5'.")
        layers += range(int(first), int(last or first) + 1)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"Layers {text!r} must be some, and each of them once.")
    return layers


def with_setting(data: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Settings as `Method.to_dict` writes them, with one of them replaced.

    Args:
        data: settings by name; some hold settings themselves.
        text: 'name=value', where the name may have dots and the value is a number, a
            word, a list such as '3,4,5', or JSON.

    Raises:
        ValueError: if it has no '=', or the part before a dot holds no settings.

    Book: sec-command-line

    >>> with_setting({"lam": 1.0, "search": {"steps": 20}}, "search.steps=5")
    {'lam': 1.0, 'search': {'steps': 5}}
    """
    name, equals, value = text.partition("=")
    if not equals or not all(name.strip().split(".")):
        raise ValueError(f"A setting is written name=value; got {text!r}.")
    return _assigned(data, name.strip().split("."), _value(value.strip()), text)


def _assigned(
    data: Mapping[str, Any], path: list[str], value: Any, text: str
) -> dict[str, Any]:
    name, *rest = path
    old = data.get(name)
    if rest:
        if not isinstance(old, Mapping):
            known = ", ".join(key for key in data if isinstance(data[key], Mapping))
            raise ValueError(
                f"{text!r} sets something inside {name!r}, which holds no settings. "
                f"Those that do: {known or 'none'}."
            )
        return {**data, name: _assigned(old, rest, value, text)}
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, list) and not isinstance(value, list):
        value = [value]
    return {**data, name: value}


def _value(text: str) -> Any:
    for written in (text, f"[{text}]"):
        try:
            return json.loads(written)
        except json.JSONDecodeError:
            continue
    return text


def method_of(
    name: str,
    *,
    model: str,
    preset: str | None = None,
    settings: Sequence[str] = (),
    folder: Path | None = None,
) -> Method:
    """A method by its name, with the settings of a preset and some of one's own.

    Args:
        name: such as 'rome'; 'ft', 'ft-l' and 'ft-m' are the kinds of fine-tuning.
        model: whose preset is taken if none is named; if it has none, the settings
            start from the method's defaults, but then some must be given.
        preset: name of the model whose preset is taken.
        settings: as of `with_setting`.
        folder: where a trained method is kept.

    Raises:
        ValueError: if method, preset or a setting is unknown, a trained method lacks
            its folder, or settings make another kind of fine-tuning of the one named.

    Book: sec-command-line
    """
    tuned = next((known for known in KINDS if _letters(known) == _letters(name)), None)
    kind = Method.named(name) if tuned is None else FineTune
    if folder is not None:
        return _trained(kind, folder, preset, settings)
    read = kind.preset if tuned is None else partial(FineTune.preset, kind=tuned)
    try:
        method = read(preset or model)
    except ValueError:
        if preset is not None or not settings:
            raise
        method = kind()
    data = method.to_dict()
    for text in settings:
        data = with_setting(data, text)
    method = Method.from_dict(data)
    made = getattr(method, "kind", tuned)
    if tuned is not None and made != tuned:
        raise ValueError(
            f"The method is {tuned}, but with these settings it is {made}. FT-L has an "
            "epsilon, FT none and loss='last', FT-M none and loss='target'."
        )
    return method


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _trained(
    kind: type[Method], folder: Path, preset: str | None, settings: Sequence[str]
) -> Method:
    read = getattr(kind, "from_pretrained", None)
    if read is None:
        raise ValueError(
            f"{kind.__name__} is not trained, so it is not read from a folder such as "
            f"{str(folder)!r}. Give a preset or settings instead."
        )
    if preset is not None or settings:
        raise ValueError(
            f"A trained {kind.__name__} has the settings of its folder; got preset "
            f"{preset!r} and settings {list(settings)}. Leave them out."
        )
    return read(folder)


def facts_of(
    file: Path | None,
    *,
    subject: str | None,
    prompt: str | None,
    target: str | None,
    truth: str | None,
) -> list[Fact]:
    """Facts from a file, or the one that is written out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if both or neither are given, or a fact is malformed.

    Book: sec-command-line
    """
    one = {"subject": subject, "prompt": prompt, "target": target}
    given = [name for name, value in (one | {"truth": truth}).items() if value]
    if file is not None and not given:
        return list(load_facts(file))
    if file is not None or subject is None or prompt is None or target is None:
        given = ([] if file is None else [f"the file {file.name!r}"]) + given
        raise ValueError(
            "Give either a file of facts, or subject, prompt and target; got "
            f"{', '.join(given) or 'none of them'}."
        )
    return [Fact(subject, prompt, target, truth)]


def moments_of(model: str, folder: Path | None) -> dict[int, SecondMoment]:
    """The moments in a folder; by default those kept beside the model, if any are.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if a file is damaged.

    Book: sec-command-line
    """
    if folder is not None:
        return load_moments(folder)
    beside = pocket(model) if model in POCKET_MODELS else Path(model).expanduser()
    found = any(beside.glob("moment-*.safetensors")) if beside.is_dir() else False
    return load_moments(beside) if found else {}


def heatmap() -> Callable[[Trace], Any]:
    """What draws a trace: `plots.trace_heatmap`.

    Raises:
        RuntimeError: if matplotlib is not installed.

    Book: sec-command-line
    """
    try:
        from edutools.plots import trace_heatmap
    except ImportError:
        raise RuntimeError(
            "A figure needs the package matplotlib. Install it with pip install "
            "matplotlib, or leave --figure out."
        ) from None
    return trace_heatmap


def fresh(path: Path, *, force: bool) -> Path:
    """The path, if nothing would be overwritten there.

    Raises:
        ValueError: if there is a file, or a folder with something in it, and not
            `force`; or if the folder above is a file.

    Book: sec-command-line
    """
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise ValueError(
            f"{str(path)!r} exists already. Name another place, or add --force to "
            "overwrite what is there."
        )
    blocked = next((above for above in path.parents if above.is_file()), None)
    if blocked is not None:
        raise ValueError(f"{str(blocked)!r} is a file; nothing can be put below it.")
    return path
