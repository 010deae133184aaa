"""MEND: gradients in factors, editors that start as the identity, training, editing."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import edutools as edu
from edutools import mendfit
from edutools.contract import check_contract
from edutools.editornet import Editor, LowRankStack, RunningNorm
from edutools.editors import Editors, mlp_maps
from edutools.factors import Factors, adding, gradient_factors, mean_nll
from edutools.facts import Case, Fact
from edutools.mend import MEND, Training
from edutools.mendfit import draw_batch, edit_loss
from edutools.mendloop import CHECKPOINT, train_editors
from edutools.mendplan import editor_size
from edutools.prompts import fill
from edutools.provenance import fingerprint
from edutools.rows import answer_rows
from edutools.scoring import answer_logits, score
from edutools.testing import TINY, TINY_FACTS, taught_model, tiny_model, tiny_tokenizer

PEOPLE = ("Anna", "Marie", "Zoë", "Eiffel", "Rome", "France", "Moscow", "Warsaw")
PLACES = ("Paris", "Rome", "Moscow", "Warsaw")


def case(i: int, subject: str) -> Case:
    target, truth = PLACES[i % 4], PLACES[(i + 1) % 4]
    return Case(
        Fact(subject, "{} lives in", target, truth),
        paraphrases=(f"The city of {subject} is", f"It is known that {subject} is in"),
        neighborhood=("Anna Karenina lives in", "Marie Curie was born in"),
    )


CASES = [case(i, name) for i, name in enumerate(PEOPLE)]
HELD_OUT = [case(i, f"The {name}") for i, name in enumerate(PEOPLE)]
QUICK = Training(
    steps=8, edits=2, rephrasings=1, neighbors=1, lr=1e-3, lr_alpha=1e-3, every=4
)
SMALL = MEND(layers=(0, 1), rank=4, alpha=1e-2)


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model("gpt2"), tiny_tokenizer("gpt2")


def rows_of(tokenizer, facts=TINY_FACTS):
    return answer_rows(tokenizer, [f.text for f in facts], [f.target for f in facts])


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_factors_multiply_to_the_gradient(kind, reduction):
    model, rows = tiny_model(kind), rows_of(tiny_tokenizer(kind))
    names = [name for layer in range(3) for name in mlp_maps(model, layer)]
    found = gradient_factors(model, rows, names, reduction=reduction)
    nll = mean_nll(answer_logits(model, rows), rows)
    counts = rows.valid.sum(1)
    loss = nll.sum() if reduction == "sum" else (nll * counts).sum() / counts.sum()
    for name in names:
        weight = model.get_submodule(name).weight
        (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
        expected = expected.T if kind == "gpt2" else expected
        torch.testing.assert_close(
            found[name].gradient(), expected, rtol=1e-4, atol=1e-6
        )


def test_factors_leave_the_model_as_it_was(gpt2):
    model, tokenizer = gpt2
    names = mlp_maps(model, 1)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    model.train()
    gradient_factors(model, rows_of(tokenizer), names)
    assert model.training
    model.eval()
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_padding_contributes_nothing(gpt2):
    model, tokenizer = gpt2
    rows = rows_of(tokenizer)
    found = gradient_factors(model, rows, mlp_maps(model, 0))
    for factors in found.values():
        assert not factors.keep[rows.mask == 0].any()


def test_unknown_reduction_is_refused(gpt2):
    model, tokenizer = gpt2
    with pytest.raises(ValueError, match="choose 'sum' or 'mean'"):
        gradient_factors(model, rows_of(tokenizer), [], reduction="max")


def test_running_norm_equals_the_statistics_of_all_tokens():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    norm = RunningNorm(3)
    for part in x.split([1, 20, 0, 29]):
        norm.observe(part)
    torch.testing.assert_close(norm.mean, x.mean(0))
    torch.testing.assert_close(norm.deviation, x.std(0))
    torch.testing.assert_close(norm(x).mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_a_new_norm_divides_by_one():
    norm = RunningNorm(2)
    norm.observe(torch.ones(1, 2))
    assert torch.equal(norm.deviation, torch.ones(2))


def test_a_stack_starts_as_the_identity_and_can_learn():
    stack = LowRankStack(
        6, 2, modes=2, blocks=2, generator=torch.Generator().manual_seed(0)
    )
    x = torch.randn(5, 6)
    out = stack(x, 1)
    assert torch.equal(out, x)
    out.sum().backward()
    assert all(bool((U.grad != 0).any()) for U in stack.U)
    assert not bool((stack.scale[0].grad[0] != 0).any())  # mode 0 was not used


def test_modes_share_the_network_but_not_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    stack = LowRankStack(4, 2, modes=2, blocks=1, generator=generator)
    with torch.no_grad():
        stack.U[0].normal_(generator=generator)
        stack.shift[0][1] = 3.0
    x = torch.randn(3, 4, generator=generator)
    mixed = (x @ stack.V[0].T) @ stack.U[0].T
    torch.testing.assert_close(stack(x, 0), x + mixed.clamp(min=0))
    torch.testing.assert_close(stack(x, 1), x + (mixed + 3).clamp(min=0))


@pytest.mark.parametrize("combine", [True, False])
def test_an_editor_keeps_the_sizes(combine):
    editor = Editor(3, 5, rank=2, modes=1, combine=combine, generator=torch.Generator())
    u, d = torch.randn(4, 3), torch.randn(4, 5)
    editor.observe(u, d)
    new_u, new_d = editor(u, d, 0)
    torch.testing.assert_close(new_u, editor.norms[0](u))
    torch.testing.assert_close(new_d, editor.norms[1](d))


@pytest.mark.parametrize("kind", TINY)
def test_untrained_and_unnormalized_it_is_a_step_of_gradient_descent(kind):
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    mend = MEND(layers=(1,), rank=2, alpha=0.25, normalize=False).start(model)
    change = edu.edit(model, tokenizer, TINY_FACTS, method=mend)
    found = gradient_factors(model, rows_of(tokenizer), mlp_maps(model, 1))
    for name, delta in change.deltas.items():
        expected = -0.25 * found[name].gradient()
        torch.testing.assert_close(delta.dense(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", TINY)
def test_it_keeps_every_promise(kind):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    mend = MEND(layers=(0, 1, 2), rank=2, alpha=1e-3, normalize=False).start(model)
    check_contract(mend, model, tokenizer, TINY_FACTS, {})


def test_facts_are_written_as_if_alone_or_by_their_mean(gpt2):
    model, tokenizer = gpt2
    mend = MEND(layers=(1,), rank=2, normalize=False).start(model)
    each = edu.edit_each(model, tokenizer, TINY_FACTS, method=mend)
    both = edu.edit(model, tokenizer, TINY_FACTS, method=mend)
    mean = edu.edit(
        model, tokenizer, TINY_FACTS, method=replace(mend, reduction="mean")
    )
    counts = rows_of(tokenizer).valid.sum(1)
    for name in both.deltas:
        alone = [change.deltas[name].dense() for change in each]
        torch.testing.assert_close(
            both.deltas[name].dense(), sum(alone), rtol=1e-4, atol=1e-8
        )
        weighted = sum(d * n for d, n in zip(alone, counts, strict=True))
        torch.testing.assert_close(
            mean.deltas[name].dense(), weighted / counts.sum(), rtol=1e-4, atol=1e-8
        )


def test_the_subject_alone_can_be_asked_to_count(gpt2):
    model, tokenizer = gpt2
    mend = MEND(layers=(1,), rank=2, normalize=False, tokens="subject").start(model)
    change = edu.edit(model, tokenizer, TINY_FACTS, method=mend)
    found = gradient_factors(model, rows_of(tokenizer), mlp_maps(model, 1))
    last = [fill(fact).span(tokenizer)[1] - 1 for fact in TINY_FACTS]
    for name, delta in change.deltas.items():
        assert delta.rank == len(TINY_FACTS)
        u = torch.stack([found[name].u[i, at] for i, at in enumerate(last)])
        d = torch.stack([found[name].d[i, at] for i, at in enumerate(last)])
        torch.testing.assert_close(
            delta.dense(), -mend.alpha * d.T @ u, rtol=1e-4, atol=1e-9
        )


def test_many_tokens_give_a_change_of_full_rank_and_no_more(gpt2):
    model, tokenizer = gpt2
    mend = MEND(layers=(1,), rank=2, normalize=False).start(model)
    change = edu.edit(model, tokenizer, TINY_FACTS * 3, method=mend)
    assert max(delta.rank for delta in change.deltas.values()) == 16


def test_every_group_of_rows_sees_its_own_change():
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 4, 3, generator=generator)
    b = torch.randn(2, 4, 2, generator=generator)
    x = torch.randn(6, 5, 3, generator=generator)
    with adding(net, {"0": (a, b)}):
        seen = net(x)
    for group in range(2):
        weight = net[0].weight + b[group].T @ a[group]
        rows = slice(3 * group, 3 * group + 3)
        torch.testing.assert_close(seen[rows], x[rows] @ weight.T)
    assert not net[0]._forward_hooks
    order = torch.tensor([5, 0, 3, 1])
    with adding(net, {"0": (a, b)}, groups=order // 3):
        torch.testing.assert_close(net(x[order]), seen[order])


def test_the_loss_of_a_group_is_that_of_the_edited_model(gpt2):
    model, tokenizer = gpt2
    training = replace(QUICK, edits=2, together=2, rephrasings=2, neighbors=2)
    batch = draw_batch(tokenizer, CASES, training, seed="x")
    mend = SMALL.start(model)
    mend.editors.observe(gradient_factors(model, batch.edits, mend.editors.names))
    parts = edit_loss(model, mend.editors, batch, learn=False)
    factors = gradient_factors(model, batch.edits, mend.editors.names)
    change = edu.Edit({n: mend.editors.change(n, f) for n, f in factors.items()})
    before = answer_logits(model, batch.judged).log_softmax(-1)
    with change.applied(model):
        after = answer_logits(model, batch.judged).log_softmax(-1)
    valid = batch.judged.valid
    nll = mean_nll(after, batch.judged)[:4].mean()
    kl = (before.exp() * (before - after)).sum(-1)[4:] * valid[4:]
    torch.testing.assert_close(parts["edit"], nll)
    torch.testing.assert_close(
        parts["locality"], (kl.sum(1) / valid[4:].sum(1)).mean(), rtol=1e-3, atol=1e-5
    )


def test_two_passes_give_the_loss_of_one_and_run_less_padding(gpt2, monkeypatch):
    model, tokenizer = gpt2
    training = replace(QUICK, edits=4, rephrasings=2, neighbors=3)
    batch = draw_batch(tokenizer, CASES, training, seed="x")
    parts = mendfit._of_like_length(batch.judged)
    shapes = [batch.judged.pick(part).ids.shape for part in parts]
    assert len(parts) == 2
    assert sum(n * width for n, width in shapes) < batch.judged.ids.numel()
    found = []
    for split in (parts, [torch.arange(len(batch.judged.ids))]):
        monkeypatch.setattr(mendfit, "_of_like_length", lambda _, split=split: split)
        editors = SMALL.start(model).editors
        losses = edit_loss(model, editors, batch, learn=True)
        (losses["edit"] + losses["locality"]).backward()
        found.append([*losses.values(), *(p.grad for p in editors.parameters())])
    for value, wanted in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)


def test_without_neighbors_there_is_no_locality_loss(gpt2):
    model, tokenizer = gpt2
    batch = draw_batch(tokenizer, CASES, replace(QUICK, neighbors=0), seed="x")
    parts = edit_loss(model, SMALL.start(model).editors, batch, learn=True)
    assert float(parts["locality"].detach()) == 0


def test_batches_depend_on_the_seed_only(gpt2):
    _, tokenizer = gpt2
    one, same, other = (
        draw_batch(tokenizer, CASES, QUICK, seed=seed) for seed in ("1", "1", "2")
    )
    assert torch.equal(one.judged.ids, same.judged.ids)
    assert one.judged.ids.shape != other.judged.ids.shape or not torch.equal(
        one.judged.ids, other.judged.ids
    )


def fitted(model, tokenizer, **options):
    settings = {"held_out": HELD_OUT, "training": QUICK, "progress": False} | options
    return SMALL.fit(model, tokenizer, CASES, **settings)


def weights(mend):
    return mend.editors.state_dict()


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_training_lowers_the_held_out_loss_and_leaves_the_model_alone():
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = replace(QUICK, steps=40, edits=4, every=10, lr=3e-3, lr_alpha=3e-3)
    mend = fitted(model, tokenizer, training=replace(training, c_edit=1.0))
    assert equal(before, model.state_dict())
    history = mend.record["history"]
    assert [entry["step"] for entry in history] == [10, 20, 30, 40]
    assert history[-1]["held_out_edit"] < history[0]["held_out_edit"] - 0.3
    fact = HELD_OUT[0].fact
    change = edu.edit(model, tokenizer, [fact], method=mend)
    start = score(model, tokenizer, [fact.text], [fact.target]).joint
    with change.applied(model):
        after = score(model, tokenizer, [fact.text], [fact.target]).joint
    assert bool(after > start + 0.5)


def test_a_killed_training_goes_on_to_the_same_result(gpt2, tmp_path, monkeypatch):
    model, tokenizer = gpt2
    whole = fitted(model, tokenizer, checkpoint=tmp_path / "whole")
    calls = []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > 11:  # 4 steps, 4 held-out batches, 3 steps more
            raise KeyboardInterrupt
        return edit_loss(*args, **kwargs)

    monkeypatch.setattr("edutools.mendloop.edit_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(model, tokenizer, checkpoint=tmp_path / "cut")
    monkeypatch.setattr("edutools.mendloop.edit_loss", edit_loss)
    resumed = fitted(model, tokenizer, checkpoint=tmp_path / "cut")
    assert equal(weights(whole), weights(resumed))
    assert whole.record["history"] == resumed.record["history"]


def test_a_checkpoint_of_another_training_is_refused(gpt2, tmp_path):
    model, tokenizer = gpt2
    fitted(model, tokenizer, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="belongs to a training with other cases"):
        fitted(model, tokenizer, checkpoint=tmp_path, training=replace(QUICK, lr=1e-4))
    (tmp_path / CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is damaged"):
        fitted(model, tokenizer, checkpoint=tmp_path)


def test_training_stops_when_held_out_edits_get_no_better(gpt2):
    model, tokenizer = gpt2
    training = replace(QUICK, steps=50, every=1, patience=3, lr=1e-12, lr_alpha=1e-12)
    mend = fitted(model, tokenizer, training=training)
    assert len(mend.record["history"]) < 50


def test_a_loss_that_is_no_number_ends_the_training(gpt2, monkeypatch):
    model, tokenizer = gpt2

    def broken(*args, **kwargs):
        nan = torch.tensor(torch.nan)
        return {"edit": nan, "locality": nan}

    monkeypatch.setattr("edutools.mendloop.edit_loss", broken)
    with pytest.raises(RuntimeError, match=r"Lower Training\.lr"):
        fitted(model, tokenizer)


def test_too_few_cases_and_shared_subjects_are_refused(gpt2):
    model, tokenizer = gpt2
    with pytest.raises(ValueError, match="held_out has 2 subjects"):
        fitted(model, tokenizer, held_out=HELD_OUT[:2])
    with pytest.raises(ValueError, match="'Anna' and 7 more subjects"):
        fitted(model, tokenizer, held_out=CASES)


def test_a_plan_counts_every_learned_value(gpt2):
    model, _ = gpt2
    for options in ({}, {"combine": False}, {"shared": False}, {"blocks": 1}):
        mend = replace(SMALL, **options).start(model)
        shapes = list(mend.editors.shapes.values())
        counted = sum(p.numel() for p in mend.editors.parameters())
        assert editor_size(shapes, **mend._networks()) == counted
        assert mend.plan(model).parts["editor networks"] == 4 * counted


def test_the_plan_is_shown_before_training(gpt2, capsys):
    model, tokenizer = gpt2
    fitted(model, tokenizer, training=replace(QUICK, steps=1), progress=True)
    shown = capsys.readouterr()
    assert "editor networks" in shown.err
    assert shown.out == ""


def test_a_plan_needs_no_weights():
    with torch.device("meta"):
        model = tiny_model("gpt2")
    assert SMALL.plan(model).total > 0


def test_saved_and_loaded_it_edits_alike(gpt2, tmp_path):
    model, tokenizer = gpt2
    mend = fitted(model, tokenizer)
    mend.save_pretrained(tmp_path)
    again = MEND.from_pretrained(tmp_path)
    assert again == mend
    assert again.record == json.loads(json.dumps(mend.record))
    first = edu.edit(model, tokenizer, TINY_FACTS[:1], method=mend)
    second = edu.edit(model, tokenizer, TINY_FACTS[:1], method=again)
    assert all(first.deltas[n].equal(second.deltas[n]) for n in first.deltas)
    assert first.info["editors"] == second.info["editors"]
    assert "fit no other model" in (tmp_path / "README.md").read_text()


def test_what_is_not_trained_cannot_edit_or_be_saved(gpt2, tmp_path):
    model, tokenizer = gpt2
    with pytest.raises(ValueError, match="no trained networks"):
        edu.edit(model, tokenizer, TINY_FACTS, method=SMALL)
    with pytest.raises(ValueError, match="no networks to save"):
        SMALL.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_another_model_is_refused(gpt2):
    model, tokenizer = gpt2
    mend = SMALL.start(tiny_model("gpt2", seed=1))
    with pytest.raises(ValueError, match="another token embedding"):
        edu.edit(model, tokenizer, TINY_FACTS, method=mend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_edits_the_model_in_half_precision_too(gpt2, dtype):
    model, tokenizer = gpt2
    mend = SMALL.start(model)
    full = edu.edit(model, tokenizer, TINY_FACTS[:1], method=mend)
    half = copy.deepcopy(model).to(dtype)
    change = edu.edit(half, tokenizer, TINY_FACTS[:1], method=mend)
    for name, delta in change.deltas.items():
        near = full.deltas[name].dense()
        far = (delta.dense() - near).norm() / near.norm()
        assert float(far) < 0.1
    other = tiny_model("gpt2", seed=1).to(dtype)
    with pytest.raises(ValueError, match="another token embedding"):
        edu.edit(other, tokenizer, TINY_FACTS[:1], method=mend)


def test_one_fingerprint_of_an_older_folder_is_enough_where_it_was_made(gpt2):
    model, tokenizer = gpt2
    mend = SMALL.start(model)
    known = fingerprint(model.transformer.wte.weight)
    older = replace(mend, record={**mend.record, "embedding": known})
    for dtype in (torch.float32, torch.bfloat16):
        same = copy.deepcopy(model).to(dtype)
        edu.edit(same, tokenizer, TINY_FACTS[:1], method=older)
    with pytest.raises(ValueError, match="another token embedding"):
        edu.edit(copy.deepcopy(model).half(), tokenizer, TINY_FACTS[:1], method=older)


def test_it_edits_a_model_that_was_edited_before(gpt2):
    model, tokenizer = gpt2
    mend = SMALL.start(model)
    first = edu.edit(model, tokenizer, TINY_FACTS[:1], method=mend)
    with first.applied(model):
        second = edu.edit(model, tokenizer, TINY_FACTS[1:2], method=mend)
        with second.applied(model):
            pass


def test_damaged_and_missing_folders_are_refused(gpt2, tmp_path):
    model, _ = gpt2
    SMALL.start(model).save_pretrained(tmp_path)
    weights_file = tmp_path / "editors.safetensors"
    tensors = load_file(weights_file)
    del tensors["alpha"]
    save_file(tensors, weights_file)
    with pytest.raises(ValueError, match="damaged or not complete"):
        MEND.from_pretrained(tmp_path)
    (tmp_path / "mend.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="its format is 'other'"):
        MEND.from_pretrained(tmp_path)
    weights_file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no MEND"):
        MEND.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"layers": (1, 1)}, "each once"),
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"reduction": "max"}, "choose one of 'sum', 'mean'"),
        ({"tokens": "last"}, "choose one of 'all', 'subject'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"lr": 0.0}, "must be positive"),
        ({"neighbors": -1}, "neighbors >= 0"),
        ({"edits": 3, "together": 2}, "a multiple of"),
    ],
)
def test_impossible_trainings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **settings)


def test_a_missing_layer_is_refused(gpt2):
    model, _ = gpt2
    with pytest.raises(ValueError, match="3"):
        replace(SMALL, layers=(3,)).start(model)


def test_settings_survive_json():
    text = json.dumps(SMALL.to_dict())
    assert edu.method.Method.from_dict(json.loads(text)) == SMALL


def test_an_unknown_weight_is_named(gpt2):
    model, _ = gpt2
    editors = Editors.of(model, (0,), rank=1)
    factors = Factors(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    with pytest.raises(LookupError, match="No editor for 'nothing'"):
        editors.transform({"nothing": factors})


def test_weights_that_share_an_editor_go_through_it_together(gpt2):
    model, tokenizer = gpt2
    batch = draw_batch(tokenizer, CASES, QUICK, seed="x")
    for shared in (True, False):
        editors = Editors.of(model, (0, 1), rank=2, shared=shared)
        with torch.no_grad():
            for value in editors.parameters():
                value += 0.1 * torch.randn_like(value)
        factors = gradient_factors(model, batch.edits, editors.names)
        editors.observe(factors)
        together = editors.transform(factors)
        assert list(together) == editors.names
        for name, found in factors.items():
            alone = editors.transform({name: found})[name]
            torch.testing.assert_close(together[name].u, alone.u)
            torch.testing.assert_close(together[name].d, alone.d)
            assert not together[name].u[~found.keep].any()


def test_training_starts_from_what_it_is_given(gpt2):
    model, tokenizer = gpt2
    editors = Editors.of(model, (0, 1), rank=2)
    before = {name: value.clone() for name, value in editors.state_dict().items()}
    train_editors(
        editors,
        model,
        tokenizer,
        CASES,
        held_out=HELD_OUT,
        training=QUICK,
        progress=False,
    )
    assert equal(before, editors.state_dict())
