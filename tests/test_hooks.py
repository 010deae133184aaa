"""Seeing and changing activations without leaving a trace."""

import pytest
import torch
from torch import nn

from edutools.arch import architecture_of
from edutools.hooks import capture, evaluating, patch
from edutools.prompts import encode
from edutools.testing import TINY, tiny_model

TEXTS = ["The Eiffel Tower is in", "Anna"]


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.modules()
    )


@pytest.fixture
def run(tiny):
    """(model, architecture, inputs) of a kind."""

    def prepared(kind: str = "gpt2"):
        model, tokenizer = tiny(kind)
        return model, architecture_of(model), encode(tokenizer, TEXTS).inputs

    return prepared


@pytest.mark.parametrize("kind", TINY)
def test_capture_sees_the_models_own_hidden_states(run, kind):
    model, arch, inputs = run(kind)
    own = model(**inputs, output_hidden_states=True).hidden_states
    with capture(model, [arch.block(0), arch.block(1)]) as seen:
        model(**inputs)
    assert torch.equal(seen[arch.block(0)], own[1])
    assert torch.equal(seen[arch.block(1)], own[2])
    with capture(model, arch.block(1), inputs=True) as seen:
        model(**inputs)
    assert torch.equal(seen[arch.block(1)], own[1])


@pytest.mark.parametrize("kind", TINY)
def test_a_block_adds_attention_and_mlp_to_its_input(run, kind):
    model, arch, inputs = run(kind)
    names = [arch.attention(1), arch.mlp(1), arch.block(1), arch.block(0)]
    with capture(model, names) as seen:
        model(**inputs)
    attention, mlp, after, before = (seen[name] for name in names)
    torch.testing.assert_close(after, before + attention + mlp, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_the_input_of_write_is_the_key(run, kind):
    model, arch, inputs = run(kind)
    with capture(model, arch.write(1), inputs=True) as seen:
        model(**inputs)
    assert (
        seen[arch.write(1)].shape[-1]
        == model.get_submodule(arch.write(1)).weight.numel() // 16
    )


def test_keyword_inputs_are_seen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(input=x)

    x = torch.randn(2)
    net = Net()
    with capture(net, "inner", inputs=True) as seen:
        net(x)
    assert seen["inner"] is x


def test_stopping_runs_nothing_above(run):
    model, arch, inputs = run()
    ran = []
    handle = model.get_submodule(arch.block(2)).register_forward_hook(
        lambda *_: ran.append(1)
    )
    with capture(model, [arch.block(0), arch.block(1)], stop=True) as seen:
        assert seen.run(**inputs) is None
    stopped = dict(seen)
    assert ran == []
    with capture(model, [arch.block(0), arch.block(1)]) as seen:
        assert seen.run(**inputs).logits.shape[0] == 2
    handle.remove()
    assert ran == [1]
    assert all(torch.equal(stopped[name], seen[name]) for name in seen)
    assert len(stopped) == 2


def test_a_second_run_forgets_the_first(run):
    model, arch, inputs = run()
    with capture(model, [arch.block(0), arch.block(1)], stop=True) as seen:
        seen.run(**inputs)
        seen.run(input_ids=torch.tensor([[5]]))
    assert [tensor.shape for tensor in seen.values()] == [(1, 1, 16)] * 2


def test_stopping_without_run_is_explained_and_cleaned_up(run):
    model, arch, inputs = run()
    before = hooks(model)
    with (
        pytest.raises(RuntimeError, match=r"seen\.run\(\*\*inputs\)"),
        capture(model, arch.block(0), stop=True),
    ):
        model(**inputs)
    assert hooks(model) == before


@pytest.mark.parametrize("kind", TINY)
def test_an_identity_patch_changes_nothing(run, kind):
    model, arch, inputs = run(kind)
    plain = model(**inputs).logits
    names = [arch.block(0), arch.attention(1), arch.mlp(1), arch.write(2)]
    with patch(model, dict.fromkeys(names, lambda h: h)):
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("kind", TINY)
def test_a_patch_flows_on(run, kind):
    """Replacing a block's output by another run's gives that run's logits."""
    model, arch, inputs = run(kind)
    last = arch.block(2)
    others = inputs | {"input_ids": inputs["input_ids"].flip(0).roll(1, 1)}
    with capture(model, last) as seen:
        wanted = model(**others).logits
    assert not torch.allclose(model(**inputs).logits, wanted)
    with patch(model, {last: lambda _: seen[last]}):
        torch.testing.assert_close(model(**inputs).logits, wanted)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
@pytest.mark.parametrize("inside", [True, False])
def test_captures_see_the_patched_value_in_any_nesting(run, kind, inside):
    model, arch, inputs = run(kind)
    model(**inputs, output_hidden_states=True)  # leaves recording hooks behind
    name = arch.block(1)
    change = patch(model, {name: lambda h: 0 * h + 3})
    watch = capture(model, name)
    first, second = (change, watch) if inside else (watch, change)
    with first as a, second as b:
        out = model(**inputs, output_hidden_states=True)
    seen = b if inside else a
    assert bool((seen[name] == 3).all())
    assert bool((out.hidden_states[2] == 3).all())


def test_of_nested_patches_the_inner_one_acts_first():
    net = nn.Sequential(nn.Identity())
    with patch(net, {"0": lambda h: h * 10}), patch(net, {"0": lambda h: h + 1}):
        assert net(torch.ones(1)).item() == 20


@pytest.mark.parametrize("kind", TINY)
def test_a_patched_input_is_what_the_module_reads(run, kind):
    """Setting keys by hand gives the output that the write map computes from them."""
    model, arch, inputs = run(kind)
    name = arch.write(1)
    plain = model(**inputs).logits
    with patch(model, {name: lambda k: k}, inputs=True):
        assert torch.equal(model(**inputs).logits, plain)
    with capture(model, name) as full:
        model(**inputs)
    with patch(model, {name: lambda k: 2 * k}, inputs=True), capture(model, name) as b:
        changed = model(**inputs).logits
    bias = getattr(model.get_submodule(name), "bias", None)
    offset = 0 if bias is None else bias
    torch.testing.assert_close(b[name] - offset, 2 * (full[name] - offset))
    assert not torch.allclose(changed, plain)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_blocks_read_a_patched_input_however_it_is_passed(run, kind):
    model, arch, inputs = run(kind)
    with capture(model, arch.block(1)) as other:
        model(**inputs)
    with (
        patch(model, {arch.block(2): lambda _: other[arch.block(1)] + 1}, inputs=True),
        capture(model, arch.block(1)) as below,
        capture(model, arch.block(2), inputs=True) as seen,
    ):
        model(**inputs)
    assert torch.equal(seen[arch.block(2)], other[arch.block(1)] + 1)
    assert torch.equal(below[arch.block(1)], other[arch.block(1)])


def test_of_nested_input_patches_the_inner_one_acts_first():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(input=x)

    net = Net()
    before = hooks(net)
    with (
        patch(net, {"inner": lambda x: x * 10}, inputs=True),
        patch(net, {"inner": lambda x: x + 1}, inputs=True),
        capture(net, "inner", inputs=True) as seen,
    ):
        assert net(torch.ones(1)).item() == 20
    assert seen["inner"].item() == 20
    assert hooks(net) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h: "text", TypeError, "must return a tensor; got 'text'"),
        (lambda h: h[:1], ValueError, r"shape \(1, .* module's input has \(2, "),
    ],
)
def test_a_wrong_patch_of_an_input_is_named(run, change, error, message):
    model, arch, inputs = run()
    before = hooks(model)
    with (
        pytest.raises(error, match=message),
        patch(model, {arch.mlp(0): change}, inputs=True),
    ):
        model(**inputs)
    assert hooks(model) == before


def test_gradients_flow_through_patch_and_capture(run):
    model, arch, inputs = run("gptj")
    delta = torch.zeros(16, requires_grad=True)
    with (
        patch(model, {arch.mlp(1): lambda h: h + delta}),
        capture(model, arch.block(2)) as seen,
    ):
        model(**inputs)
    seen[arch.block(2)].sum().backward()
    assert delta.grad.abs().sum() > 0
    model.zero_grad()


def test_the_dtype_of_the_output_is_kept():
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2).bfloat16())
    delta = torch.ones(2, requires_grad=True)
    with patch(net, {"0": lambda h: h.float() + delta}):
        out = net(torch.ones(1, 2).bfloat16())
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert delta.grad is not None


class Pair(nn.Module):
    def forward(self, x):
        return x, "rest"


def test_only_the_first_of_several_outputs_is_touched():
    net = nn.Sequential(Pair())
    with patch(net, {"0": lambda h: h + 1}), capture(net, "0") as seen:
        assert net(torch.zeros(1))[1] == "rest"
    assert seen["0"].item() == 1


def test_hooks_are_gone_after_exceptions(run):
    model, arch, inputs = run()
    before = hooks(model)

    def broken(h):
        raise KeyError("mine")

    with (
        pytest.raises(KeyError, match="mine"),
        capture(model, arch.block(0)),
        patch(model, {arch.block(1): broken}),
    ):
        model(**inputs)
    assert hooks(model) == before
    for attempt in (
        lambda: capture(model, [arch.block(0), "nowhere"]),
        lambda: patch(model, {arch.block(0): broken, "nowhere": broken}),
    ):
        with pytest.raises(LookupError, match="no module named 'nowhere'"), attempt():
            pass
        assert hooks(model) == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h: None, TypeError, "must return a tensor; got None"),
        (lambda h: h[:1], ValueError, r"returned shape \(1, .*has \(2, "),
    ],
)
def test_a_wrong_patch_is_named(run, change, error, message):
    model, arch, inputs = run()
    with pytest.raises(error, match=message), patch(model, {arch.mlp(0): change}):
        model(**inputs)


def test_modules_without_a_tensor_are_named(run):
    model, _, inputs = run()
    with pytest.raises(TypeError, match="returns a"), capture(model, ""):
        model(**inputs)
    net = nn.Sequential(Pair())
    with (
        pytest.raises(TypeError, match="without a tensor"),
        capture(net, "0", inputs=True),
    ):
        net("text")


def test_evaluating_gives_every_module_its_mode_back():
    model = tiny_model("gpt2").train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    inside = []

    def broken():
        inside.extend(module.training for module in model.modules())
        raise KeyError

    with pytest.raises(KeyError), evaluating(model):
        broken()
    assert not any(inside)
    assert [module.training for module in model.modules()] == modes
