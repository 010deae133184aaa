"""Running the upper blocks again: bit for bit what a whole pass computes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from edutools.arch import architecture_of, n_layers
from edutools.hooks import capture, patch
from edutools.prompts import encode
from edutools.resume import record
from edutools.scoring import run
from edutools.testing import TINY, tiny_model, tiny_tokenizer

TEXTS = (
    "Anna Karenina lives in",
    "The Eiffel Tower is located in the city of",
    "Zoë Ångström",
)


def recorded(model, batch, layer, *, every=False):
    """What a whole pass recorded, and its states after the last block."""
    last = architecture_of(model).block(n_layers(model) - 1)
    with torch.no_grad(), record(model, layer, every=every) as above:
        with capture(model, last, stop=True) as seen:
            run(seen, model, batch.ids, batch.mask)
    return above, seen[last]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TINY)
def test_a_resumed_pass_is_the_whole_one_bit_for_bit(tiny, kind, dtype):
    model, tokenizer = tiny(kind)
    model = copy.deepcopy(model).to(dtype)
    batch = encode(tokenizer, TEXTS)  # rows of different lengths
    above, whole = recorded(model, batch, 0, every=True)
    assert sorted(above.states) == [0, 1, 2]
    for layer in range(3):
        with torch.no_grad():
            again = above.run(above.states[layer], layer)
        assert torch.equal(again, whole)
    assert torch.equal(above.run(whole, 3), whole)  # no block is left
    with torch.no_grad():
        below = above.run(above.states[0], 0, end=2)
    assert torch.equal(below, above.states[2])


@pytest.mark.parametrize("kind", TINY)
def test_rows_can_be_picked_and_repeated(tiny, kind):
    model, tokenizer = tiny(kind)
    above, whole = recorded(model, encode(tokenizer, TEXTS), 1)
    assert list(above.states) == [1]
    rows = torch.tensor([2, 0, 2, 1, 1])
    with torch.no_grad():
        again = above.run(above.states[1][rows], 1, rows=rows)
    torch.testing.assert_close(again, whole[rows], atol=1e-6, rtol=1e-5)
    above, whole = recorded(model, encode(tokenizer, TEXTS[:1]), 1)
    with torch.no_grad():
        again = above.run(above.states[1].repeat(3, 1, 1), 1, rows=0 * rows[:3])
    torch.testing.assert_close(again, whole.repeat(3, 1, 1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_each_block_keeps_its_own_mask(kind):
    """A window of two tokens in the upper layers makes the masks differ."""
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    batch = encode(tokenizer, TEXTS)
    _, full = recorded(model, batch, 1)
    model.config.sliding_window = 2
    if kind != "mistral":
        model.config.layer_types = ["full_attention"] + ["sliding_attention"] * 2
        model.model.has_sliding_layers = True
    above, whole = recorded(model, batch, 1)
    assert not torch.allclose(full, whole)
    with torch.no_grad():
        assert torch.equal(above.run(above.states[1], 1), whole)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_kinds_of_attention(attention):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    model.set_attn_implementation(attention)
    for texts in (TEXTS, TEXTS[:1] * 2):  # with padding and without
        above, whole = recorded(model, encode(tokenizer, texts), 1)
        with torch.no_grad():
            assert torch.equal(above.run(above.states[1], 1), whole)


@pytest.mark.parametrize("kind", TINY)
def test_patches_act_and_gradients_flow(tiny, kind):
    model, tokenizer = tiny(kind)
    batch = encode(tokenizer, TEXTS)
    above, _ = recorded(model, batch, 1)
    place = architecture_of(model)
    shift = torch.full((16,), 0.1, requires_grad=True)
    changes = {place.mlp(1): lambda h: h + shift, place.block(2): torch.tanh}
    inside = {place.attention(2): lambda h: 2 * h}
    with patch(model, changes), patch(model, inside, inputs=True):
        with capture(model, place.block(2), stop=True) as seen:
            run(seen, model, batch.ids, batch.mask)
        again = above.run(above.states[1], 1)
    assert torch.equal(again, seen[place.block(2)])
    (one,) = torch.autograd.grad(again.sum(), shift)
    (two,) = torch.autograd.grad(seen[place.block(2)].sum(), shift)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_a_patch_around_the_recording_acts_once(tiny):
    """Also when it changes what the lowest block reads."""
    model, tokenizer = tiny("gpt2")
    batch, name = encode(tokenizer, TEXTS), architecture_of(model).block(1)
    with patch(model, {name: lambda h: 2 * h}, inputs=True):
        above, whole = recorded(model, batch, 1)
        with torch.no_grad():
            assert torch.equal(above.run(above.states[1], 1), whole)
    with torch.no_grad():  # gone, it acts no more
        _, plain = recorded(model, batch, 1)
        assert torch.equal(above.run(above.states[1], 1), plain)


def test_weights_that_are_loaded_for_each_call_stay_where_they_are(tiny):
    accelerate = pytest.importorskip("accelerate")
    model, tokenizer = tiny("llama")
    batch = encode(tokenizer, TEXTS)
    _, whole = recorded(model, batch, 1)
    spread = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    block = spread.model.layers[1]
    assert next(block.parameters()).is_meta
    with torch.no_grad(), record(spread, 1) as above:
        spread(**batch.inputs, use_cache=False)
    with torch.no_grad():
        assert torch.equal(above.run(above.states[1], 1), whole)


def test_only_one_state_is_kept_and_no_other_layer_s(tiny):
    """The memory is that of one block's input, however many blocks are above it."""
    model, tokenizer = tiny("llama")
    above, _ = recorded(model, encode(tokenizer, TEXTS), 0)
    states = [
        value
        for given, _ in above.calls.values()
        for value in given.values()
        if isinstance(value, torch.Tensor) and value.shape == above.states[0].shape
    ]
    assert states == []
    assert len(above.states) == 1


def test_recording_leaves_no_hook(tiny):
    model, tokenizer = tiny("gptj")
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    recorded(model, encode(tokenizer, TEXTS), 1)
    with pytest.raises(ValueError, match="no layer 3"), record(model, 3):
        pass
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]


def test_a_pass_that_was_cut_short_cannot_be_resumed(tiny):
    model, tokenizer = tiny("gptj")
    batch, place = encode(tokenizer, TEXTS), architecture_of(model)
    with record(model, 1) as above:
        with pytest.raises(RuntimeError, match="No forward pass has reached the last"):
            above.run(torch.zeros(1, 2, 16), 1)
        with capture(model, place.block(1), stop=True) as seen:
            run(seen, model, batch.ids, batch.mask)
    with pytest.raises(RuntimeError, match="No forward pass has reached the last"):
        above.run(above.states[1], 1)
    with pytest.raises(ValueError, match="Layer 0 lies below layer 1"):
        above.run(above.states[1], 0)


def test_what_stands_between_blocks_is_noticed(tiny):
    """Here a block that the architecture does not list."""
    model, tokenizer = copy.deepcopy(tiny("gptj")[0]), tiny("gptj")[1]
    blocks = model.transformer.h
    model.transformer.some = nn.ModuleList([blocks[0], blocks[2]])
    model.architecture = replace(architecture_of(model), blocks="transformer.some")
    with pytest.raises(RuntimeError, match=r"'transformer.some.1' does not receive"):
        recorded(model, encode(tokenizer, TEXTS), 0)
