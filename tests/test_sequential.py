"""AlphaEdit and ENCORE: promises, refusals, and batches that spare one another."""

import json
from dataclasses import replace

import pytest
import torch

from edutools.batch import EMMET, MEMIT
from edutools.change import Edit
from edutools.contexts import Contexts
from edutools.corners import alphaedit_update, null_space_projector
from edutools.facts import Fact
from edutools.keyvalue import ValueSearch, keys
from edutools.method import Method
from edutools.methods import edit
from edutools.moments import load_moments, save_moments, second_moment
from edutools.rome import ROME
from edutools.secondmoment import SecondMoment
from edutools.sequential import ENCORE, AlphaEdit, remember
from edutools.settings import presets
from edutools.testing import (
    TINY,
    TINY_FACTS,
    check_method,
    taught_model,
    tiny_tokenizer,
)

FACTS = list(TINY_FACTS)
MORE = [
    Fact("Marie Curie", "{} was born in", "Rome"),
    Fact("The Colosseum", "{} is located in the city of", "Paris"),
]
GIVEN = Contexts(given=("{}", "It is known. {}", "Therefore I believe. {}"))
SEARCH = ValueSearch(steps=8, contexts=GIVEN)
METHODS = {
    "AlphaEdit": AlphaEdit(
        layers=(0, 1), threshold=1.0, scale="mean", l2=0.01, search=SEARCH
    ),
    "ENCORE": ENCORE(
        layers=(0, 1), lam=0.1, norm=0.01, search=replace(SEARCH, stop="argmax")
    ),
}


@pytest.fixture(scope="module")
def taught():
    model, tokenizer = taught_model("llama"), tiny_tokenizer("llama")
    texts = [fact.text + " " + fact.target for fact in [*FACTS, *MORE]] * 3
    moments = second_moment(model, tokenizer, texts, layers=[0, 1], progress=False)
    return model, tokenizer, moments


def dense(change, layer=1):
    (name,) = [name for name in change.deltas if f".{layer}." in name]
    return change.deltas[name].dense().double()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", TINY)
def test_every_method_keeps_its_promises_on_every_architecture(name, kind):
    check_method(METHODS[name], kinds=[kind])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_settings_survive_json_and_the_paper_is_cited(method):
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    text = method.citation
    assert text.startswith("@")
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("kind", [AlphaEdit, ENCORE])
def test_every_row_of_the_presets_makes_a_method(kind):
    rows = presets()[kind.__name__]
    assert {"gpt2-xl", "llama-2-7b", "pocket-gptj-organism"} <= set(rows)
    for name, row in rows.items():
        method = kind.preset(name)
        assert len(row["source"]) > 20
        assert method.search.steps == row["search"]["steps"]
        assert method.search.stop == ("argmax" if kind is ENCORE else "loss")


def test_published_rows_say_what_was_published():
    alpha = AlphaEdit.preset("gpt2-xl")
    assert (alpha.threshold, alpha.scale, alpha.l2) == (2e-2, "absolute", 10)
    assert alpha.layers == MEMIT.preset("gpt2-xl").layers
    xl, llama = (ENCORE.preset(name) for name in ("gpt2-xl", "llama-2-7b"))
    assert (xl.norm, xl.search.extra_steps, xl.lam) == (10, 3, 20_000)
    assert (llama.norm, llama.search.extra_steps, llama.lam) == (10, 2, 15_000)
    with pytest.raises(ValueError, match="ENCORE has no preset for 'gpt-j-6b'"):
        ENCORE.preset("gpt-j-6b")


def test_alphaedit_writes_in_the_null_space_only(taught):
    model, tokenizer, moments = taught
    method = replace(METHODS["AlphaEdit"], layers=(1,))
    change = edit(model, tokenizer, FACTS, method=method, moments=moments)
    P = method.projector(moments[1])
    assert 0 < P.rank < len(P.basis)
    delta = dense(change)
    torch.testing.assert_close(delta @ P.matrix(), delta, atol=1e-6, rtol=1e-5)
    values, vectors = moments[1].spectrum.values, moments[1].spectrum.vectors
    guarded = vectors[:, values >= values.mean()]
    assert (delta @ guarded).norm() < 1e-5 * delta.norm()
    assert change.info["free"] == {"1": P.rank}


def test_only_layers_that_are_written_need_a_null_space(taught):
    *_, moments = taught
    method = AlphaEdit(layers=(0, 1, 2), distribution="ends", threshold=1e6)
    size = len(moments[0].total)
    assert method.report({0: moments[0], 2: moments[1]}) == {
        "free": {"0": size, "2": size}
    }


def test_encore_without_extras_is_memit(taught):
    model, tokenizer, moments = taught
    options = {"layers": (0, 1), "lam": 0.3, "search": SEARCH}
    one, two = (
        edit(model, tokenizer, FACTS, method=method, moments=moments)
        for method in (ENCORE(norm=0.0, **options), MEMIT(**options))
    )
    for layer in (0, 1):
        torch.testing.assert_close(
            dense(one, layer), dense(two, layer), rtol=1e-4, atol=1e-6
        )


def in_turn(taught, method, *, sparing: bool):
    """Write FACTS, then MORE; the first edit and the second one."""
    model, tokenizer, moments = taught
    method = method.resolved(model, tokenizer)
    first = edit(model, tokenizer, FACTS, method=method, moments=moments)
    with first.applied(model):
        if sparing:
            moments = remember(model, tokenizer, FACTS, method=method, moments=moments)
        return first, edit(model, tokenizer, MORE, method=method, moments=moments)


@pytest.mark.parametrize("name", METHODS)
def test_a_second_batch_spares_the_keys_of_the_first(taught, name):
    model, tokenizer, moments = taught
    method = replace(METHODS[name], layers=(1,))
    K = keys(model, tokenizer, FACTS, 1, contexts=GIVEN)
    moved = {}
    for sparing in (False, True):
        first, second = in_turn(taught, method, sparing=sparing)
        moved[sparing] = float((dense(second) @ K).norm())
    assert moved[True] < 0.8 * moved[False]
    assert second.info["moments"]["1"]["past"] == 3
    assert "past" not in first.info["moments"]["1"]
    with first.applied(model):
        Kp = remember(model, tokenizer, FACTS, method=method, moments=moments)[1].past
    torch.testing.assert_close(Kp, K, atol=1e-5, rtol=1e-4)  # one layer: same keys


def test_the_closed_form_gets_what_was_remembered(taught, monkeypatch):
    """Named by its arguments, so that K_p cannot land elsewhere."""
    model, tokenizer, moments = taught
    seen = {}

    def spy(W, K, V, P, l2, *, past=None):
        seen.update(P=P.matrix(), l2=l2, past=past)
        return alphaedit_update(W, K, V, P, l2, past=past)

    monkeypatch.setattr("edutools.sequential.alphaedit_update", spy)
    method = AlphaEdit(layers=(1,), threshold=0.3, l2=0.7, search=SEARCH)
    K = keys(model, tokenizer, MORE, 1, contexts=GIVEN)
    edit(
        model,
        tokenizer,
        FACTS,
        method=method,
        moments={1: moments[1].remember(K)},
    )
    assert torch.equal(seen["past"], K)
    assert seen["l2"] == 0.7
    wanted = null_space_projector(moments[1].value, 0.3).matrix()
    torch.testing.assert_close(seen["P"], wanted)


def test_results_depend_on_arguments_only(taught):
    """A run in between, with keys of its own, changes nothing."""
    model, tokenizer, moments = taught
    for method in METHODS.values():
        before = edit(model, tokenizer, MORE, method=method, moments=moments)
        in_turn(taught, method, sparing=True)
        after = edit(model, tokenizer, MORE, method=method, moments=moments)
        assert all(after.deltas[k].equal(d) for k, d in before.deltas.items())
    assert moments[1].past is None


def test_what_is_remembered_adds_up_and_keeps_the_factor(taught, tmp_path):
    model, tokenizer, moments = taught
    method = METHODS["ENCORE"]
    factor, found = moments[1].factor, moments[1].spectrum
    once = remember(model, tokenizer, FACTS, method=method, moments=moments)
    twice = remember(model, tokenizer, MORE, method=method, moments=once)
    assert [m[1].past.shape[1] for m in (once, twice)] == [3, 5]
    assert torch.equal(twice[1].past[:, :3], once[1].past)
    assert twice[1].factor is factor
    assert twice[1].spectrum is found
    assert torch.equal(twice[1].value, moments[1].value)
    assert repr(twice[1]).endswith(", 5 earlier keys)")
    save_moments(twice, tmp_path)
    again = load_moments(tmp_path)
    assert torch.equal(again[1].past, twice[1].past)
    assert again[0].info["past"] == 5
    merged = once[1].merge(once[1])
    assert merged.past.shape[1] == 6
    assert merged.count == 2 * moments[1].count
    assert torch.equal(twice[1].to("cpu").past, twice[1].past)
    only = remember(
        model, tokenizer, FACTS, method=replace(method, layers=(1,)), moments=moments
    )
    assert only[0].past is None


def test_methods_that_would_forget_refuse_what_is_remembered(taught):
    model, tokenizer, moments = taught
    past = remember(model, tokenizer, FACTS, method=METHODS["ENCORE"], moments=moments)
    site = replace(SEARCH, site="mlp")
    for method in (
        MEMIT(layers=(0, 1), search=SEARCH),
        EMMET(layers=(0, 1), search=SEARCH),
        ROME(layer=0, search=site),
    ):
        name = type(method).__name__
        message = rf"moments\[0\] remembers 3 earlier keys, which {name} would not"
        with pytest.raises(ValueError, match=message):
            edit(model, tokenizer, MORE[:1], method=method, moments=past)


def never(*_, **__):
    """A search that must not begin."""
    raise RuntimeError("the search has begun")


def test_a_null_space_without_room_is_refused_before_any_search(taught):
    model, tokenizer, moments = taught
    method = AlphaEdit(layers=(1,), threshold=1e-12, search=SEARCH)
    with pytest.raises(ValueError, match=r"AlphaEdit at layer 1 of .*No direction is"):
        edit(model, tokenizer, FACTS, method=method, moments=moments, find=never)


def test_a_null_space_that_is_everything_is_warned_of(taught):
    model, tokenizer, moments = taught
    method = AlphaEdit(layers=(1,), threshold=1e6, l2=0.1, search=SEARCH)
    with pytest.warns(UserWarning, match="AlphaEdit protects nothing at layer 1: all"):
        edit(model, tokenizer, FACTS, method=method, moments=moments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "AlphaEdit", "scale": "max"}, "AlphaEdit.scale is 'max'; choose"),
        ({"method": "AlphaEdit", "l2": 0.0}, "threshold > 0 and l2 > 0; got"),
        ({"method": "AlphaEdit", "threshold": -1.0}, "threshold > 0 and l2 > 0; got"),
        ({"method": "AlphaEdit", "covariance": "identity"}, "choose one of 'moments'"),
        ({"method": "ENCORE", "lam": 0.0}, "ENCORE needs lam > 0 and norm >= 0; got"),
        ({"method": "ENCORE", "norm": -1.0}, "ENCORE needs lam > 0 and norm >= 0"),
        ({"method": "ENCORE", "covariance": "identity"}, "choose one of 'moments'"),
    ],
)
def test_bad_settings_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Method.from_dict(data)


def test_keys_without_a_place_are_refused(taught):
    model, tokenizer, moments = taught
    with pytest.raises(ValueError, match=r"ENCORE edits layers \[0, 1\] but moments"):
        remember(
            model,
            tokenizer,
            FACTS,
            method=METHODS["ENCORE"],
            moments={0: moments[0]},
        )
    with pytest.raises(ValueError, match="Keys of size 3 do not belong to SecondMom"):
        moments[1].remember(torch.zeros(3, 2))


def test_earlier_keys_are_no_part_of_the_mean():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    plain = SecondMoment.empty(4).update(rows[:5])
    late = plain.remember(rows[:2].T).update(rows[5:])
    assert torch.equal(late.value, plain.update(rows[5:]).value)
    assert torch.equal(late.past, rows[:2].T.double())


def test_an_edit_in_two_batches_is_one_edit(taught):
    first, second = in_turn(taught, METHODS["ENCORE"], sparing=True)
    total = Edit() + first + second
    assert total.rank == 5
    assert len(total.info["facts"]) == 5
