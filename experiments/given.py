"""What a study is told on its command line, and what is in the files named there."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import edutools as edu
from edutools.facts import ZsreCase
from edutools.hub import HUB
from edutools.outline import published_name
from edutools.pocket import POCKET_MODELS, chosen
from edutools.records import load_zsre
from edutools.settings import presets
from edutools.texts import read_texts

SEEDS = 5
SCHEMAS = {
    "CounterFact": ("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
    "zsRE": ("src", "rephrase", "answers", "loc", "loc_ans", "subject"),
}
Questions = Mapping[edu.Fact, ZsreCase]


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def arguments(about: str) -> argparse.ArgumentParser:
    """What every study can be told."""
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add(
        "--model", default="pocket-gptj-organism", help="a pocket model, folder, Hub id"
    )
    add("--seeds", type=positive, default=SEEDS, help="draws of facts")
    add("--limit", type=positive, help="no batch larger than this")
    add("--data", help="CounterFact or zsRE records: a JSON file, or hub:owner/name")
    add("--preset", help="settings of this model; default: of the model itself")
    add("--moments", type=Path, help="a folder of second moments (edutools moments)")
    add("--mend", type=Path, help="a folder with a MEND that was trained for the model")
    add("--texts", help="ordinary texts; default: of the pocket models' world")
    add("--unit", action="append", metavar="NAME=VALUE", help="only units like this")
    add("--out", type=Path, help="write here instead")
    return parser


def command(main: Callable[[], Any]) -> None:
    """Run a study from the command line; what was given wrongly is told in one line."""
    try:
        main()
    except (ValueError, OSError, LookupError, RuntimeError) as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")


def settings_name(model: str, preset: str | None) -> str:
    """Under which name the methods' settings for a model stand.

    Raises:
        ValueError: if there are none; says what to give.
    """
    name = preset or published_name(model) or model.rstrip("/").split("/")[-1]
    known = presets()["MEMIT"]
    if name.lower() not in known:
        raise ValueError(
            f"The methods have no settings for {name!r}. Give --preset NAME, the model "
            f"whose settings serve: {', '.join(known)}."
        )
    return name.lower()


def read_data(data: str | Path) -> tuple[list[edu.Case], Questions]:
    """The cases of a file in one of the two schemas; for zsRE, their questions, too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else; says what was found and wanted.
    """
    source = data if str(data).startswith(HUB) else Path(data)
    if isinstance(source, Path) and _schema(source) == "zsRE":
        found = load_zsre(source)
        cases = [edu.Case(case.fact, paraphrases=(case.rephrase,)) for case in found]
        return cases, {case.fact: case for case in found}
    return list(edu.load_cases(source)), {}


def read_ordinary(source: str, most: int) -> list[str]:
    """The first texts of a file or a data set.

    Raises:
        ValueError: if there are too few to measure anything.
    """
    texts = list(islice(read_texts(source), most))
    if len(texts) < 2:
        raise ValueError(f"{source!r} holds {len(texts)} texts; --texts needs several.")
    return texts


def is_whole(given: argparse.Namespace) -> bool:
    """Whether all of a study is asked for, as its published results have it."""
    asked = (given.limit, given.data, given.preset, given.moments, given.mend)
    shipped = chosen(given.model) in POCKET_MODELS
    more = (given.texts, given.unit, given.seeds != SEEDS, not shipped)
    return not any((*asked, *more))


def only(
    units: Sequence[dict[str, Any]], wanted: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The units whose values are among those that ``--unit NAME=VALUE`` names.

    Raises:
        ValueError: if there is no such name, or no such unit.
    """
    allowed: dict[str, list[Any]] = {}
    for text in wanted or ():
        name, _, value = text.partition("=")
        allowed.setdefault(name, []).append(_value(value))
    known = sorted({name for unit in units for name in unit})
    if not set(allowed) <= set(known):
        raise ValueError(f"--unit {wanted}: units have {', '.join(known)}.")
    kept = [
        unit
        for unit in units
        if all(unit.get(name) in values for name, values in allowed.items())
    ]
    if not kept:
        raise ValueError(
            "Nothing is left to measure; give a larger --limit, more --data, or "
            f"another --unit. Values of units: {_values(units)}."
        )
    return kept


def _values(units: Sequence[Mapping[str, Any]]) -> str:
    found: dict[str, list[str]] = {}
    for unit in units:
        for name, value in unit.items():
            if str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    return "; ".join(f"{n} {', '.join(v[:20])}" for n, v in found.items()) or "none"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _schema(path: Path) -> str:
    """Which of the two schemas a file's first record is in.

    What cannot be read at all is left to the reader of CounterFact, who says why.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return "CounterFact"
    first = next((r for r in records if isinstance(r, dict)), {}) if records else {}
    for name, keys in SCHEMAS.items():
        if keys[0] in first:
            return name
    wanted = "; ".join(f"{name} ({', '.join(k)})" for name, k in SCHEMAS.items())
    raise ValueError(
        f"{path.name} is in neither schema. Its first record has the keys "
        f"{sorted(first) or 'none'}; wanted is a list of records of {wanted}."
    )
