"""Second moments: what counts, what does not, and where they come from."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from edutools.arch import architecture_of
from edutools.hooks import capture
from edutools.moments import (
    SecondMoment,
    check_moments,
    identity_moment,
    load_moments,
    save_moments,
    second_moment,
)
from edutools.prompts import encode
from edutools.testing import TINY, tiny_model, tiny_tokenizer

TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Rome",
    "Anna Karenina lives in Moscow and speaks Russian.",
    "",
    "It is known that the capital of France is Paris.",
]


def keys(size: int = 30, d_in: int = 5, seed: int = 0):
    return torch.randn(size, d_in, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(0, 30), max_size=4))
def test_the_split_into_batches_does_not_matter(cuts):
    k = keys()
    direct = k.double().T @ k.double() / len(k)
    moment = SecondMoment.empty(5)
    for part in torch.tensor_split(k, sorted(cuts)):
        moment = moment.update(part)
    assert moment.count == 30
    torch.testing.assert_close(moment.value, direct, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 30))
def test_merged_halves_are_the_whole(cut):
    k = keys()
    halves = [SecondMoment.empty(5).update(part) for part in (k[:cut], k[cut:])]
    whole = SecondMoment.empty(5).update(k)
    merged = halves[0].merge(halves[1])
    assert merged.count == whole.count
    torch.testing.assert_close(merged.value, whole.value, rtol=1e-6, atol=1e-6)


def test_masked_keys_do_not_count_whatever_they_hold():
    k = keys(12).reshape(3, 4, 5)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    k[mask == 0] = float("nan")
    moment = SecondMoment.empty(5).update(k, mask)
    counted = SecondMoment.empty(5).update(k[mask == 1])
    assert moment.count == 8
    assert torch.equal(moment.total, counted.total)


def test_updating_leaves_the_old_value_alone():
    moment = SecondMoment.empty(5).update(keys())
    before = moment.total.clone()
    moment.update(keys(seed=1))
    assert torch.equal(moment.total, before)
    assert moment.count == 30


def test_sums_are_kept_in_float64():
    moment = SecondMoment.empty(1).update(torch.full((1, 1), 2.0**14))
    for _ in range(10):
        moment = moment.update(torch.ones(1, 1))
    assert float(moment.total) == 2.0**28 + 10  # float32 would have lost the tens


def test_half_precision_keys_are_multiplied_in_float32():
    k = torch.full((1, 1), 300.0).half()  # its square overflows float16
    assert float(SecondMoment.empty(1).update(k).value) == 90000


def test_an_empty_moment_has_no_value():
    with pytest.raises(ValueError, match="counts no tokens"):
        _ = SecondMoment.empty(3).value


def test_the_factor_is_computed_once_and_names_the_layer():
    moment = SecondMoment.empty(5).update(keys())
    torch.testing.assert_close(moment.factor.matrix(), moment.value)
    assert moment.factor is moment.factor
    flat = keys(4) * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])  # nothing in one direction
    few = SecondMoment.empty(5, {"layer": 3, "model": "toy"}).update(flat)
    with pytest.raises(ValueError, match="layer 3 of 'toy' is not positive definite"):
        _ = few.factor


@pytest.mark.parametrize(
    "other",
    [
        SecondMoment.empty(4, {"layer": 1}),
        SecondMoment.empty(5, {"layer": 2}),
        SecondMoment.empty(5, {"layer": 1, "embedding": "abc"}),
    ],
)
def test_moments_of_different_keys_are_not_merged(other):
    with pytest.raises(ValueError, match="cannot be merged"):
        SecondMoment.empty(5, {"layer": 1}).merge(other)


@pytest.mark.parametrize("kind", TINY)
def test_a_model_is_measured_text_by_text(tiny, kind):
    """The reference: one text at a time, no padding, the whole forward pass."""
    model, tokenizer = tiny(kind)
    arch = architecture_of(model)
    found = second_moment(model, tokenizer, TEXTS, layers=(0, 2), batch_tokens=40)
    texts = [text for text in TEXTS if tokenizer(text).input_ids]
    for layer, moment in found.items():
        name = arch.write(layer)
        rows = []
        for text in texts:
            with capture(model, name, inputs=True) as seen, torch.no_grad():
                model(**encode(tokenizer, [text]).inputs)
            rows.append(seen[name][0].double())
        k = torch.cat(rows)
        assert moment.count == len(k)
        assert (len(texts) == len(TEXTS)) == (kind in ("llama", "mistral"))  # BOS
        torch.testing.assert_close(moment.value, k.T @ k / len(k), rtol=1e-4, atol=1e-6)
        assert moment.info["layer"] == layer


def test_one_layer_gives_one_moment_and_stops_there(tiny):
    model, tokenizer = tiny("gptj")
    ran = []
    handle = model.transformer.h[1].register_forward_hook(lambda *_: ran.append(1))
    moment = second_moment(model, tokenizer, TEXTS, layer=0)
    assert ran == []
    both = second_moment(model, tokenizer, TEXTS, layers=[0, 1])
    handle.remove()
    assert ran == []  # layer 1 ends at its MLP, before the block is done
    assert torch.equal(moment.total, both[0].total)


def test_texts_are_cut_off_at_the_context(tiny):
    model, tokenizer = tiny("gpt2")
    long = "Paris " * 100
    assert len(tokenizer(long, verbose=False).input_ids) > 64
    moment = second_moment(model, tokenizer, iter([long, "Rome"]), layer=0)
    assert moment.count == 64 + len(tokenizer("Rome").input_ids)


@pytest.mark.parametrize("world", [2, 3, 9])
def test_shards_are_merged_into_the_whole(tiny, world):
    model, tokenizer = tiny("llama")
    whole = second_moment(model, tokenizer, TEXTS, layer=1)
    parts = [
        second_moment(model, tokenizer, iter(TEXTS), layer=1, shard=(rank, world))
        for rank in range(world)
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.count == whole.count
    assert sum(part.count == 0 for part in parts) == max(0, world - len(TEXTS))
    torch.testing.assert_close(merged.total, whole.total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_shards_that_do_not_exist_are_refused(tiny, shard):
    with pytest.raises(ValueError, match="there is none of rank"):
        second_moment(*tiny("gpt2"), TEXTS, layer=0, shard=shard)


def test_measuring_switches_dropout_off_and_on_again():
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    tokenizer = tiny_tokenizer("gpt2")
    quiet = second_moment(model, tokenizer, TEXTS, layer=1)
    model.train()
    assert torch.equal(
        second_moment(model, tokenizer, TEXTS, layer=1).total, quiet.total
    )
    assert all(module.training for module in model.modules())


def test_the_origin_is_recorded(tiny):
    model, tokenizer = tiny("gptj")
    info = second_moment(model, tokenizer, TEXTS, layer=1, dataset="five texts").info
    assert info["module"] == "transformer.h.1.mlp.fc_out"
    assert info["dataset"] == "five texts"
    assert info["model_type"] == "gptj"
    assert info["dtype"] == "float32"
    assert info["tokenizer"].endswith(f"of {len(tokenizer)} tokens")
    json.dumps(dict(info))


def test_either_one_layer_or_several(tiny):
    for settings in ({}, {"layer": 0, "layers": [0]}):
        with pytest.raises(ValueError, match="Give either layer=17 or layers="):
            second_moment(*tiny("gpt2"), TEXTS, **settings)
    with pytest.raises(ValueError, match="layers is empty"):
        second_moment(*tiny("gpt2"), TEXTS, layers=[])


def test_layers_that_do_not_exist_are_refused(tiny):
    with pytest.raises(ValueError, match="no layer 3"):
        second_moment(*tiny("gpt2"), TEXTS, layer=3)


def test_texts_without_tokens_are_refused(tiny):
    for texts in ([], ["", ""]):
        with pytest.raises(ValueError, match="no tokens"):
            second_moment(*tiny("gpt2"), texts, layer=0)
    with pytest.raises(TypeError, match="several texts, not one"):
        second_moment(*tiny("gpt2"), "Paris", layer=0)


@pytest.fixture
def measured(tiny):
    """A moment that fits layer 1 of the tiny GPT-2."""
    model, tokenizer = tiny("gpt2")
    return second_moment(model, tokenizer, TEXTS * 2, layer=1, dataset="five texts")


def test_a_file_gives_back_what_was_saved(measured, tmp_path):
    path = tmp_path / "new" / "moment.safetensors"
    measured.save(path)
    back = SecondMoment.load(path)
    assert torch.equal(back.total, measured.total)
    assert (back.count, back.info) == (measured.count, measured.info)
    assert [file.name for file in path.parent.iterdir()] == ["moment.safetensors"]
    measured.save(path, dtype=torch.float32)
    half = SecondMoment.load(path)
    assert half.total.dtype == torch.float64
    torch.testing.assert_close(half.total, measured.total, rtol=1e-6, atol=0)


def test_a_folder_holds_several_layers(tiny, tmp_path):
    model, tokenizer = tiny("llama")
    moments = second_moment(model, tokenizer, TEXTS, layers=(2, 0))
    save_moments(moments, tmp_path)
    back = load_moments(tmp_path)
    assert list(back) == [0, 2]
    assert all(torch.equal(back[key].total, moments[key].total) for key in back)
    with pytest.raises(FileNotFoundError, match="No second moments in"):
        load_moments(tmp_path / "elsewhere")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_recognised(measured, tmp_path, keep):
    path = tmp_path / "moment.safetensors"
    measured.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"moment\.safetensors .* is truncated"):
        SecondMoment.load(path)


def test_other_files_are_no_moments(tmp_path):
    path = tmp_path / "other.safetensors"
    for tensors in ({"total": torch.zeros(2, 2)}, {"weight": torch.zeros(2, 2)}):
        save_file(tensors, path)
        with pytest.raises(ValueError, match="is not a second moment"):
            SecondMoment.load(path)
    save_file(
        {"total": torch.zeros(2, 2)}, path, {"format": "edutools second moment 9"}
    )
    with pytest.raises(ValueError, match="second moment 9"):
        SecondMoment.load(path)
    with pytest.raises(FileNotFoundError, match="Measure one with second_moment"):
        SecondMoment.load(tmp_path / "none.safetensors")


def test_fitting_moments_pass(tiny, measured):
    model, tokenizer = tiny("gpt2")
    check_moments(model, {1: measured}, [1])
    moments = second_moment(model, tokenizer, TEXTS * 2, layers=[0, 1])
    check_moments(model, moments, [0, 1])


@pytest.mark.parametrize("known", [True, False])
def test_moments_fit_the_model_in_any_precision(measured, known):
    """Older files hold one fingerprint; for bfloat16 it is enough."""
    check_moments(tiny_model("gpt2").bfloat16(), {1: measured}, [1])
    half = tiny_model("gpt2").half()
    info = {k: v for k, v in measured.info.items() if known or "float16" not in k}
    if known:
        check_moments(half, {1: replace(measured, info=info)}, [1])
    else:
        with pytest.raises(ValueError, match="token embedding differs"):
            check_moments(half, {1: replace(measured, info=info)}, [1])
    with pytest.raises(ValueError, match="token embedding differs"):
        check_moments(tiny_model("gpt2", seed=1).half(), {1: measured}, [1])
    on_half = second_moment(half, tiny_tokenizer("gpt2"), TEXTS * 2, layer=1)
    check_moments(tiny_model("gpt2"), {1: on_half}, [1])


def test_moments_measured_before_an_edit_still_fit(measured):
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight += 1
    check_moments(model, {1: measured}, [1])


def test_missing_moments_are_named_with_the_call_that_makes_them(tiny, measured):
    model, _ = tiny("gpt2")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_moments(model, {1: measured}, [1, 2], method="MEMIT")
    assert str(error.value) == (
        "MEMIT edits layers [1, 2] but moments has none for [2]. Compute it with "
        "second_moment(model, tokenizer, texts, layer=2)."
    )
    with pytest.raises(ValueError, match=r"none for \[0, 2\].*layers=\[0, 2\]"):
        check_moments(model, None, [0, 2])


def test_moments_of_another_size_are_refused(tiny, measured):
    model, _ = tiny("llama")
    with pytest.raises(ValueError, match=r"32 x 32, measured on .* keys of size 24"):
        check_moments(model, {1: measured}, [1])


def test_moments_of_another_model_are_refused(measured):
    with pytest.raises(ValueError, match="token embedding differs"):
        check_moments(tiny_model("gpt2", seed=1), {1: measured}, [1])


def test_moments_of_another_layer_are_refused(tiny, measured):
    with pytest.raises(ValueError, match=r"moments\[0\] was measured at layer 1"):
        check_moments(tiny("gpt2")[0], {0: measured}, [0])


def test_too_few_tokens_are_refused(tiny, measured):
    few = replace(measured, count=31)
    with pytest.raises(ValueError, match="counts 31 tokens for keys of size 32"):
        check_moments(tiny("gpt2")[0], {1: few}, [1])
    check_moments(tiny("gpt2")[0], {1: replace(measured, count=32)}, [1])


def test_the_identity_must_be_asked_for_and_fits(tiny):
    model, _ = tiny("gptj")
    moment = identity_moment(model, 2)
    assert torch.equal(moment.value, torch.eye(32, dtype=torch.float64))
    assert moment.info["dataset"] == "none (identity)"
    check_moments(model, {2: moment}, [2])
    with pytest.raises(ValueError, match="no layer 9"):
        identity_moment(model, 9)


def test_moments_introduce_themselves(measured):
    assert repr(measured).startswith(f"SecondMoment(32 x 32, {measured.count} tokens, ")
