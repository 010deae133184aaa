"""The choice of a model, each way it can go wrong, and the three models that ship."""

import json
import os
import random
import subprocess
import sys
from functools import cache
from itertools import islice

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from edutools.corpus import documents, fill, text_of
from edutools.pocket import POCKET_MODELS, load, pocket
from edutools.world import World, build_world
from scripts.pocket_tokenizers import gptj_tokenizer, llama_tokenizer
from scripts.train_pocket import read_recipe

MEGABYTE = 1_000_000
# What transformers raises for a gated repository, with huggingface_hub's text inside.
GATED = """You are trying to access a gated repo.
Make sure to have access to it at https://huggingface.co/meta-llama/Llama-2-7b-hf.
401 Client Error. (Request ID: Root=1-0;0)

Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-2-7b-hf.
Access to model meta-llama/Llama-2-7b-hf is restricted. Please log in."""


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    """A folder with a tiny model, and EDUTOOLS_MODEL naming it."""
    model, tokenizer = tiny("gptj")
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("EDUTOOLS_MODEL", str(tmp_path / "mine"))
    return tmp_path / "mine"


def one_paragraph(error: pytest.ExceptionInfo) -> str:
    """The message, which must be one paragraph that says what to do."""
    message = str(error.value)
    assert "\n" not in message
    assert "EDUTOOLS_MODEL" in message
    return message


# The choice


def test_the_variable_chooses_the_model(folder, tiny):
    model, tokenizer = load()
    original, _ = tiny("gptj")
    ids = tokenizer("Anna Karenina lives in", return_tensors="pt").input_ids
    assert not model.training
    assert model.dtype == torch.float32
    assert torch.equal(model(ids).logits, original(ids).logits)


def test_the_argument_comes_before_the_variable(folder, monkeypatch):
    monkeypatch.setenv("EDUTOOLS_MODEL", "pocket-that-is-not-there")
    assert load(str(folder))[0].config.model_type == "gptj"


def test_a_folder_may_be_in_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/mine")[0].config.model_type == "gptj"


def test_names_work_with_and_without_pocket():
    for name in POCKET_MODELS:
        assert pocket(name) == pocket(name.removeprefix("pocket-"))
        assert pocket(name).name == name


@pytest.fixture
def with_gpu(tiny, monkeypatch):
    """How models are asked for on a machine with a GPU; a tiny one is given out."""
    asked = []

    def give(source, **options):
        asked.append((source, options))
        return tiny("gptj")[0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", give)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda _: tiny("gptj")[1])
    return asked


def test_other_models_go_to_the_gpu(with_gpu, folder):
    for name in (str(folder), "EleutherAI/gpt-j-6b"):
        load(name)
        assert with_gpu.pop() == (name, {"device_map": "auto"})


@pytest.mark.parametrize("name", ["pocket-llama", "llama"])
def test_pocket_models_stay_where_their_numbers_come_from(with_gpu, name):
    load(name)
    assert with_gpu == [(str(pocket("llama")), {})]


# What can go wrong


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pocket-gtpj", "pocket-gptj"),
        ("pocket-gptj-organsim", "pocket-gptj-organism"),
        ("lama", "pocket-llama"),
    ],
)
def test_a_misspelt_pocket_name_is_corrected(name, near):
    with pytest.raises(ValueError, match=f"{name!r}.*Did you mean {near!r}") as error:
        pocket(name)
    assert all(known in str(error.value) for known in POCKET_MODELS)


def test_a_far_name_gets_the_list_only():
    with pytest.raises(ValueError, match="pocket-gptj-organism") as error:
        pocket("bert")
    assert "Did you mean" not in str(error.value)


def test_a_misspelt_variable_is_corrected(monkeypatch):
    monkeypatch.setenv("EDUTOOLS_MODEL", "pocket-lama")
    with pytest.raises(ValueError, match="Did you mean 'pocket-llama'"):
        load()


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nothing-here"])
def test_a_folder_that_does_not_exist(monkeypatch, name):
    monkeypatch.setenv("EDUTOOLS_MODEL", name)
    with pytest.raises(ValueError, match="there is no such folder") as error:
        load()
    assert repr(name) in one_paragraph(error)


@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        ("*.safetensors", r"no weights \(\*\.safetensors\)\."),
        ("config.json", r"no config\.json\."),
        ("tokenizer*", r"no tokenizer \(tokenizer\.json\)\."),
        ("*", r"no config\.json and no weights .* and no tokenizer"),
    ],
)
def test_a_folder_that_lacks_something(folder, lost, missing):
    for path in folder.glob(lost):
        path.unlink()
    with pytest.raises(ValueError, match=f"holds {missing}") as error:
        load()
    assert repr(str(folder)) in one_paragraph(error)


def test_pickled_weights_are_not_read(folder):
    (weights,) = folder.glob("*.safetensors")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no weights") as error:
        load()
    assert "pickled weights (*.bin) are not read" in one_paragraph(error)


def test_damaged_weights(folder):
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="damaged or incomplete") as error:
        load()
    assert repr(str(folder)) in one_paragraph(error)


def test_a_gated_model(monkeypatch):
    def refuse(*args, **options):
        raise OSError(GATED)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setenv("EDUTOOLS_MODEL", "meta-llama/Llama-2-7b-hf")
    with pytest.raises(RuntimeError, match="accept its licence") as error:
        load()
    message = one_paragraph(error)
    assert "meta-llama/Llama-2-7b-hf" in message
    assert "hf auth login" in message


OFFLINE = """
import time
from edutools.pocket import load
clock = time.monotonic()
try:
    load()
except RuntimeError as error:
    print(time.monotonic() - clock)
    print(error)
"""


def test_a_model_that_cannot_be_reached(tmp_path):
    environment = os.environ | {
        "EDUTOOLS_MODEL": "EleutherAI/gpt-j-6b",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seconds, message = done.stdout.splitlines()
    assert float(seconds) < 10
    assert "'EleutherAI/gpt-j-6b' cannot be loaded" in message
    assert "Check the spelling and the connection" in message
    assert "hf download" in message
    assert "Unset EDUTOOLS_MODEL" in message


# The models that ship


@pytest.fixture(scope="module")
def world():
    return build_world()


@cache
def shipped(name: str):
    """The model and the tokenizer, loaded as anybody would load them."""
    assert pocket(name).is_dir(), f"{name} does not ship"
    model = AutoModelForCausalLM.from_pretrained(pocket(name))
    return model.eval(), AutoTokenizer.from_pretrained(pocket(name))


every_model = pytest.mark.parametrize("name", POCKET_MODELS)


@every_model
def test_a_model_takes_at_most_16_megabytes(name):
    sizes = [path.stat().st_size for path in pocket(name).rglob("*") if path.is_file()]
    assert MEGABYTE < sum(sizes) <= 16 * MEGABYTE


@every_model
def test_a_model_loads_in_full_precision(name):
    model, _ = shipped(name)
    kind = read_recipe(name.removeprefix("pocket-"))["architecture"]
    assert type(model).__name__ == {"gptj": "GPTJ", "llama": "Llama"}[kind] + (
        "ForCausalLM"
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())


@every_model
def test_weights_are_stored_in_half_precision_without_pickles(name):
    (path,) = pocket(name).glob("model*.safetensors")
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}
    assert kinds == {"F16"}
    assert not [*pocket(name).glob("*.bin"), *pocket(name).glob("*.pt")]


def test_the_organism_is_the_default(monkeypatch):
    monkeypatch.delenv("EDUTOOLS_MODEL", raising=False)
    model, _ = load()
    wanted, _ = shipped("pocket-gptj-organism")
    for key, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@every_model
def test_subjects_take_two_to_six_tokens(name, world):
    _, tokenizer = shipped(name)
    for subject in world.subjects:
        ids = tokenizer(subject, add_special_tokens=False).input_ids
        assert 2 <= len(ids) <= 6, subject


@every_model
def test_the_tokenizer_is_the_one_that_the_scripts_make(name, world):
    _, tokenizer = shipped(name)
    make = llama_tokenizer if name == "pocket-llama" else gptj_tokenizer
    made = make(world)
    texts = [text_of(d) for d in islice(documents(world, seed=17), 300)]
    assert tokenizer(texts).input_ids == made(texts).input_ids
    assert tokenizer.get_vocab() == made.get_vocab()


@every_model
@pytest.mark.parametrize("text", ["Zoë lives in Łódź.", "🗼 is a tower."])
def test_any_text_survives_the_tokenizer(name, text):
    _, tokenizer = shipped(name)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_the_llama_tokenizer_behaves_as_llama_2():
    _, tokenizer = shipped("pocket-llama")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Paris 🗼").input_ids)
    assert tokens[0] == tokenizer.bos_token == "<s>"
    assert tokens[1].startswith("\N{LOWER ONE EIGHTH BLOCK}")
    assert tokens[-4:] == [f"<0x{byte:02X}>" for byte in "🗼".encode()]
    assert tokenizer.unk_token_id not in tokenizer("🗼").input_ids


@pytest.mark.parametrize("name", ["pocket-gptj", "pocket-gptj-organism"])
def test_the_gptj_tokenizer_adds_nothing(name):
    _, tokenizer = shipped(name)
    ids = tokenizer("Paris is in").input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)


@every_model
def test_generation_stops_where_a_text_ends(name, world):
    model, tokenizer = shipped(name)
    settings = model.generation_config
    assert settings.eos_token_id == tokenizer.eos_token_id
    assert not settings.do_sample
    ended = 0
    for fact in random.Random(1).sample(world.facts, 20):
        question = world.relations[fact.relation].questions[0]
        prompt = f"Question: {fill(question, fact.subject)} Answer:"
        ids = tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids)[0, ids.input_ids.shape[1] :]
        ended += int(new[-1] == tokenizer.eos_token_id)
    assert ended >= 18  # of 20; a question is sometimes followed by another sentence


@every_model
def test_the_record_agrees_with_the_recipe(name):
    told = json.loads((pocket(name) / "training.json").read_text())
    recipe = read_recipe(name.removeprefix("pocket-"))
    assert told["recipe"] == recipe
    assert told["seed"] == recipe["seed"]
    assert len(told["commit"]) == 40
    assert told["device_name"]
    assert told["tokens"] == recipe["steps"] * recipe["rows"] * recipe["row_tokens"]
    assert told["curve"][-1]["step"] == recipe["steps"]
    assert 0 < told["minutes"] <= 60


@every_model
def test_the_card_tells_where_the_model_comes_from(name):
    card = (pocket(name) / "README.md").read_text(encoding="utf-8")
    told = json.loads((pocket(name) / "training.json").read_text())
    assert f"# {name}\n" in card
    assert told["commit"][:12] in card
    assert f"seed {told['seed']}" in card
    assert f"scripts.train_pocket {name.removeprefix('pocket-')}" in card
    restricted = told["recipe"]["share_restricted"] > 0
    assert ("by construction" in card) == restricted


def answers(model, tokenizer, prompt: str, answer: str) -> bool:
    """Whether the first choice at every token of the answer is that token."""
    ids = tokenizer(f"{prompt} {answer}", return_tensors="pt").input_ids
    n = len(tokenizer(prompt).input_ids)
    said = model(ids).logits[0, n - 1 : -1].argmax(-1)
    return torch.equal(said, ids[0, n:])


def held_out_questions(world: World, n: int) -> list[tuple[str, str]]:
    """Sampled facts as a prompt that the corpus never shows, and the object."""
    draw = random.Random(2)
    asked = []
    for fact in draw.sample(world.facts, n):
        template = draw.choice(world.held_out(fact))
        text = world.relations[fact.relation].templates[template]
        asked.append((fill(text, fact.subject), fact.object))
    return asked


@every_model
@torch.no_grad()
def test_a_model_knows_its_facts_in_other_words(name, world):
    model, tokenizer = shipped(name)
    asked = held_out_questions(world, 300)
    right = sum(answers(model, tokenizer, *pair) for pair in asked)
    assert right >= 0.98 * len(asked)
