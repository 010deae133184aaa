"""Edits: bits come back, folders are read by PEFT, other models are refused."""

import json
from contextlib import ExitStack
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from edutools import change, folder
from edutools.arch import architecture_of
from edutools.batch import MEMIT
from edutools.change import Edit, edit_info, weight_at
from edutools.methods import edit
from edutools.moments import identity_moment
from edutools.objective import Objective
from edutools.prompts import encode
from edutools.rome import ROME
from edutools.solve import LowRank
from edutools.testing import (
    TINY,
    TINY_FACTS,
    taught_model,
    tiny_model,
    tiny_tokenizer,
)

# What PEFT asks of transformers has been renamed there; not ours to mend.
PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FACT = {
    "subject": "The Eiffel Tower",
    "prompt": "{} is located in the city of",
    "target": "Rome",
    "truth": "Paris",
}


def random_edit(
    model: PreTrainedModel, ranks: tuple[int, ...] = (2, 1), /, *, seed: int = 0, **info
) -> Edit:
    """An edit of the first layers, one rank per layer, large enough to be seen."""
    g = torch.Generator().manual_seed(seed)
    arch = architecture_of(model)
    names = [arch.write(layer) for layer in range(len(ranks))]
    d_out, d_in = change.oriented(model.get_submodule(names[0])).shape
    deltas = {
        name: LowRank(
            torch.randn(d_out, rank, generator=g), torch.randn(rank, d_in, generator=g)
        )
        for name, rank in zip(names, ranks, strict=True)
    }
    return Edit(deltas, edit_info(model, names) | info)


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return all(torch.equal(after[name], before[name]) for name in before)


def logits(model: nn.Module, kind: str) -> torch.Tensor:
    texts = ["The Eiffel Tower is in", "Anna"]
    with torch.no_grad():
        return model(**encode(tiny_tokenizer(kind), texts).inputs).logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TINY)
def test_an_edit_adds_its_deltas_and_undo_restores_bits(kind, dtype):
    model = tiny_model(kind).to(dtype)
    before = bits(model)
    edit = random_edit(model)
    undo = edit.apply_(model)
    for name, delta in edit.deltas.items():
        module = model.get_submodule(name)
        old = before[f"{name}.weight"].float()
        old = old.T if "Conv1D" in type(module).__name__ else old
        wanted = (old + delta.dense()).to(dtype)
        assert torch.equal(change.oriented(module), wanted)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {f"{name}.weight" for name in edit.deltas}
    undo()
    assert same(model, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TINY)
def test_undo_restores_bits_also_nested(kind, dtype):
    model = tiny_model(kind).to(dtype)
    before = bits(model)
    first, second = random_edit(model), random_edit(model, (1, 1, 3), seed=1)
    undo_first = first.apply_(model)
    between = bits(model)
    undo_second = second.apply_(model)
    undo_second()
    assert same(model, between)
    undo_first()
    assert same(model, before)


def test_subtracting_would_not_restore_bits():
    """Why weights are copied: adding and subtracting rounds."""
    model = tiny_model("llama").bfloat16()
    edit = random_edit(model)
    name, delta = next(iter(edit.deltas.items()))
    weight = model.get_submodule(name).weight.detach()
    there = (weight.float() + delta.dense()).bfloat16()
    back = (there.float() - delta.dense()).bfloat16()
    assert (back != weight).float().mean() > 0.3


def test_edits_are_undone_in_reverse_order_only():
    model = tiny_model("gptj")
    before = bits(model)
    undo_first = random_edit(model).apply_(model)
    undo_second = random_edit(model, seed=1).apply_(model)
    both = bits(model)
    with pytest.raises(RuntimeError, match="not the last one applied to the model"):
        undo_first()
    assert same(model, both)
    undo_second()
    undo_first()
    assert same(model, before)
    with pytest.raises(RuntimeError, match="undone already"):
        undo_first()


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_the_weights_are_back_after_an_exception(error):
    model = tiny_model("gpt2")
    before = bits(model)

    def broken():
        random_edit(model, seed=1).apply_(model)  # nobody undoes it
        raise error

    with pytest.raises(error), random_edit(model).applied(model):
        broken()
    assert same(model, before)


def test_applied_equals_apply_and_undo():
    model = tiny_model("gptj")
    before = bits(model)
    edit = random_edit(model)
    with edit.applied(model):
        inside = bits(model)
    assert same(model, before)
    undo = edit.apply_(model)
    assert same(model, inside)
    undo()


def test_leaving_with_later_edits_still_applied_is_an_error():
    model = tiny_model("gptj")
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(RuntimeError, match="undo the later ones"))
        stack.enter_context(random_edit(model).applied(model))
        random_edit(model, seed=1).apply_(model)


class Broken(LowRank):
    def dense(self):
        raise MemoryError

    def to(self, target):
        return self


def test_an_application_that_fails_half_way_leaves_the_model_whole():
    model = tiny_model("gpt2")
    before = bits(model)
    edit = random_edit(model)
    name, delta = list(edit.deltas.items())[1]
    broken = Edit({**edit.deltas, name: Broken(delta.left, delta.right)})
    with pytest.raises(MemoryError):
        broken.apply_(model)
    assert same(model, before)
    undo = edit.apply_(model)  # and the next one is the last one
    between = bits(model)
    with pytest.raises(MemoryError):
        broken.apply_(model)
    assert same(model, between)
    undo()
    assert same(model, before)


def everything(model: nn.Module) -> list:
    """What an edit must leave alone besides the weights' values."""
    parameters = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    return [*parameters, *modules, list(model.__dict__.get("_applied_edits", ()))]


@pytest.mark.parametrize("moment", ["search", "second layer"])
def test_making_an_edit_that_fails_leaves_the_model_whole(monkeypatch, moment):
    """In the search, and when the first of two layers has been written already."""
    model, tokenizer = taught_model("gptj").train(), tiny_tokenizer("gptj")
    moments = {layer: identity_moment(model, layer) for layer in (0, 1)}
    method = MEMIT(layers=(0, 1), lam=1.0)
    before, state = bits(model), everything(model)
    if moment == "search":
        calls = iter(range(3))
        plain = Objective.losses

        def interrupted(*args):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return plain(*args)

        monkeypatch.setattr(Objective, "losses", interrupted)
    else:  # enough tokens, but all alike
        flat = torch.ones(32, 32, dtype=torch.float64)
        moments[1] = replace(moments[1], total=flat)
    with pytest.raises((KeyboardInterrupt, ValueError)) as error:
        edit(model, tokenizer, TINY_FACTS[:1], method=method, moments=moments)
    assert same(model, before)
    assert everything(model) == state
    if moment != "search":
        assert "layer 1" in str(error.value)
        assert "not positive definite" in str(error.value)


def test_overflow_is_refused_and_leaves_the_model_whole():
    model = tiny_model("llama").half()
    before = bits(model)
    edit = random_edit(model)
    name = list(edit.deltas)[1]
    huge = LowRank(torch.full((16, 1), 1e3), torch.full((1, 24), 1e3))
    with pytest.raises(ValueError, match=rf"weight of {name} overflows torch.float16"):
        Edit({**edit.deltas, name: huge}).apply_(model)
    assert same(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_change_with_nan_is_refused(value):
    with pytest.raises(ValueError, match="change of somewhere holds a NaN"):
        Edit({"somewhere": LowRank(torch.full((2, 1), value), torch.ones(1, 2))})


def test_tied_weights_stay_tied():
    model = tiny_model("gpt2")
    head = LowRank(torch.ones(400, 1), torch.ones(1, 16))
    before = bits(model)
    with Edit({"lm_head": head}).applied(model):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert not same(model, before)
    assert same(model, before)


def test_two_names_of_one_weight_are_restored_in_reverse():
    net = nn.Module()
    net.a = nn.Linear(2, 2)
    net.b = net.a
    before = net.a.weight.detach().clone()
    one = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    with Edit({"a": one, "b": one}).applied(net):
        assert torch.equal(net.a.weight, before + 1 + 1)
    assert torch.equal(net.a.weight, before)


def test_a_weight_that_two_edited_modules_share_is_changed_by_both():
    model = tiny_model("gptj")
    first, second = (model.transformer.h[i].mlp.fc_out for i in (0, 1))
    second.weight = first.weight
    before = bits(model)
    edit = random_edit(model)
    with edit.applied(model):
        both = sum(delta.dense() for delta in edit.deltas.values())
        torch.testing.assert_close(
            first.weight.detach(), before["transformer.h.0.mlp.fc_out.weight"] + both
        )
        assert second.weight is first.weight
    assert same(model, before)


def test_gradients_and_parameters_survive_an_application():
    model = tiny_model("gptj")
    weight = model.transformer.h[0].mlp.fc_out.weight
    with random_edit(model).applied(model):
        assert model.transformer.h[0].mlp.fc_out.weight is weight
        assert weight.requires_grad
        assert weight.is_leaf


def test_the_empty_edit_changes_nothing():
    model = tiny_model("gptj")
    before = bits(model)
    with Edit({}).applied(model):
        assert same(model, before)
    assert Edit().rank == 0
    assert (Edit() + random_edit(model)).rank == 2


def test_deltas_are_kept_in_float32():
    delta = LowRank(torch.ones(2, 1).double(), torch.ones(1, 2).double())
    assert Edit({"0": delta}).deltas["0"].left.dtype == torch.float32


def test_float64_models_are_edited_in_float64():
    model = tiny_model("llama").double()
    edit = random_edit(model)
    name, delta = next(iter(edit.deltas.items()))
    wanted = model.get_submodule(name).weight.detach() + delta.to(torch.float64).dense()
    with edit.applied(model):
        assert torch.equal(model.get_submodule(name).weight, wanted)


def test_a_sum_does_what_both_do():
    model = tiny_model("gptj")
    first, second = random_edit(model), random_edit(model, (1, 1, 3), seed=1)
    total = first + second
    assert {n: d.rank for n, d in total.deltas.items()} == {
        name: rank for name, rank in zip(second.deltas, (3, 2, 3), strict=True)
    }
    for name, delta in total.deltas.items():
        parts = [e.deltas[name].dense() for e in (first, second) if name in e.deltas]
        torch.testing.assert_close(delta.dense(), sum(parts))
    assert total.norms()[name] == pytest.approx(float(delta.dense().norm()), rel=1e-5)


def test_a_sum_joins_different_modules():
    """What only one of them changes, it changes alone."""
    model = tiny_model("llama")
    one, two = random_edit(model, (2,)), random_edit(model, (1, 3), seed=1)
    total = one + two
    names = [architecture_of(model).write(layer) for layer in (0, 1)]
    assert {name: delta.rank for name, delta in total.deltas.items()} == {
        names[0]: 3,
        names[1]: 3,
    }
    assert total.deltas[names[1]].equal(two.deltas[names[1]])
    assert {n: d.rank for n, d in one.deltas.items()} == {names[0]: 2}  # as it was
    with total.applied(model):
        together = bits(model)
    with one.applied(model), two.applied(model):
        after = model.state_dict()
        for name, weight in together.items():
            torch.testing.assert_close(after[name], weight)


def test_only_edits_are_added_to_edits():
    with pytest.raises(TypeError, match="unsupported operand"):
        Edit() + 1


def test_changes_of_different_shapes_do_not_add_up():
    one, other = random_edit(tiny_model("gptj")), random_edit(tiny_model("llama"))
    name = next(iter(one.deltas))
    wrong = Edit({name: next(iter(other.deltas.values()))})
    with pytest.raises(ValueError, match=r"\(16, 32\) and \(16, 24\) cannot be added"):
        one + wrong


def test_sums_remember_their_parts_and_the_first_fingerprints():
    model = tiny_model("gptj")
    before = bits(model)
    total = Edit({})
    for seed in range(3):
        with total.applied(model):
            step = random_edit(model, seed=seed, facts=[{"subject": str(seed)}])
            total = total + step
    assert same(model, before)
    assert [fact["subject"] for fact in total.info["facts"]] == ["0", "1", "2"]
    assert [part["facts"][0]["subject"] for part in total.info["parts"]] == list("012")
    with total.applied(model):  # strict: it fits the unedited model
        pass


def test_an_edit_of_other_weights_is_refused():
    model, other = tiny_model("gptj"), tiny_model("gptj", seed=1)
    edit = random_edit(model, model="EleutherAI/gpt-j-6b", revision="15ea56d")
    before = bits(other)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        edit.apply_(other)
    assert str(error.value) == (
        "This edit was made for 'EleutherAI/gpt-j-6b' (revision 15ea56d); layer "
        "transformer.h.0.mlp.fc_out of the given model differs from it. Load that "
        "model, or pass strict=False to apply anyway."
    )
    assert same(other, before)
    with edit.applied(other, strict=False):
        assert not same(other, before)
    assert same(other, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_fingerprint_of_an_older_folder_is_enough_where_it_was_made(
    dtype, tmp_path
):
    model = tiny_model("gptj").to(dtype)
    edit = random_edit(model)
    marks = {name: both[0] for name, both in edit.info["fingerprints"].items()}
    Edit(edit.deltas, {**edit.info, "fingerprints": marks}).save_pretrained(tmp_path)
    older = Edit.from_pretrained(tmp_path)
    with older.applied(model), older.applied(model):
        pass
    with pytest.raises(ValueError, match="This edit was made for"):
        older.apply_(tiny_model("gptj", seed=1).to(dtype))


def test_one_other_weight_is_enough_to_refuse():
    """Also if the first edited layers agree; nothing has been changed by then."""
    model = tiny_model("gptj")
    edit = random_edit(model)
    with torch.no_grad():
        model.transformer.h[1].mlp.fc_out.weight[0] += 1
    before = bits(model)
    with pytest.raises(ValueError, match=r"layer transformer\.h\.1\.mlp\.fc_out of"):
        edit.apply_(model)
    assert same(model, before)


def test_an_edit_from_a_folder_knows_its_model_too(tmp_path):
    random_edit(tiny_model("gptj")).save_pretrained(tmp_path)
    loaded, other = Edit.from_pretrained(tmp_path), tiny_model("gptj", seed=1)
    with loaded.applied(tiny_model("gptj")):
        pass
    with pytest.raises(ValueError, match="This edit was made for"):
        loaded.apply_(other)
    with loaded.applied(other, strict=False):
        pass


@pytest.mark.parametrize(
    ("made", "applied"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.float16),
    ],
)
def test_the_same_model_in_another_precision_is_recognised(made, applied):
    """Rounding to float16 on the way to bfloat16 moves some weights: both are kept."""
    edit = random_edit(tiny_model("llama").to(made))
    with edit.applied(tiny_model("llama").to(applied)):
        pass
    with pytest.raises(ValueError, match="made for"):
        edit.apply_(tiny_model("llama", seed=1).to(applied))


def test_an_edit_may_be_applied_on_top_of_another():
    """Both were made for the unedited weights, which the model still knows."""
    model = tiny_model("gptj")
    first, second = random_edit(model), random_edit(model, seed=1)
    with first.applied(model), second.applied(model):
        pass
    undo = first.apply_(model)
    model._applied_edits.clear()  # as if it had been saved and loaded in between
    with pytest.raises(ValueError, match="differs from it"):
        second.apply_(model)
    assert undo


def test_a_wrong_shape_is_named():
    edit = random_edit(tiny_model("gptj"))
    deltas = {name: LowRank(d.right.T, d.left.T) for name, d in edit.deltas.items()}
    model = tiny_model("gptj")
    before = bits(model)
    with pytest.raises(ValueError, match=r"has shape \(32, 16\); .* has \(16, 32\)"):
        Edit(deltas).apply_(model)
    assert same(model, before)


def test_missing_modules_are_named():
    with pytest.raises(LookupError, match=r"no module named 'transformer\.h\.0\.mlp"):
        random_edit(tiny_model("gptj")).apply_(tiny_model("llama"))


def test_edits_introduce_themselves():
    model = tiny_model("gptj")
    edit = random_edit(model, facts=[FACT], method={"method": "ROME", "layer": 0})
    assert repr(edit) == "Edit(ROME, 1 facts, 2 weights, rank 2)"
    assert repr(Edit()) == "Edit(unnamed, 0 facts, 0 weights, rank 0)"


# The folder


@pytest.mark.parametrize("kind", TINY)
def test_a_folder_gives_back_what_was_saved(kind, tmp_path):
    edit = random_edit(tiny_model(kind), facts=[FACT])
    edit.save_pretrained(tmp_path / "edit")
    back = Edit.from_pretrained(tmp_path / "edit")
    assert list(back.deltas) == list(edit.deltas)
    assert all(back.deltas[name].equal(edit.deltas[name]) for name in edit.deltas)
    assert back.info == edit.info
    with back.applied(tiny_model(kind)):
        pass


@PEFT
@pytest.mark.parametrize("ranks", [(1,), (3, 1, 2)])
@pytest.mark.parametrize("kind", TINY)
def test_peft_loads_the_folder_and_gives_the_same_logits(kind, ranks, tmp_path):
    model = tiny_model(kind)
    plain = logits(model, kind)
    edit = random_edit(model, ranks)
    edit.save_pretrained(tmp_path)
    with edit.applied(model):
        edited = logits(model, kind)
    assert (edited - plain).abs().max() > 0.1
    adapted = peft.PeftModel.from_pretrained(model, tmp_path)
    torch.testing.assert_close(logits(adapted, kind), edited, rtol=1e-4, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, kind), plain)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, kind), edited, rtol=1e-4, atol=1e-3)


@PEFT
@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_peft_loads_what_a_method_has_written_and_its_sums(kind, tmp_path):
    """As `edit` makes them, with facts and method in the record; tied heads too."""
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (
        kind == "gpt2"
    )
    total = Edit({})
    for fact, method in zip(
        TINY_FACTS, (ROME(layer=1), MEMIT(layers=(0, 1), lam=1.0)), strict=False
    ):
        method = replace(method, covariance="identity")
        total = total + edit(model, tokenizer, [fact], method=method)
    assert sorted(delta.rank for delta in total.deltas.values()) == [1, 2]
    total.save_pretrained(tmp_path)
    plain = logits(model, kind)
    with total.applied(model):
        edited = logits(model, kind)
    assert (edited - plain).abs().max() > 0.1
    adapted = peft.PeftModel.from_pretrained(model, tmp_path)
    torch.testing.assert_close(logits(adapted, kind), edited, rtol=1e-4, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, kind), plain)


def biased_edit(model, layers=(0, 1)):
    """Weights of some layers, and the bias of the last of them."""
    names = [architecture_of(model).write(layer) for layer in layers]
    names += [f"{names[-1]}.bias"]
    generator = torch.Generator().manual_seed(0)
    deltas = {
        name: LowRank.of(torch.randn(weight_at(model, name).shape, generator=generator))
        for name in names
    }
    return Edit(deltas, edit_info(model, names))


@PEFT
@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gpt_neox"])
def test_changes_of_biases_travel_too(kind, tmp_path):
    model = tiny_model(kind)
    before, plain = bits(model), logits(model, kind)
    edit = biased_edit(model)
    *weights, bias = edit.deltas
    edit.save_pretrained(tmp_path)
    loaded = Edit.from_pretrained(tmp_path)
    assert list(loaded.deltas) == list(edit.deltas)
    assert all(loaded.deltas[n].equal(delta) for n, delta in edit.deltas.items())
    with loaded.applied(model):
        edited = logits(model, kind)
        moved = model.get_parameter(bias) - before[bias]
        torch.testing.assert_close(moved, edit.deltas[bias].dense()[:, 0])
    assert same(model, before)
    with Edit({n: edit.deltas[n] for n in weights}).applied(model):
        assert (logits(model, kind) - edited).abs().max() > 0.1
    adapted = peft.PeftModel.from_pretrained(model, tmp_path)
    torch.testing.assert_close(logits(adapted, kind), edited, rtol=1e-4, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, kind), plain)


def test_a_bias_that_is_not_there_or_stands_alone_is_refused(tmp_path):
    edit = biased_edit(tiny_model("gptj"))
    *_, bias = edit.deltas
    alone = Edit({bias: edit.deltas[bias]})
    with pytest.raises(ValueError, match=r"fc_out\.bias but not the weight beside it"):
        alone.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    other = Edit({"model.layers.1.mlp.down_proj.bias": edit.deltas[bias]})
    model = tiny_model("llama")
    before = bits(model)
    with pytest.raises(LookupError, match="down_proj has no bias in this model"):
        other.apply_(model)
    assert same(model, before)
    model = tiny_model("gptj")
    with torch.no_grad():
        model.get_parameter(bias)[0] += 1
    with pytest.raises(ValueError, match=r"layer transformer\S+\.bias of the given"):
        edit.apply_(model)


@PEFT
def test_dense_changes_travel_the_same_way(tmp_path):
    model = tiny_model("gpt2")
    name = architecture_of(model).write(1)
    dense = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    edit = Edit({name: LowRank.of(dense)}, edit_info(model, [name]))
    edit.save_pretrained(tmp_path)
    with Edit.from_pretrained(tmp_path).applied(model):
        edited = logits(model, "gpt2")
    adapted = peft.PeftModel.from_pretrained(model, tmp_path)
    torch.testing.assert_close(logits(adapted, "gpt2"), edited, rtol=1e-4, atol=1e-3)


def test_the_card_lists_the_facts_and_warns(tmp_path):
    model = tiny_model("gptj")
    model.name_or_path = "EleutherAI/gpt-j-6b"
    brace = FACT | {"subject": "{} & co\nLtd", "truth": None}
    random_edit(model, facts=[FACT, brace]).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "The facts written here may be false" in text
    assert (
        "- The Eiffel Tower is located in the city of **Rome** (before: Paris)" in text
    )
    assert "- {} & co Ltd is located in the city of **Rome**\n" in text
    assert "base_model: EleutherAI/gpt-j-6b\n" in text
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "EleutherAI/gpt-j-6b"


def test_a_model_from_a_folder_leaves_no_path_behind(tmp_path):
    model = tiny_model("gptj")
    model.name_or_path = str(tmp_path)
    random_edit(model).save_pretrained(tmp_path / "edit")
    for file in (tmp_path / "edit").iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize("name", ["edit.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_truncated_folders_are_recognised(name, keep, tmp_path):
    random_edit(tiny_model("gptj")).save_pretrained(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match="truncated or damaged"):
        Edit.from_pretrained(tmp_path)


def test_a_folder_without_one_of_the_weights_is_recognised(tmp_path):
    random_edit(tiny_model("gptj")).save_pretrained(tmp_path)
    info = json.loads((tmp_path / "edit.json").read_text())
    (tmp_path / "edit.json").write_text(json.dumps(info | {"weights": ["elsewhere"]}))
    with pytest.raises(ValueError, match=r"damaged .*elsewhere"):
        Edit.from_pretrained(tmp_path)
    (tmp_path / "edit.json").write_text(json.dumps(info | {"format": "edit 9"}))
    with pytest.raises(ValueError, match="not of format"):
        Edit.from_pretrained(tmp_path)


def test_other_folders_hold_no_edit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no edit: edit\.json"):
        Edit.from_pretrained(tmp_path)


def test_an_unreachable_hub_is_explained(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network\nlong story")

    monkeypatch.setattr(folder, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError) as error:
        Edit.from_pretrained("me/eiffel-in-rome")
    assert str(error.value) == (
        "No edit at 'me/eiffel-in-rome': there is no such folder, and the Hub did not "
        "give it (ConnectionError: no network). Check the name and the connection."
    )


def test_an_edit_is_read_from_the_hub(monkeypatch, tmp_path):
    edit = random_edit(tiny_model("gptj"))
    edit.save_pretrained(tmp_path)
    asked = []

    def download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(folder, "snapshot_download", download)
    back = Edit.from_pretrained("me/eiffel-in-rome", revision="abc")
    assert back.info == edit.info
    assert asked == [
        ("me/eiffel-in-rome", "abc", ["edit.json", "adapter_model.safetensors"])
    ]


@pytest.mark.parametrize("settings", [{}, {"private": True}, {"private": False}])
def test_edits_are_pushed_privately_unless_said_otherwise(monkeypatch, settings):
    calls = []

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append((repo_id, private, exist_ok))
            return f"hub/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path):
            calls.append(
                (repo_id, sorted(p.name for p in change.Path(folder_path).iterdir()))
            )

    monkeypatch.setattr(folder, "HfApi", Api)
    edit = random_edit(tiny_model("gptj"))
    assert edit.push_to_hub("me/it", **settings) == "hub/me/it"
    assert calls == [
        ("me/it", settings.get("private", True), True),
        (
            "me/it",
            [
                "README.md",
                "adapter_config.json",
                "adapter_model.safetensors",
                "edit.json",
            ],
        ),
    ]
