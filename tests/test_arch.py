"""Names of modules, orientation of weights, and models that are refused."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from edutools.arch import (
    TABLE,
    UnknownArchitecture,
    architecture_of,
    check_layer,
    n_layers,
    oriented,
    submodule,
)
from edutools.provenance import fingerprint, fingerprints, provenance
from edutools.testing import TINY, tiny_model, tiny_tokenizer

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def small(kind: str, **settings):
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **SMALL, **settings)
    )


def test_every_row_of_the_table_has_a_tiny_model():
    assert sorted(TINY) == sorted(TABLE)


@pytest.mark.parametrize("kind", TINY)
def test_the_named_modules_are_what_they_are_called(tiny, kind):
    model, _ = tiny(kind)
    arch = architecture_of(model)
    blocks = submodule(model, arch.blocks)
    assert n_layers(model) == len(blocks) == 3
    for layer in range(3):
        block = submodule(model, arch.block(layer))
        assert block is blocks[layer]
        for name in (arch.mlp(layer), arch.attention(layer), arch.write(layer)):
            assert submodule(model, name) in block.modules()
        assert (
            "attention"
            in type(submodule(model, arch.attention(layer))).__name__.lower()
        )
        assert "mlp" in type(submodule(model, arch.mlp(layer))).__name__.lower()
    assert submodule(model, arch.embedding) is model.get_input_embeddings()
    assert submodule(model, arch.head) is model.get_output_embeddings()
    assert "norm" in type(submodule(model, arch.final_norm)).__name__.lower()


@pytest.mark.parametrize("kind", TINY)
def test_write_is_the_last_step_of_the_mlp(tiny, kind):
    """Feeding the MLP's input through it, the write map's output is the MLP's."""
    model, _ = tiny(kind)
    arch = architecture_of(model)
    seen = []
    handle = submodule(model, arch.write(1)).register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    output = submodule(model, arch.mlp(1))(torch.randn(1, 3, 16))
    handle.remove()
    torch.testing.assert_close(output, seen[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", TINY)
def test_the_oriented_weight_maps_keys_to_values(tiny, kind):
    model, _ = tiny(kind)
    module = submodule(model, architecture_of(model).write(0))
    W = oriented(module)
    k = torch.randn(5, W.shape[1])
    bias = module.bias if module.bias is not None else 0
    torch.testing.assert_close(module(k), k @ W.T + bias)
    assert W.shape[0] == model.config.hidden_size


def test_only_the_class_decides_the_orientation_of_a_square_weight():
    linear, conv = nn.Linear(3, 3), Conv1D(3, 3)
    assert torch.equal(oriented(linear), linear.weight)
    assert torch.equal(oriented(conv), conv.weight.T)


def test_the_oriented_weight_is_a_view_without_gradient():
    conv = Conv1D(3, 2)
    W = oriented(conv)
    W[2, 1] = 7
    assert conv.weight[1, 2] == 7
    assert not W.requires_grad


def test_modules_without_an_editable_weight_are_refused():
    with pytest.raises(TypeError, match="got a LayerNorm"):
        oriented(nn.LayerNorm(3))
    linear = nn.Linear(2, 2)
    linear.weight = nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), False)
    with pytest.raises(UnknownArchitecture, match="quantized"):
        oriented(linear)


def test_parallel_blocks_are_known():
    parallel = {kind for kind in TINY if architecture_of(tiny_model(kind)).parallel}
    assert parallel == {"gptj", "gpt_neox"}
    serial = tiny_model("gpt_neox")
    serial.config.use_parallel_residual = False
    assert not architecture_of(serial).parallel


def test_an_unknown_family_gets_a_suggestion(tiny):
    model = tiny_model("llama")
    model.config.model_type = "llama4"
    with pytest.raises(UnknownArchitecture) as error:
        architecture_of(model)
    text = str(error.value)
    assert "No architecture row for model_type 'llama4'. Did you mean 'llama'?" in text
    assert "Known: gpt2, gpt_neox, gptj, llama, mistral, qwen2, qwen3." in text
    assert "model.architecture = Architecture(...)" in text


def test_a_model_can_carry_its_own_names():
    model = tiny_model("llama")
    model.config.model_type = "somebody's"
    model.architecture = TABLE["llama"]
    assert architecture_of(model).write(2) == "model.layers.2.mlp.down_proj"
    model.architecture = TABLE["gpt2"]
    with pytest.raises(UnknownArchitecture, match=r"no module named 'transformer\.h"):
        architecture_of(model)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "glm4", "olmo2"])
def test_a_norm_behind_the_mlp_is_refused_whatever_the_names(kind, named):
    model = small(kind)
    if named:
        model.architecture = TABLE["llama"]
    with pytest.raises(UnknownArchitecture, match="norm between MLP and residual"):
        architecture_of(model)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        ("mixtral", "num_local_experts"),
        ("qwen2_moe", "num_experts"),
        ("deepseek_v3", "n_routed_experts"),
    ],
)
def test_a_mixture_of_experts_is_refused(kind, experts, named):
    model = small(kind, **{experts: 2})
    if named:
        model.architecture = TABLE["llama"]
    with pytest.raises(UnknownArchitecture, match="mixture of experts"):
        architecture_of(model)


def test_models_that_say_they_are_quantized_are_refused():
    model = tiny_model("llama")
    model.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(UnknownArchitecture, match="model has quantized weights"):
        architecture_of(model)


class Packed(nn.Module):
    """As GPTQ and AWQ keep a linear map: integers in a buffer, and scales."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        shape = linear.in_features // 8, linear.out_features
        self.register_buffer("qweight", torch.zeros(*shape, dtype=torch.int32))


class Behind(nn.Module):
    """As torch's own quantized modules: the weight is unpacked by a method."""

    def __init__(self, linear: nn.Linear):
        super().__init__()

    def weight(self):
        raise NotImplementedError


def stored(dtype, shape):
    """As bitsandbytes and FP8 keep it: a Linear whose weight is of another type."""

    def of(linear: nn.Linear) -> nn.Linear:
        weight = torch.zeros(shape or linear.weight.shape).to(dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return linear

    return of


@pytest.mark.parametrize(
    "quantize",
    [
        pytest.param(stored(torch.uint8, (192, 1)), id="4 bit"),
        pytest.param(stored(torch.int8, None), id="8 bit"),
        pytest.param(stored(torch.float8_e4m3fn, None), id="fp8"),
        pytest.param(Packed, id="packed"),
        pytest.param(Behind, id="behind a method"),
    ],
)
def test_quantized_weights_are_refused_by_what_they_are(quantize):
    """Also if the configuration does not tell."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = quantize(layer.mlp.down_proj)
    with pytest.raises(UnknownArchitecture, match=r"The weight is quantized \("):
        architecture_of(model)


def test_models_wrapped_by_peft_are_refused():
    model = tiny_model("llama")
    model.peft_config = {}
    with pytest.raises(UnknownArchitecture, match="merge_and_unload"):
        architecture_of(model)


def test_something_else_than_a_model_is_refused():
    with pytest.raises((UnknownArchitecture, TypeError), match="Linear"):
        architecture_of(nn.Linear(2, 2))


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_are_checked(tiny, layer):
    model, _ = tiny("gpt2")
    assert check_layer(model, 2) == 2
    with pytest.raises(ValueError, match=rf"no layer {layer}\. Choose one of 0 to 2"):
        check_layer(model, layer)


@pytest.mark.parametrize("layer", [1.0, "1", True, None])
def test_layers_are_whole_numbers(tiny, layer):
    with pytest.raises(TypeError, match="layer"):
        check_layer(tiny("gpt2")[0], layer)


def test_a_wrong_module_name_gets_a_suggestion(tiny):
    with pytest.raises(LookupError, match=r"Did you mean 'transformer\.h\.1\.mlp'"):
        submodule(tiny("gpt2")[0], "transformer.h.1.mpl")


def test_fingerprints_tell_weights_apart_but_not_precisions():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    assert fingerprint(weight) == fingerprint(weight.clone())
    assert fingerprint(weight) == fingerprint(weight.bfloat16())
    assert fingerprint(weight) != fingerprint(weight.half())
    assert set(fingerprints(weight)) & set(fingerprints(weight.half()))
    assert not set(fingerprints(weight)) & set(fingerprints(weight.T))
    assert fingerprint(weight) != fingerprint(weight.T)
    changed = weight.clone()
    changed[7, 3] += 1
    assert fingerprint(weight) != fingerprint(changed)


def test_of_large_weights_every_column_is_sampled():
    weight = torch.zeros(3 * 2**10, 2**10)
    for column in (0, 1, 2, 1023):
        changed = weight.clone()
        changed[:, column] = 1
        assert fingerprint(weight) != fingerprint(changed)


def test_provenance_keeps_folder_names_but_no_paths(tmp_path):
    model = tiny_model("gptj")
    assert provenance(model)["model"] == ""
    model.name_or_path = str(tmp_path)
    found = provenance(model)
    assert found["model"] == tmp_path.name
    assert (found["model_type"], found["dtype"]) == ("gptj", "float32")
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    model.name_or_path = "EleutherAI/gpt-j-6b"
    assert provenance(model)["model"] == "EleutherAI/gpt-j-6b"


def test_tiny_models_are_reproducible_and_leave_the_seed_alone():
    state = torch.random.get_rng_state()
    first, second = tiny_model("gptj"), tiny_model("gptj")
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    other = tiny_model("gptj", seed=1)
    assert not torch.equal(other.lm_head.weight, first.lm_head.weight)
    assert not first.training


@pytest.mark.parametrize("make", [tiny_model, tiny_tokenizer])
def test_unknown_tiny_kinds_are_refused(make):
    with pytest.raises(ValueError, match=r"'bert'. Known: gpt2, gptj"):
        make("bert")
