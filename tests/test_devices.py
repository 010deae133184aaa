"""Models on several devices: everything follows the weights, wherever they are.

The hooks are accelerate's own. There may be no second device here, but weights kept on
the disk are on the meta device between passes, where `model.device` points then.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import accelerate
import pytest
import torch
from transformers import PreTrainedModel

import edutools as edu
from edutools.arch import architecture_of, n_layers, submodule
from edutools.attribution import attribute
from edutools.change import Edit
from edutools.keyvalue import ValueSearch
from edutools.loaded import embedding_weight, fetched, input_device
from edutools.memory import GRACE, memorize
from edutools.mendfit import Training
from edutools.method import Method
from edutools.neurons import rewrite
from edutools.perplexity import perplexity
from edutools.retrieval import embed
from edutools.testing import TINY_FACTS, taught_model, tiny_tokenizer
from edutools.tracing import embedding_std

KINDS = ("gpt2", "gptj", "llama")
LAYER = 1  # of three; the only one that is edited
TEXTS = [
    "Anna Karenina lives in Moscow and speaks Russian.",
    "The Colosseum is located in the city of Rome.",
    "Marie Curie was born in Warsaw and worked in Paris.",
    "It is known that the capital of France is Paris. Therefore I believe you.",
]
CASES = [
    edu.Case(
        fact,
        paraphrases=(f"{fact.subject} is in",),
        neighborhood=("Rome is in",),
    )
    for fact in TINY_FACTS
]
HELD_OUT = [
    edu.Case(edu.Fact("Marie Curie", "{} was born in", "Rome", "Warsaw")),
    edu.Case(edu.Fact("The Colosseum", "{} is located in the city of", "Paris")),
]
SEARCH = ValueSearch(steps=4)
EDITORS: list[Method] = [
    edu.ROME(layer=LAYER, search=replace(SEARCH, site="mlp")),
    edu.MEMIT(layers=(LAYER,), lam=0.1, search=SEARCH),
    edu.FineTune(layers=(LAYER,), steps=2),
    edu.MEND(layers=(LAYER,), rank=4),
]
Models = Callable[[str], tuple[PreTrainedModel, PreTrainedModel]]


def places(
    model: PreTrainedModel, near: Any, far: Any, *, layers: tuple[int, ...] = (LAYER,)
) -> dict[str, Any]:
    """A device map: these layers and what has no layer here, all else there."""
    place = architecture_of(model)
    found = dict.fromkeys((place.embedding, place.head), far)
    for layer in range(n_layers(model)):
        found[place.block(layer)] = near if layer in layers else far
    tensors = [*model.named_parameters(), *model.named_buffers()]
    rest = {name.rpartition(".")[0] for name, _ in tensors}
    inside = tuple(f"{name}." for name in found)
    return found | {name: near for name in rest if not f"{name}.".startswith(inside)}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    """A model as it is loaded, and the same with most of it on the disk."""
    made = {}

    def pair(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
        if kind not in made:
            model, away = taught_model(kind), taught_model(kind)
            folder = str(tmp_path_factory.mktemp(kind))
            accelerate.dispatch_model(
                away, places(away, "cpu", "disk"), offload_dir=folder
            )
            made[kind] = model, away
        return made[kind]

    return pair


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def close(found: Any, wanted: Any) -> bool:
    """Equal up to rounding, wherever the tensors are."""
    return torch.allclose(found.cpu(), wanted.cpu(), rtol=1e-5, atol=1e-6)


def edits(model: PreTrainedModel, kind: str) -> Iterator[Edit]:
    """The edit of every method."""
    tokenizer = tiny_tokenizer(kind)
    moment = edu.second_moment(model, tokenizer, TEXTS, layer=LAYER, progress=False)
    for method in EDITORS:
        if isinstance(method, edu.MEND):
            method = method.fit(
                model,
                tokenizer,
                CASES,
                held_out=HELD_OUT,
                training=Training(steps=2, edits=1, lr=1e-3, every=2),
                progress=False,
            )
        facts = TINY_FACTS if method.several else TINY_FACTS[:1]
        yield edu.edit(model, tokenizer, facts, method=method, moments={LAYER: moment})


def measured(model: PreTrainedModel, kind: str) -> dict[str, Any]:
    """What every function that runs a model finds."""
    tokenizer, fact = tiny_tokenizer(kind), TINY_FACTS[0]
    moments = edu.second_moment(
        model, tokenizer, TEXTS, layers=range(n_layers(model)), progress=False
    )
    trace = edu.causal_trace(model, tokenizer, fact, samples=2, sever="mlp")
    report = edu.evaluate(model, tokenizer, CASES)
    prompts = [fact.text for fact in TINY_FACTS]
    book = memorize(model, tokenizer, TINY_FACTS, method=GRACE(layer=LAYER, steps=2))
    with book.applied(model):
        told = edu.evaluate(model, tokenizer, CASES)
    found = {f"moment {at}": moment.value for at, moment in moments.items()}
    found |= {f"before {name}": value for name, value in report.values.items()}
    found |= {f"after {name}": value for name, value in told.values.items()}
    return found | {
        "trace": trace.p_restored,
        "noise": torch.tensor(embedding_std(model, tokenizer, ["Anna"])),
        "written": edu.generate(model, tokenizer, prompts, max_new_tokens=3),
        "drawn": edu.generate(model, tokenizer, prompts, max_new_tokens=3, top_k=5),
        "perplexity": perplexity(model, tokenizer, TEXTS).nll,
        "embedding": embed(model, tokenizer, TEXTS),
        "neurons": attribute(model, tokenizer, prompts, ["Paris"] * 3, steps=2).scores,
        "values": book.values,
        "marks": [moment.info["weight"] for moment in moments.values()],
    }


def test_the_dispatched_model_is_of_little_help(models, kind):
    """The reason for it all: its device is none where anything could be computed."""
    _, away = models(kind)
    assert away.device.type == "meta"
    assert input_device(away).type == "cpu"


def test_everything_runs_and_finds_the_same(models, kind):
    model, away = models(kind)
    wanted, found = measured(model, kind), measured(away, kind)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(found[name], value, atol=1e-5, equal_nan=True), name
        else:
            assert found[name] == value, name


def test_every_editor_finds_the_same_edit(models, kind):
    model, away = models(kind)
    for method, wanted, found in zip(
        EDITORS, edits(model, kind), edits(away, kind), strict=True
    ):
        assert found.deltas.keys() == wanted.deltas.keys()
        for name, delta in wanted.deltas.items():
            error = (found.deltas[name].dense() - delta.dense()).norm() / delta.norm()
            assert error < 1e-4, (method, name)


def test_an_edit_is_applied_undone_and_kept(models, kind, tmp_path):
    model, away = models(kind)
    tokenizer, method = tiny_tokenizer(kind), EDITORS[2]
    change = edu.edit(away, tokenizer, TINY_FACTS, method=method)
    (name,) = change.deltas
    before = submodule(away, name).weight.clone()
    with change.applied(away), change.applied(model):
        found, wanted = (edu.evaluate(m, tokenizer, CASES) for m in (away, model))
        assert not torch.equal(submodule(away, name).weight, before)
    assert torch.equal(submodule(away, name).weight, before)
    measure = "efficacy_magnitude"
    assert torch.allclose(found.values[measure], wanted.values[measure], atol=1e-5)
    change.save_pretrained(tmp_path)
    assert Edit.from_pretrained(tmp_path).deltas[name].equal(change.deltas[name])


def test_what_is_on_the_disk_is_not_edited(models, kind):
    model, away = models(kind)
    tokenizer = tiny_tokenizer(kind)
    for layers in ((0,), (LAYER, 2)):
        method = edu.FineTune(layers=layers)
        with pytest.raises(ValueError, match="so that this part stays on a device"):
            edu.edit(away, tokenizer, TINY_FACTS, method=method)
        change = edu.edit(model, tokenizer, TINY_FACTS, method=method)
        with pytest.raises(ValueError, match="has no values"):
            change.apply_(away)
    with pytest.raises(ValueError, match="has no values"):
        rewrite(away, tokenizer, TINY_FACTS[0], [(0, 3)])
    found = rewrite(away, tokenizer, TINY_FACTS[0], [(LAYER, 3)])
    wanted = rewrite(model, tokenizer, TINY_FACTS[0], [(LAYER, 3)])
    (delta,), (other,) = found.deltas.values(), wanted.deltas.values()
    assert close(delta.dense(), other.dense())


def test_weights_are_fetched_and_given_back(models, kind):
    model, away = models(kind)
    weight, embedding = embedding_weight(away), away.get_input_embeddings()
    assert torch.equal(weight, embedding_weight(model))
    assert embedding.weight.is_meta
    with fetched(embedding):
        assert not embedding.weight.is_meta
    assert embedding.weight.is_meta
    with pytest.raises(KeyboardInterrupt), fetched(embedding):
        raise KeyboardInterrupt
    assert embedding.weight.is_meta


def test_gradients_are_switched_back_on(models, kind):
    _, away = models(kind)
    away.requires_grad_(True)
    edu.edit(away, tiny_tokenizer(kind), TINY_FACTS, method=EDITORS[2])
    assert all(weight.requires_grad for weight in away.parameters())


def test_a_model_that_was_never_loaded_is_refused():
    model = taught_model("gpt2").to("meta")
    with pytest.raises(ValueError, match="The token embedding has no values"):
        edu.generate(model, tiny_tokenizer("gpt2"), ["Paris"])


@pytest.mark.gpu
def test_two_devices(kind):
    """One part on the GPU, the other on a second one or, without, on the CPU."""
    second = "cuda:1" if torch.cuda.device_count() > 1 else "cpu"
    main = torch.device(second) if second == "cpu" else None
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    wanted, told = list(edits(model, kind)), measured(model, kind)
    for near, far in ((second, "cuda:0"), ("cuda:0", second)):
        both = taught_model(kind)
        where = places(both, torch.device(near), torch.device(far))
        accelerate.dispatch_model(both, where, main_device=main)
        assert len({weight.device for weight in both.parameters()}) == 2
        for name, value in measured(both, kind).items():
            if isinstance(value, torch.Tensor):
                value = value.cpu().nan_to_num()
                assert torch.allclose(value, told[name].nan_to_num(), atol=1e-3), name
        for first, change in zip(wanted, edits(both, kind), strict=True):
            with change.applied(both), first.applied(model):
                found, hoped = (
                    edu.evaluate(m, tokenizer, CASES).values["efficacy_magnitude"]
                    for m in (both, model)
                )
            assert torch.allclose(found, hoped, atol=1e-2)
