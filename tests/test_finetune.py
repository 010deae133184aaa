"""Fine-tuning: its bound, its two losses, and that the model stays as it was."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edutools.arch import architecture_of, oriented, submodule
from edutools.corpus import counterfact_records
from edutools.evaluate import Report, evaluate
from edutools.facts import Case, Fact
from edutools.finetune import KINDS, FineTune
from edutools.hooks import patch
from edutools.method import Method
from edutools.methods import edit, edit_each
from edutools.pocket import POCKET_MODELS, load
from edutools.prompts import target_ids, token_ids
from edutools.scoring import score
from edutools.settings import presets
from edutools.testing import (
    TINY,
    TINY_FACTS,
    check_method,
    taught_model,
    tiny_tokenizer,
)
from edutools.world import build_world

FACTS = list(TINY_FACTS)
FTM = FineTune(layers=(1,), lr=5e-3)
METHODS = {
    "FT": replace(FTM, loss="last"),
    "FT-L": replace(FTM, layers=(0, 1), epsilon=5e-3),
    "FT-M": FTM,
}
BIASED = replace(FTM, layers=(0, 1), bias=True)


@pytest.fixture(scope="module")
def taught():
    """GPT-2, whose weights lie transposed; ' Rome' is one token, ' Danish' two."""
    model, tokenizer = taught_model("gpt2"), tiny_tokenizer("gpt2")
    lengths = [len(target_ids(tokenizer, fact.target)) for fact in FACTS]
    assert lengths == [1, 2, 2]
    return model, tokenizer


def find(taught, method, facts=FACTS):
    return method.compute(*taught, facts, {})


def dense(change, layer=1):
    (name,) = [name for name in change.deltas if f".{layer}." in name]
    return change.deltas[name].dense()


def losses(change):
    return change.info["training"]["loss"]


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("name", METHODS)
def test_fine_tuning_keeps_its_promises_on_every_architecture(name, kind):
    assert METHODS[name].kind == name
    check_method(replace(METHODS[name], steps=8), kinds=[kind])


@pytest.mark.parametrize("epsilon", [5e-4, 5e-5, 0.01])
def test_no_weight_moves_farther_than_the_bound(taught, epsilon):
    """As real numbers: 5e-4 is above 0.0005 in float32."""
    change = find(taught, replace(FTM, layers=(0, 1), epsilon=epsilon))
    for layer in (0, 1):
        farthest = float(dense(change, layer).abs().max())
        assert 0.9999 * epsilon < farthest <= epsilon
    free = find(taught, replace(FTM, layers=(0, 1)))
    assert float(dense(free).abs().max()) > 0.01


def test_a_bound_that_is_never_reached_is_none(taught):
    free = find(taught, FTM)
    wide, tight = (find(taught, replace(FTM, epsilon=x)) for x in (1e6, 1e-3))
    assert torch.equal(dense(wide), dense(free))
    assert losses(wide) == losses(free)
    assert losses(tight)[-1] > losses(free)[-1]


def test_the_loss_goes_down_until_it_is_small_enough(taught):
    change = edit(*taught, FACTS, method=replace(FTM, steps=200, stop_loss=0.2))
    told = json.loads(json.dumps(dict(change.info)))["training"]["loss"]
    assert 5 < len(told) < 200
    assert told[0] > 1
    assert told[-1] < 0.2 <= min(told[:-1])
    prompts, targets = [f.text for f in FACTS], [f.target for f in FACTS]
    with change.applied(taught[0]):
        assert bool(score(*taught, prompts, targets).correct.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_that_of_the_model_as_it_will_be(taught, dtype):
    """In half precision with the weight rounded; the change itself stays float32."""
    model, tokenizer = copy.deepcopy(taught[0]).to(dtype), taught[1]
    shorter, longer = (
        replace(FTM, steps=n).compute(model, tokenizer, FACTS, {}) for n in (8, 9)
    )
    change = dense(shorter)
    assert change.dtype == torch.float32
    assert not torch.equal(change, change.to(torch.bfloat16).float())
    assert losses(shorter) == losses(longer)[:8]
    assert losses(longer)[-1] < 0.5 * losses(longer)[0]
    prompts, targets = [f.text for f in FACTS], [f.target for f in FACTS]
    with shorter.applied(model):
        told = -score(model, tokenizer, prompts, targets).per_token.mean()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert losses(longer)[-1] == pytest.approx(float(told), rel=tolerance)


def test_one_token_is_learned_alike_by_both_losses(taught):
    one = find(taught, METHODS["FT"], FACTS[:1])
    two = find(taught, METHODS["FT-M"], FACTS[:1])
    assert torch.equal(dense(one), dense(two))
    assert losses(one) == losses(two)


def test_the_released_loss_wants_every_token_right_behind_the_prompt(taught):
    """The second token of ' Danish' becomes likely in the place of the first."""
    model, tokenizer = taught
    fact = FACTS[2]
    first, second = target_ids(tokenizer, fact.target)
    ids = torch.tensor([[*token_ids(tokenizer, [fact.text])[0], first]])
    probability = {}
    for name in ("FT", "FT-M"):
        change = find(taught, replace(METHODS[name], steps=60), [fact])
        with change.applied(model), torch.no_grad():
            p = model(ids).logits[0, -2:].softmax(-1)
        told = [p[0, first], p[0, second], p[1, second]]
        probability[name] = [float(value) for value in told]
    assert probability["FT-M"][0] > 0.7
    assert probability["FT-M"][1] < 0.05
    assert probability["FT-M"][2] > 0.9
    assert probability["FT"][:2] == pytest.approx([0.42, 0.42], abs=0.08)  # of 1/2
    assert probability["FT"][2] < 0.7


def by_hand(model, tokenizer, facts, method):
    """The same by changing a copy of the model, one fact after the other."""
    model = copy.deepcopy(model).requires_grad_(False)
    maps = [submodule(model, architecture_of(model).write(i)) for i in method.layers]
    weights = [module.weight.requires_grad_() for module in maps]
    if method.bias:
        weights += [m.bias.requires_grad_() for m in maps if m.bias is not None]
    old = [weight.detach().clone() for weight in weights]
    adam = torch.optim.Adam(weights, lr=method.lr, weight_decay=method.weight_decay)

    def loss_of(fact):
        start = token_ids(tokenizer, [fact.text])[0]
        target = torch.tensor(target_ids(tokenizer, fact.target))
        if method.loss == "last":
            logits = model(torch.tensor([start])).logits[0, -1].expand(len(target), -1)
        else:
            ids = torch.tensor([[*start, *target.tolist()]])
            logits = model(ids).logits[0, len(start) - 1 : -1]
        return nn.functional.cross_entropy(logits, target)

    for _ in range(method.steps):
        for i in range(0, len(facts), method.batch_size):
            part = facts[i : i + method.batch_size]
            adam.zero_grad()
            torch.stack([loss_of(fact) for fact in part]).mean().backward()
            adam.step()
            if method.epsilon is not None:
                for weight, was in zip(weights, old, strict=True):
                    low, high = was - method.epsilon, was + method.epsilon
                    weight.data.clamp_(low, high)
    moves = [w.detach() - was for w, was in zip(weights, old, strict=True)]
    turn = kind_of(model) is Conv1D
    return [
        move[:, None] if move.ndim == 1 else move.T if turn else move for move in moves
    ]


def kind_of(model):
    return type(submodule(model, architecture_of(model).write(0)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "last", "batch_size": 2},
        {"epsilon": 2e-3, "batch_size": 1},
        {"weight_decay": 0.3},
        {"bias": True, "epsilon": 2e-3, "weight_decay": 0.3},
    ],
    ids=str,
)
def test_it_is_adam_on_the_weights(kind, options):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    method = replace(FTM, layers=(0, 1), steps=4, **options)
    change = method.compute(model, tokenizer, FACTS, {})
    wanted = by_hand(model, tokenizer, FACTS, method)
    for delta, expected in zip(change.deltas.values(), wanted, strict=True):
        moved = delta.dense()
        assert float(moved.abs().max()) > 1e-3
        # Adam turns a gradient of zero up to rounding into a step of any sign.
        near = (moved - expected).abs() < 1e-4
        assert float(near.float().mean()) > 0.99


@pytest.mark.parametrize("kind", TINY)
def test_with_the_bias_it_keeps_its_promises_too(kind):
    check_method(replace(BIASED, steps=8), kinds=[kind])


def test_the_bias_moves_only_if_it_is_asked_to(taught):
    model, _ = taught
    weights = [architecture_of(model).write(layer) for layer in (0, 1)]
    biases = [f"{name}.bias" for name in weights]
    assert list(find(taught, replace(BIASED, bias=False)).deltas) == weights
    change = edit(*taught, FACTS, method=replace(BIASED, epsilon=2e-3))
    assert list(change.deltas) == [*weights, *biases]
    for name in biases:
        moved = change.deltas[name].dense()
        assert moved.shape == (16, 1)
        assert 0 < float(moved.abs().max()) <= 2e-3
    with change.applied(model):
        for name in biases:
            old, new = model.get_parameter(name), change.deltas[name].dense()[:, 0]
            assert bool((new != 0).any())
            assert old.requires_grad
    bare, words = taught_model("llama"), tiny_tokenizer("llama")  # has no biases
    with_bias, without = (
        replace(BIASED, bias=bias).compute(bare, words, FACTS, {})
        for bias in (True, False)
    )
    assert with_bias.deltas.keys() == without.deltas.keys()
    assert torch.equal(dense(with_bias), dense(without))


def test_a_batch_that_is_known_takes_no_step(taught):
    known = Fact("Anna Karenina", "{} lives in", "Moscow")
    method = replace(FTM, batch_size=1, steps=1, stop_loss=0.5)
    both = find(taught, method, [known, FACTS[0]])
    alone = find(taught, method, FACTS[:1])
    assert torch.equal(dense(both), dense(alone))
    nothing = find(taught, replace(method, steps=9), [known])
    assert len(losses(nothing)) == 1
    assert not dense(nothing).any()


def test_dropout_is_off_and_every_module_keeps_its_mode(taught):
    model = copy.deepcopy(taught[0])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    model.transformer.h[2].eval()
    change = FTM.compute(model, taught[1], FACTS, {})
    assert torch.equal(dense(change), dense(find(taught, FTM)))
    assert model.training
    assert not model.transformer.h[2].training


def test_the_model_is_left_alone_when_it_fails_halfway(taught):
    model = copy.deepcopy(taught[0]).train()
    model.transformer.wte.weight.requires_grad_(False)
    weight = submodule(model, architecture_of(model).write(1)).weight
    weight.grad = torch.ones_like(weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    passes = []

    def fail(h):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return h

    name = architecture_of(model).block(2)
    with pytest.raises(KeyboardInterrupt), patch(model, {name: fail}), torch.no_grad():
        FTM.compute(model, taught[1], FACTS, {})
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == len(list(model.parameters())) - 1
    assert bool((weight.grad == 1).all())
    assert sum(p.grad is not None for p in model.parameters()) == 1
    assert model.training


def test_numbers_that_run_away_are_reported(taught):
    model = taught[0]
    name = architecture_of(model).write(1)
    before = oriented(submodule(model, name)).clone()
    with pytest.raises(RuntimeError, match=r"not finite\. Lower FineTune\.lr"):
        find(taught, replace(FTM, lr=1e30))
    assert torch.equal(oriented(submodule(model, name)), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "all"}, "FineTune.loss is 'all'; choose one of 'target', 'last'"),
        ({"layers": ()}, r"at least one layer, each once; got \[\]"),
        ({"layers": (1, 1)}, r"each once; got \[1, 1\]"),
        ({"epsilon": 0.0}, "FineTune.epsilon is 0.0; it must be positive"),
        ({"epsilon": float("nan")}, "FineTune.epsilon is nan"),
        ({"lr": -1.0}, "FineTune.lr is -1.0; it must be positive"),
        ({"steps": 0}, "FineTune.steps is 0; it must be at least 1"),
        ({"batch_size": 0}, "FineTune.batch_size is 0; it must be at least 1"),
        ({"weight_decay": -0.1}, "FineTune.weight_decay is -0.1"),
        ({"stop_loss": -0.1}, "FineTune.stop_loss is -0.1; it must be at least 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FineTune(**options)


def test_a_layer_that_the_model_lacks_is_named(taught):
    with pytest.raises(ValueError, match=r"no layer 21\. Choose one of 0 to 2"):
        edit(*taught, FACTS, method=FineTune())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_settings_survive_json(method):
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_all_papers_can_be_cited():
    text = FineTune().citation
    assert text.count("@misc{") == 2
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_the_presets_is_of_its_kind(kind):
    for name, row in presets()[kind].items():
        method = FineTune.preset(name, kind=kind)
        assert method.kind == kind
        assert len(row["source"]) > 20
        assert {"layers", "lr"} <= set(row)


@pytest.mark.parametrize("model", ["gpt2-xl", "gpt-j-6b"])
@pytest.mark.parametrize("kind", ["FT", "FT-L"])
def test_published_presets_move_what_the_released_code_moves(model, kind):
    assert FineTune.preset(model, kind=kind).bias


def test_presets_of_published_models():
    free = FineTune.preset("EleutherAI/gpt-j-6B")
    assert (free.layers, free.epsilon, free.loss) == ((21,), None, "last")
    bound = FineTune.preset("gpt2-xl", kind="FT-L")
    assert (bound.layers, bound.epsilon, bound.lr) == ((0,), 5e-4, 5e-4)
    assert FineTune.preset("llama-2-7b", kind="FT-M").loss == "target"
    with pytest.raises(ValueError, match="FT-L has no preset for 'llama-2-7b'"):
        FineTune.preset("llama-2-7b", kind="FT-L")
    with pytest.raises(ValueError, match="kind is 'FT-X'; choose one of 'FT', 'FT-L'"):
        FineTune.preset("gpt2-xl", kind="FT-X")


@pytest.mark.parametrize("name", POCKET_MODELS)
def test_pocket_models_have_rows_of_every_kind(name):
    free, bound, multi = (FineTune.preset(name, kind=kind) for kind in KINDS)
    assert free == replace(multi, loss="last")
    assert free.layers == bound.layers
    assert bound.loss == "target"


def test_the_bound_protects_the_neighbors_of_a_fact():
    """Facts that were not among those the settings were chosen on."""
    model, tokenizer = load("pocket-gptj-organism")
    records = counterfact_records(build_world())[:6]
    cases = [Case.from_counterfact(record) for record in records]
    kept, said = {}, {}
    for kind in ("FT-M", "FT-L"):
        method = FineTune.preset("pocket-gptj-organism", kind=kind)
        facts = [case.fact for case in cases]
        reports = []
        edits = edit_each(model, tokenizer, facts, method=method)
        for case, change in zip(cases, edits, strict=True):
            with change.applied(model):
                reports.append(evaluate(model, tokenizer, [case]))
        report = Report.join(reports)
        said[kind] = report["efficacy"].mean
        kept[kind] = report["neighborhood"].mean
    assert said["FT-M"] == 1
    assert said["FT-L"] > 0.8
    assert kept["FT-L"] > kept["FT-M"]
