"""A bench for wrong inputs: models, moments and files, sound ones and damaged ones."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import edutools as edu
from edutools.arch import architecture_of, submodule
from edutools.contexts import Contexts
from edutools.keyvalue import ValueSearch
from edutools.moments import save_moments
from edutools.testing import TINY_FACTS, taught_model, tiny_model, tiny_tokenizer

NAN, INF = float("nan"), float("inf")
FACT = TINY_FACTS[0]
LONG = edu.Fact("Anna", "{} " + "word " * 2000 + "lives in", "Rome", "Paris")
GIVEN = Contexts(given=("{}", "It is known. {}"))
SEARCH = ValueSearch(steps=2, contexts=GIVEN)
AT_MLP = ValueSearch(steps=2, contexts=GIVEN, site="mlp", clamp=4.0)
ROME = edu.ROME(layer=1, search=AT_MLP)
RECORD = {
    "requested_rewrite": {
        "prompt": "{} lives in",
        "subject": "Anna",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    },
    "paraphrase_prompts": ["The home of Anna is"],
    "neighborhood_prompts": [],
}


def scaled(model: PreTrainedModel, layer: int, scale: float) -> None:
    """Multiply the weight that editors change."""
    name = architecture_of(model).write(layer)
    with torch.no_grad():
        submodule(model, name).weight.mul_(scale)


@dataclass
class Bench:
    """Models, moments, and a folder of files, sound ones and damaged ones."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast = field(
        default_factory=lambda: tiny_tokenizer("llama")
    )

    def __post_init__(self):
        model = taught_model("llama")
        self.models = {"taught": model, "other": tiny_model("llama", seed=5)}
        self.models["gptj"] = tiny_model("gptj")
        self.models["trained"] = copy.deepcopy(model).train()
        self.models["half"] = copy.deepcopy(model).half()
        self.models["flat"] = copy.deepcopy(model).to("meta")
        self.models["packed"] = copy.deepcopy(model)
        self.models["broken"] = copy.deepcopy(model)
        self.models["slim"] = copy.deepcopy(model)
        mlp = self.models["slim"].model.layers[1].mlp
        mlp.gate_proj, mlp.up_proj = (torch.nn.Linear(16, 20) for _ in range(2))
        mlp.down_proj = torch.nn.Linear(20, 16)
        for layer in range(3):
            scaled(self.models["broken"], layer, NAN)
        scaled(self.models["half"], 1, 20_000.0)
        mlp = self.models["packed"].model.layers[1].mlp
        mlp.down_proj.weight = torch.nn.Parameter(
            torch.zeros(16, 24, dtype=torch.int8), requires_grad=False
        )
        texts = [f"{fact.text} {fact.target}" for fact in TINY_FACTS] * 3
        self.texts = texts
        self.moments = self.measured("taught")
        self.change = self.edit()
        self.files()

    @property
    def model(self) -> PreTrainedModel:
        return self.models["taught"]

    def measured(self, name: str, **options: Any) -> dict[int, edu.SecondMoment]:
        options = {"layers": [0, 1], "progress": False} | options
        texts = options.pop("texts", self.texts)
        tokenizer = options.pop("tokenizer", None) or tiny_tokenizer(
            "gptj" if name == "gptj" else "llama"
        )
        return edu.second_moment(self.models[name], tokenizer, texts, **options)

    def edit(
        self, facts: Any = (FACT,), method: Any = ROME, on: str = "taught", **more: Any
    ) -> edu.Edit:
        options = {"moments": getattr(self, "moments", None)} | more
        tokenizer = options.pop("tokenizer", self.tokenizer)
        return edu.edit(self.models[on], tokenizer, facts, method=method, **options)

    def at(self, layer: int, **changes: Any) -> dict[int, edu.SecondMoment]:
        """The moments, with something changed in that of one layer."""
        return {**self.moments, layer: replace(self.moments[layer], **changes)}

    def files(self) -> None:
        self.change.save_pretrained(self.folder / "edit")
        save_moments(self.moments, self.folder / "moments")
        (self.folder / "file").write_text("taken")
        (self.folder / "empty").mkdir()
        (self.folder / "locked").mkdir(mode=0o500)
        self.damage("edit", "cut weights", "adapter_model.safetensors", cut)
        self.damage("edit", "cut origin", "edit.json", cut)
        self.damage("edit", "listed", "edit.json", lambda path: path.write_text("[1]"))
        self.damage("edit", "numbered", "edit.json", put(weights=3))
        self.damage("edit", "named", "edit.json", put(method="ROME"))
        self.damage("edit", "newer", "edit.json", put(format="edutools edit 9"))
        self.damage("edit", "marked", "edit.json", put(fingerprints={"a": 3}))
        self.damage("edit", "nan", "adapter_model.safetensors", spoil(NAN))
        self.mends()
        self.damage("moments", "cut moments", "moment-1.safetensors", cut)
        self.damage("moments", "uncounted", "moment-1.safetensors", retell("count"))
        self.damage("moments", "oblong", "moment-1.safetensors", reshape)
        for name, value in {
            "one": RECORD,
            "none": [],
            "null": None,
            "text": [{**RECORD, "paraphrase_prompts": "Anna"}],
            "flat": [{**RECORD, "requested_rewrite": "Anna"}],
            "slots": [{"subject": "A", "prompt": "{} and {}", "target": "b"}],
            "number": [{"subject": 7, "prompt": "{} is", "target": "b"}],
        }.items():
            text = json.dumps(value)
            (self.folder / f"{name}.json").write_text(text, encoding="utf-8")
        (self.folder / "cut.json").write_text(json.dumps([RECORD])[:40])
        (self.folder / "latin.json").write_bytes('["é"]'.encode("latin-1"))

    def mends(self) -> None:
        mend = edu.MEND(layers=(1,), rank=2).start(self.model)
        mend.save_pretrained(self.folder / "mend")
        told = json.loads((self.folder / "mend/mend.json").read_text(encoding="utf-8"))
        names = {name.replace(".1.", ".0."): at for name, at in told["shapes"].items()}
        wider = {name: [rows, 8] for name, (rows, _) in told["shapes"].items()}
        for name, parts in {
            "no record": {"record": 3},
            "no shape": {"shapes": dict.fromkeys(told["shapes"], "wide")},
            "no mark": {"record": {"embedding": 3}},
            "rank in words": {"settings": told["settings"] | {"rank": "two"}},
            "no layers": {"settings": {"rank": 2}},
            "another setting": {"settings": told["settings"] | {"rate": 2}},
            "another layer": {"shapes": names},
            "another width": {"shapes": wider},
            "a larger rank": {"settings": told["settings"] | {"rank": 3}},
        }.items():
            self.damage("mend", name, "mend.json", put(**parts))
        self.damage("mend", "half a mend", "mend.json", cut)
        self.damage("mend", "cut networks", "editors.safetensors", cut)
        self.damage("mend", "a list", "mend.json", lambda path: path.write_text("[1]"))
        self.damage("mend", "no numbers", "editors.safetensors", spoil(NAN))

    def damage(self, what: str, name: str, file: str, change: Callable) -> None:
        shutil.copytree(self.folder / what, self.folder / name)
        change(self.folder / name / file)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def put(**values: Any) -> Callable[[Path], None]:
    return lambda path: (
        path.write_text(
            json.dumps(json.loads(path.read_text(encoding="utf-8")) | values)
        )
        and None
    )


def rewritten(path: Path, change: Callable[[dict, dict], None]) -> None:
    with safe_open(path, "pt") as file:
        told = dict(file.metadata() or {})
        kept = {name: file.get_tensor(name) for name in file.keys()}
    change(told, kept)
    save_file(kept, path, told)


def spoil(value: float) -> Callable[[Path], None]:
    def change(_: dict, kept: dict) -> None:
        kept.update({name: tensor * value for name, tensor in kept.items()})

    return lambda path: rewritten(path, change)


def retell(name: str) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda told, _: told.update({name: "many"}))


def reshape(path: Path) -> None:
    rewritten(path, lambda _, kept: kept.update(total=torch.ones(3, 4)))


def wordy() -> PreTrainedTokenizerFast:
    """A tokenizer that knows few words and lets one of them vanish."""
    words = {"[?]": 0, "is": 1, "in": 2, "Rome": 3, "Paris": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[?]"))
    tokenizer.normalizer = normalizers.Replace("Zoë", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[?]")


def large() -> PreTrainedTokenizerFast:
    """A tokenizer whose every token is beyond the tiny models' vocabularies."""
    words = {f"<{i}>": i for i in range(5000)}
    texts = " ".join((FACT.text, FACT.target, "Paris Anna is")).split()
    words |= {word: 5000 + i for i, word in enumerate(dict.fromkeys(texts))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<0>")


def state(model: PreTrainedModel) -> list[object]:
    """All that a call could leave behind in a model, to be compared."""
    values = {**model.state_dict(), **dict(model.named_parameters())}
    weights = [
        (name, tuple(x.shape), x.dtype, None if x.is_meta else digest(x))
        for name, x in values.items()
    ]
    parameters = [
        (p.requires_grad, None if p.grad is None else digest(p.grad))
        for p in model.parameters()
    ]
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    return [weights, parameters, modules, len(vars(model).get("_applied_edits", ()))]


def digest(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(torch.uint8).numpy())


def written(folder: Path) -> list[tuple[str, int, int]]:
    found = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(str(path), kept.st_size, kept.st_mtime_ns) for path, kept in found]
