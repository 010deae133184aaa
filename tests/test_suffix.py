"""Running only what a change can reach gives what whole rows give."""

import copy
from dataclasses import replace

import pytest
import torch

from edutools import suffix
from edutools.arch import architecture_of
from edutools.capacity import facts_per_pass, kept_bytes
from edutools.contexts import Contexts
from edutools.hooks import capture, frozen, patch
from edutools.keyvalue import ValueSearch
from edutools.objective import Objective
from edutools.prompts import encode
from edutools.resume import record
from edutools.rows import SearchRows
from edutools.scoring import run
from edutools.search import target_states
from edutools.suffix import record_tail
from edutools.testing import (
    TINY,
    TINY_FACTS,
    taught_model,
    tiny_model,
    tiny_tokenizer,
)

LAYER = 1  # of three
LEFT = torch.tensor([2, 5, 3])  # tokens from the changed one on, of each row
TEXTS = (
    "The Eiffel Tower is located in the city of",
    "Anna Karenina lives in",
    "Zoë Ångström is a",
)
GIVEN = Contexts(given=("{}", "It is known. {}", "Therefore I believe. {}"))
SEARCH = ValueSearch(steps=6, contexts=GIVEN, clamp=2.0)


def recorded(model, batch, changed, **more):
    """Both records of one pass, and what the pass itself gives."""
    last = architecture_of(model).block(2)
    with torch.no_grad():
        with record(model, LAYER) as above, capture(model, last) as seen:
            model(**batch.inputs, use_cache=False, **more)
            whole = seen[last]
        with record_tail(model, LAYER, changed=changed, mask=batch.mask) as tail:
            with capture(model, last) as seen:
                model(**batch.inputs, use_cache=False, **more)
    assert torch.equal(seen[last], whole)  # keeping keys and values changes nothing
    return above, tail


def states(model, above, starts, batch, changed, shift, *, rows=None):
    """States of all tokens from the changed one on, with a shift added there."""
    rows = torch.arange(len(changed)) if rows is None else rows
    here = torch.arange(len(rows)), (changed - starts)[rows]

    def add(h):
        return h.index_put(here, h[here] + shift.to(h.dtype))

    with patch(model, {architecture_of(model).block(LAYER): add}):
        after = above.run(above.states[LAYER][rows], LAYER, rows=rows)
    ends = batch.mask.sum(1)
    return torch.cat(
        [
            h[changed[r] - starts[r] : ends[r] - starts[r]]
            for h, r in zip(after, rows.tolist(), strict=True)
        ]
    )


def compared(model, batch, changed, tolerance, *, rows=None):
    """Whole rows and windows give the same states and the same gradient."""
    above, tail = recorded(model, batch, changed)
    assert not tail.whole
    found = []
    for which, starts in ((above, torch.zeros_like(changed)), (tail, tail.starts)):
        shift = torch.full((16,), 0.5, requires_grad=True)
        with frozen(model):
            after = states(model, which, starts, batch, changed, shift, rows=rows)
        weights = torch.linspace(-1, 1, after.numel()).view(after.shape)
        found.append([after, *torch.autograd.grad((after * weights).sum(), shift)])
    for wanted, got in zip(*found, strict=True):
        assert (got - wanted).norm() < tolerance * wanted.norm()
    return found[0][0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", TINY)
def test_windows_give_what_whole_rows_give(kind, attention):
    if (kind, attention) == ("gptj", "sdpa"):
        pytest.skip("not offered by transformers")
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    model.set_attn_implementation(attention)
    for texts in (TEXTS, TEXTS[:1] * 3):  # with padding and, for sdpa no mask, without
        batch = encode(tokenizer, texts)
        changed = batch.mask.sum(1) - LEFT
        compared(model, batch, changed, 1e-5)
        compared(model, batch, changed, 1e-5, rows=torch.tensor([2, 0, 2]))
    compared(model.to(torch.bfloat16), batch, changed, 2e-2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_sliding_windows_of_attention_are_kept(kind, attention):
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    model.set_attn_implementation(attention)
    batch = encode(tokenizer, TEXTS)
    changed = batch.mask.sum(1) - LEFT
    wide = compared(model, batch, changed, 1e-5)
    model.config.sliding_window = 2
    if kind != "mistral":
        model.config.layer_types = ["full_attention"] * 2 + ["sliding_attention"]
        model.model.has_sliding_layers = True
    assert not torch.allclose(compared(model, batch, changed, 1e-5), wide)


@pytest.fixture
def llama():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    batch = encode(tokenizer, TEXTS)
    return model, batch, batch.mask.sum(1) - LEFT


def test_windows_have_one_width_and_hold_what_can_change(llama):
    model, batch, changed = llama
    _, tail = recorded(model, batch, changed)
    assert tail.width == 5
    assert (tail.starts <= changed).all()
    ends = tail.starts + tail.width
    assert (ends >= batch.mask.sum(1)).all()
    assert (ends <= batch.mask.shape[1]).all()
    assert tail.states[LAYER].shape == (3, 5, 16)
    before = int(tail.starts.max())
    assert [kept.shape for kept in tail.kept()] == [(3, 1, before, 8)] * 4


@pytest.mark.parametrize("kind", TINY)
def test_one_record_serves_changes_at_any_token(kind):
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    batch, shift = encode(tokenizer, TEXTS[:1] * 3), torch.full((16,), 0.5)
    tokens = batch.mask.shape[1]
    last = torch.full((3,), tokens - 1)
    above, _ = recorded(model, batch, last)
    with torch.no_grad():
        with record_tail(model, 0, changed=last, mask=batch.mask, every=True) as tail:
            model(**batch.inputs, use_cache=False)
        assert sorted(tail.states) == [0, 1, 2]
        for token in (0, 2, tokens - 1):
            part, changed = tail.at(token), torch.full((3,), token)
            assert part.width == tokens - token
            part.states = {LAYER: part.states[LAYER][:, token:]}
            wanted = states(model, above, 0 * changed, batch, changed, shift)
            found = states(model, part, part.starts, batch, changed, shift)
            assert (found - wanted).norm() < 1e-5 * wanted.norm()
    with pytest.raises(ValueError, match=f"first {tokens - 1} tokens; got token"):
        tail.at(tokens)


def test_only_windows_are_run(monkeypatch):
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    widths = []
    block, forward = model.transformer.h[2], model.transformer.h[2].forward

    def spy(h, *args, **kwargs):
        widths.append(h.shape[1])
        return forward(h, *args, **kwargs)

    monkeypatch.setattr(block, "forward", spy)
    spy.__wrapped__ = forward  # as accelerate wraps it
    target_states(model, tokenizer, TINY_FACTS, LAYER, search=SEARCH)
    rows = SearchRows.of(tokenizer, TINY_FACTS, GIVEN.given, essence="end")
    left = int((rows.mask.sum(2) - rows.subject).max())
    assert widths == [rows.ids.shape[2]] + [left] * 6
    assert 2 * left < rows.ids.shape[2]


def as_whole(model, batch, changed, **more):
    """The tail runs whole rows, with the bits of any other record."""
    above, tail = recorded(model, batch, changed, **more)
    assert tail.whole
    assert not tail.starts.any()
    assert list(tail.kept()) == []
    shift = torch.full((16,), 0.5)
    with torch.no_grad():
        wanted = states(model, above, tail.starts, batch, changed, shift)
        assert torch.equal(
            states(model, tail, tail.starts, batch, changed, shift), wanted
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TABLE", {}),  # a family that nobody has looked at
        ("ATTENTIONS", ()),
        ("CACHES", ()),  # blocks that take no cache
        ("Kept.update", None),  # blocks that take one and use it otherwise
    ],
)
def test_whole_rows_are_run_where_windows_are_not_safe(llama, monkeypatch, name, value):
    if value is None:
        monkeypatch.setattr(suffix.Kept, "update", lambda _, k, v, *_args: (k, v))
    else:
        monkeypatch.setattr(suffix, name, value)
    as_whole(*llama)


@pytest.mark.parametrize(
    "extra", [torch.ones(3, 1), [torch.ones(1)], torch.nn.Identity()]
)
def test_whole_rows_are_run_if_blocks_are_given_something_unknown(llama, extra):
    as_whole(*llama, something=extra)


def test_whole_rows_are_run_without_a_mask_that_says_who_sees_whom(llama, monkeypatch):
    """In 'eager' attention no mask means that all see all."""
    model, batch, changed = llama
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.create_causal_mask",
        lambda **_: None,
    )
    as_whole(model, batch, changed)


def test_whole_rows_are_run_if_the_first_token_changes(llama):
    model, batch, changed = llama
    longest = int(batch.mask.sum(1).argmax())
    as_whole(model, batch, changed.index_fill(0, torch.tensor([longest]), 0))


def test_hooks_see_every_token(llama):
    model, batch, changed = llama
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hook = getattr(model.model.layers[2].mlp.up_proj, register)(lambda *_: None)
        as_whole(model, batch, changed)
        hook.remove()
    below = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not recorded(model, batch, changed)[1].whole
    below.remove()


def test_hooks_of_transformers_only_look(llama):
    model, batch, changed = llama
    model(**batch.inputs, output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.model.layers.modules())
    assert not recorded(model, batch, changed)[1].whole


def test_weights_that_are_loaded_for_each_call(llama):
    accelerate = pytest.importorskip("accelerate")
    model, batch, changed = llama
    away = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    tails = [recorded(model, batch, changed)[1]]
    with torch.no_grad():
        with record_tail(away, LAYER, changed=changed, mask=batch.mask) as tail:
            away(**batch.inputs, use_cache=False)
        tails.append(tail)
        assert not tail.whole
        first, second = (t.run(t.begin(torch.arange(3)), LAYER) for t in tails)
    assert torch.equal(first, second)


def test_a_pass_that_was_cut_short_cannot_be_run(llama):
    model, batch, changed = llama
    with record_tail(model, LAYER, changed=changed, mask=batch.mask) as tail:
        name = architecture_of(model).block(LAYER)
        with capture(model, name, stop=True) as seen, torch.no_grad():
            run(seen, model, batch.ids, batch.mask)
    with pytest.raises(RuntimeError, match="No forward pass has reached the last"):
        tail.run(tail.begin(torch.arange(3)), LAYER)


@pytest.mark.parametrize("essence", ["end", "subject"])
@pytest.mark.parametrize("kind", TINY)
def test_the_value_search_finds_the_same_values(kind, essence, monkeypatch):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    search = replace(SEARCH, essence=essence, site="mlp", stop_loss=0.0)
    found = target_states(model, tokenizer, TINY_FACTS, LAYER, search=search)
    monkeypatch.setattr(suffix, "TABLE", {})
    whole = target_states(model, tokenizer, TINY_FACTS, LAYER, search=search)
    assert torch.equal(found.initial, whole.initial)
    error = (found.values - whole.values).norm(dim=0) / whole.values.norm(dim=0)
    assert error.max() < 1e-5
    for name, history in whole.history.items():
        torch.testing.assert_close(
            found.history[name], history, rtol=1e-3, atol=1e-5, equal_nan=True
        )


def test_what_is_not_run_needs_no_memory_for_gradients(monkeypatch):
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    rows = SearchRows.of(tokenizer, TINY_FACTS[:1], GIVEN.given, essence="end")
    objective = Objective.at(model, LAYER, SEARCH)
    left = int((rows.mask.sum(2) - rows.subject).max())
    assert facts_per_pass(objective, rows) == 2048 // (4 * left)
    with frozen(model):
        need = sum(kept_bytes(objective, rows).values())
        monkeypatch.setattr(suffix.Tail, "kept", lambda _: iter(()))
        kept = need - sum(kept_bytes(objective, rows).values())
    before = rows.ids.shape[2] - left
    assert 0 < kept <= 2 * 2 * 4 * before * 16 * 4  # pairs · blocks · rows, in bytes
    monkeypatch.setattr(suffix, "TABLE", {})
    assert facts_per_pass(objective, rows) == 2048 // rows.ids.numel()
    with frozen(model):
        whole = sum(kept_bytes(objective, rows).values())
    assert need < 0.75 * whole
