"""Methods and `edit`: settings, refusals, and the promises of every method."""

import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from edutools.arch import architecture_of, oriented, submodule
from edutools.batch import EMMET, MEMIT
from edutools.change import Edit
from edutools.contexts import BARE, Contexts
from edutools.facts import Fact
from edutools.keyvalue import ValueSearch, keys
from edutools.method import Method
from edutools.methods import edit, edit_each
from edutools.moments import identity_moment, second_moment
from edutools.rome import ROME
from edutools.scoring import score
from edutools.settings import preset_row, presets, read, write
from edutools.solve import LowRank
from edutools.testing import (
    TINY,
    TINY_FACTS,
    check_method,
    taught_model,
    tiny_tokenizer,
)

FACTS = list(TINY_FACTS)
GIVEN = Contexts(given=("{}", "It is known. {}", "Therefore I believe. {}"))
SEARCH = ValueSearch(steps=8, contexts=GIVEN)
AT_MLP = ValueSearch(steps=8, contexts=GIVEN, site="mlp", clamp=4.0)
METHODS = {
    "ROME": ROME(layer=1, search=AT_MLP),
    "ROME mixed": ROME(layer=1, key="mixed", search=AT_MLP),
    "ROME prompt": ROME(layer=0, key="prompt", search=AT_MLP),
    "ROME identity": ROME(layer=1, covariance="identity", search=AT_MLP),
    "MEMIT": MEMIT(layers=(0, 1), lam=0.1, search=SEARCH),
    "MEMIT sqrt": MEMIT(layers=(0, 1), lam=0.1, distribution="sqrt", search=SEARCH),
    "EMMET": EMMET(layers=(1,), search=SEARCH),
    "EMMET ridge": EMMET(layers=(0, 1), ridge=0.1, weight=0.5, search=SEARCH),
    "EMMET ends": EMMET(layers=(0, 1), distribution="ends", search=SEARCH),
}


@pytest.fixture(scope="module")
def taught():
    model, tokenizer = taught_model("llama"), tiny_tokenizer("llama")
    texts = [fact.text + " " + fact.target for fact in FACTS] * 3
    moments = second_moment(model, tokenizer, texts, layers=[0, 1], progress=False)
    return model, tokenizer, moments


def dense(change, layer=1):
    (name,) = [name for name in change.deltas if f".{layer}." in name]
    return change.deltas[name].dense().double()


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "EMMET"])
@pytest.mark.parametrize("kind", TINY)
def test_every_method_keeps_its_promises_on_every_architecture(name, kind):
    check_method(METHODS[name], kinds=[kind])


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"ROME", "MEMIT", "EMMET"}))
def test_every_variant_keeps_its_promises(name):
    check_method(METHODS[name], kinds=["gptj"])


@dataclass(frozen=True, kw_only=True)
class Broken(Method):
    """A method whose promise to break is its only setting."""

    layers: tuple[int, ...] = (1,)
    covariance: str = "moments"
    fault: str = ""
    calls: ClassVar[list[int]] = []

    def compute(self, model, tokenizer, facts, moments):
        name = architecture_of(model).write(1)
        weight = oriented(submodule(model, name))
        left = torch.ones(weight.shape[0], 1)
        if self.fault == "changes the model":
            weight += 1
        if self.fault == "is random":
            self.calls.append(1)
            left = left * len(self.calls)
        if self.fault in ("hopes", "fears"):  # one is against the fact, whichever
            signs = torch.arange(len(left))[:, None] % 2 * 2.0 - 1
            left = signs if self.fault == "hopes" else -signs
        if self.fault == "writes nothing":
            return Edit({})
        return Edit({name: LowRank(1e-3 * left, torch.ones(1, weight.shape[1]))})

    def check(self, model, tokenizer, facts, moments):
        if self.fault != "needs no moments":
            super().check(model, tokenizer, facts, moments)


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("changes the model", "`edit` leaves the model as it was, bit for bit"),
        ("is random", "the same call gives the same edit"),
        ("writes nothing", "`edit` changes at least one weight"),
    ],
)
def test_a_broken_promise_is_named(fault, promise):
    with pytest.raises(AssertionError, match=f"On 'gptj': Broken promise: {promise}"):
        check_method(Broken(fault=fault), kinds=["gptj"])


def test_a_change_against_the_fact_is_a_broken_promise():
    found = []
    for fault in ("hopes", "fears"):
        try:
            check_method(Broken(fault=fault), kinds=["gptj"])
        except AssertionError as error:
            found.append(str(error))
    promise = (
        "Broken promise: a fact that is written alone becomes more probable; 'Rome'"
    )
    assert found
    assert all(promise in text for text in found)


def test_moments_that_are_not_asked_for_are_a_broken_promise(monkeypatch):
    monkeypatch.setattr("edutools.contract._check_effect", lambda *_: None)
    with pytest.raises(AssertionError, match="missing moments are refused"):
        check_method(Broken(fault="needs no moments"), kinds=["gptj"])


@dataclass(frozen=True, kw_only=True)
class Free(Broken):
    """A method that needs no moments and has no setting about them."""

    needs_moments: ClassVar[bool] = False


def test_a_method_without_moments_ignores_those_it_is_given(taught, monkeypatch):
    model, tokenizer, moments = taught
    without = edit(model, tokenizer, FACTS, method=Free())
    given = edit(model, tokenizer, FACTS, method=Free(), moments={0: moments[0]})
    assert torch.equal(dense(without), dense(given))
    assert without.info["moments"] == given.info["moments"] == {}
    with pytest.raises(ValueError, match="no layer 7"):
        edit(model, tokenizer, FACTS, method=Free(layers=(7,)))
    monkeypatch.setattr("edutools.contract._check_effect", lambda *_: None)
    check_method(Free(), kinds=["gptj"])


def test_rome_maps_its_key_to_the_value_exactly(taught):
    model, tokenizer, moments = taught
    found = {
        key: edit(
            model,
            tokenizer,
            FACTS[:1],
            method=ROME(layer=1, key=key, search=AT_MLP),
            moments=moments,
        )
        for key in ("mean", "prompt", "mixed")
    }
    mean = keys(model, tokenizer, FACTS[:1], 1, contexts=GIVEN)
    bare = keys(model, tokenizer, FACTS[:1], 1, contexts=BARE)
    W = oriented(submodule(model, architecture_of(model).write(1))).double()
    move = dense(found["prompt"]) @ bare  # δ
    shift = W @ (bare - mean)
    torch.testing.assert_close(
        dense(found["mean"]) @ mean, move + shift, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(dense(found["mixed"]) @ bare, move, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(dense(found["mixed"]) @ mean, move)


def test_the_mixed_keys_of_the_released_code_disturb_old_keys_more(taught):
    """By 1/cos² of the two keys in the metric of C⁻¹, and never less."""
    model, tokenizer, moments = taught
    C = moments[1].value
    cost = {}
    for key in ("prompt", "mixed"):
        change = edit(
            model,
            tokenizer,
            FACTS[:1],
            method=ROME(layer=1, key=key, search=AT_MLP),
            moments=moments,
        )
        D = dense(change)
        cost[key] = float((D @ C @ D.T).trace())
    bare = keys(model, tokenizer, FACTS[:1], 1)[:, 0]
    mean = keys(model, tokenizer, FACTS[:1], 1, contexts=GIVEN)[:, 0]
    u, w = torch.linalg.solve(C, bare), torch.linalg.solve(C, mean)
    ratio = float((bare @ u) * (mean @ w) / (bare @ w) ** 2)
    assert ratio > 1
    assert cost["mixed"] / cost["prompt"] == pytest.approx(ratio, rel=1e-4)


def test_emmet_with_a_ridge_is_memit(taught):
    model, tokenizer, moments = taught
    options = {"layers": (0, 1), "search": SEARCH}
    ridge = EMMET(ridge=0.4, weight=25.0, **options)
    assert ridge.effective_lam == 10
    one = edit(model, tokenizer, FACTS, method=ridge, moments=moments)
    two = edit(
        model, tokenizer, FACTS, method=MEMIT(lam=10.0, **options), moments=moments
    )
    for layer in (0, 1):
        torch.testing.assert_close(
            dense(one, layer), dense(two, layer), rtol=1e-4, atol=1e-6
        )


def test_emmet_of_one_fact_is_rome_with_the_same_value(taught):
    model, tokenizer, moments = taught
    search = replace(SEARCH, contexts=BARE)
    one = edit(
        model,
        tokenizer,
        FACTS[:1],
        method=EMMET(layers=(1,), search=search),
        moments=moments,
    )
    two = edit(
        model,
        tokenizer,
        FACTS[:1],
        method=ROME(layer=1, search=search),
        moments=moments,
    )
    torch.testing.assert_close(dense(one), dense(two), rtol=1e-4, atol=1e-6)


def test_one_fact_by_memit_is_rome_made_smaller(taught):
    """By q / (λ + q) with q = kᵀC⁻¹k."""
    model, tokenizer, moments = taught
    exact, soft = (
        edit(model, tokenizer, FACTS[:1], method=method, moments=moments)
        for method in (
            EMMET(layers=(1,), search=SEARCH),
            MEMIT(layers=(1,), lam=7.0, search=SEARCH),
        )
    )
    k = keys(model, tokenizer, FACTS[:1], 1, contexts=GIVEN)[:, 0]
    q = float(k @ torch.linalg.solve(moments[1].value, k))
    torch.testing.assert_close(
        dense(soft), dense(exact) * q / (7 + q), rtol=1e-4, atol=1e-7
    )


def test_identity_covariance_ignores_the_moments(taught):
    model, tokenizer, moments = taught
    method = ROME(layer=1, covariance="identity", search=AT_MLP)
    without = edit(model, tokenizer, FACTS[:1], method=method)
    given = edit(model, tokenizer, FACTS[:1], method=method, moments=moments)
    eye = {1: identity_moment(model, 1)}
    named = edit(
        model,
        tokenizer,
        FACTS[:1],
        method=ROME(layer=1, search=AT_MLP),
        moments=eye,
    )
    assert torch.equal(dense(without), dense(given))
    torch.testing.assert_close(dense(without), dense(named))


def test_an_edit_says_where_it_comes_from(taught, tmp_path):
    model, tokenizer, moments = taught
    method = MEMIT(layers=(0, 1), lam=1.0, search=SEARCH)
    change = edit(model, tokenizer, FACTS, method=method, moments=moments)
    info = json.loads(json.dumps(dict(change.info)))
    assert Method.from_dict(info["method"]) == method
    assert [fact["target"] for fact in info["facts"]] == ["Rome", "Warsaw", "Danish"]
    assert info["moments"]["1"]["tokens"] == moments[1].count
    assert len(info["search"]["probability"]) == 3
    assert all(0 < norm < 10 for norm in info["relative_norms"].values())
    assert repr(change) == "Edit(MEMIT, 3 facts, 2 weights, rank 3)"
    change.save_pretrained(tmp_path / "edit")
    again = Edit.from_pretrained(tmp_path / "edit")
    assert Method.from_dict(again.info["method"]) == method


def test_contexts_that_the_model_wrote_are_kept_in_the_record(taught):
    model, tokenizer, moments = taught
    search = replace(AT_MLP, contexts=Contexts(prefixes=((2, 4),), seed=3))
    change = edit(
        model,
        tokenizer,
        FACTS[:1],
        method=ROME(layer=1, search=search),
        moments=moments,
    )
    written = change.info["method"]["search"]["contexts"]["given"]
    assert written == list(search.contexts.texts(model, tokenizer))


def test_facts_can_be_written_one_after_the_other(taught):
    model, tokenizer, moments = taught
    total = Edit({})
    for fact in FACTS:
        with total.applied(model):
            total = total + edit(
                model,
                tokenizer,
                [fact],
                method=ROME(layer=1, search=AT_MLP),
                moments=moments,
            )
    assert total.rank == 3
    prompts, targets = [f.text for f in FACTS], [f.target for f in FACTS]
    before = score(model, tokenizer, prompts, targets).joint
    with total.applied(model):
        after = score(model, tokenizer, prompts, targets).joint
    assert after[-1] > before[-1]


@pytest.mark.parametrize("name", ["ROME", "ROME mixed", "ROME identity", "MEMIT"])
def test_edits_found_together_are_those_found_alone(taught, name):
    model, tokenizer, moments = taught
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"method": METHODS[name], "moments": moments}
    together = edit_each(model, tokenizer, FACTS, **options)
    for fact, found in zip(FACTS, together, strict=True):
        alone = edit(model, tokenizer, [fact], **options)
        assert found.info["facts"] == alone.info["facts"]
        for module, delta in alone.deltas.items():
            torch.testing.assert_close(
                found.deltas[module].dense(), delta.dense(), atol=1e-5, rtol=1e-3
            )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_several_facts_are_too_many_for_rome(taught):
    model, tokenizer, moments = taught
    with pytest.raises(ValueError, match="ROME writes one fact at a time; got 3"):
        edit(model, tokenizer, FACTS, method=ROME(layer=1), moments=moments)


def never(*_, **__):
    """A search that must not begin."""
    raise RuntimeError("the search has begun")


def test_colliding_facts_are_named_before_any_search(taught):
    model, tokenizer, moments = taught

    twice = [*FACTS, Fact("Anna Karenina", "{} was born in", "Paris")]
    message = (
        r"Facts 1 and 3 \('Anna Karenina', 'Anna Karenina'\) have nearly the same key "
        r"at layer 1 \(cosine 1\.0000\) and cannot both be written exactly\. Drop one, "
        "or use MEMIT."
    )
    method = EMMET(layers=(1,), search=replace(SEARCH, contexts=BARE))
    with pytest.raises(ValueError, match=message):
        edit(model, tokenizer, twice, method=method, moments=moments, find=never)
    with pytest.raises(RuntimeError, match="the search has begun"):
        edit(
            model,
            tokenizer,
            twice,
            method=replace(method, ridge=1.0),
            moments=moments,
            find=never,
        )


def test_more_facts_than_dimensions_are_refused_before_any_search(taught):
    model, tokenizer, moments = taught
    many = [Fact(f"Person {i}", "{} lives in", "Rome") for i in range(25)]
    method = EMMET(layers=(0, 1), search=replace(SEARCH, contexts=BARE))
    message = (
        r"25 facts cannot all be written exactly at layer 0, where keys have size 24\. "
        "Write at most 24 at once, or use MEMIT"
    )
    with pytest.raises(ValueError, match=message):
        edit(model, tokenizer, many, method=method, moments=moments, find=never)


@pytest.mark.parametrize(("ridge", "weight"), [(0.0, 1e4), (0.1, 20.0)])
def test_emmet_says_which_memit_it_was(taught, ridge, weight):
    model, tokenizer, moments = taught
    method = EMMET(layers=(1,), ridge=ridge, weight=weight, search=SEARCH)
    change = edit(model, tokenizer, FACTS, method=method, moments=moments)
    assert change.info["effective_lam"] == ridge * weight


def test_missing_moments_and_layers_are_named(taught):
    model, tokenizer, moments = taught
    with pytest.raises(
        ValueError, match=r"MEMIT edits layers \[0, 1\] but moments has"
    ):
        edit(model, tokenizer, FACTS, method=MEMIT(layers=(0, 1), search=SEARCH))
    with pytest.raises(ValueError, match=re.escape("none for [0]")):
        edit(
            model,
            tokenizer,
            FACTS,
            method=MEMIT(layers=(0, 1), search=SEARCH),
            moments={1: moments[1]},
        )
    with pytest.raises(ValueError, match="no layer 5"):
        edit(model, tokenizer, FACTS[:1], method=ROME(layer=5), moments=moments)
    with pytest.raises(ValueError, match="no layer 5"):
        edit(
            model,
            tokenizer,
            FACTS[:1],
            method=ROME(layer=5, covariance="identity"),
        )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "Got no facts"),
        (FACTS[0], "facts must be several facts, not one"),
        (["Paris is in Italy"], r"facts\[0\] must be a Fact"),
    ],
)
def test_bad_facts_are_refused(taught, facts, message):
    model, tokenizer, moments = taught
    with pytest.raises((ValueError, TypeError), match=message):
        edit.__wrapped__(model, tokenizer, facts, method=ROME(layer=1), moments=moments)


def test_a_pointless_edit_is_warned_of(taught):
    model, tokenizer, moments = taught
    known = Fact("Anna Karenina", "{} lives in", "Moscow")
    method = ROME(layer=1, search=AT_MLP)
    with pytest.warns(UserWarning, match="Fact 0: the model already says ' Moscow'"):
        edit(model, tokenizer, [known], method=method, moments=moments)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_settings_survive_json(method):
    text = json.dumps(method.to_dict())
    assert Method.from_dict(json.loads(text)) == method
    assert type(method).from_dict(json.loads(text)) == method


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"method": "ROME", "layr": 3},
            "ROME has no setting 'layr'. Did you mean 'layer'",
        ),
        ({"method": "ROME", "search": {"clmp": 1}}, "no setting 'clmp'. Did you mean"),
        ({"method": "ROMA"}, "No method 'ROMA'. Known:.*MEMIT"),
        ({"method": "MEMIT", "lam": 0.0}, "MEMIT.lam is 0.0; it must be positive"),
        ({"method": "ROME", "key": "both"}, "ROME.key is 'both'; choose one of 'mean'"),
        ({"method": "EMMET", "ridge": -1.0}, "EMMET needs ridge >= 0"),
        ({"method": "MEMIT", "layers": []}, "at least one layer"),
        ({"method": "MEMIT", "distribution": "odd"}, "MEMIT.distribution is 'odd'"),
        ({"method": "MEMIT", "covariance": "none"}, "MEMIT.covariance is 'none'"),
        ({"method": "EMMET", "search": {"site": "mlp"}}, "residual of block outputs"),
    ],
)
def test_bad_settings_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Method.from_dict(data)


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="No method 'ROME'"):
        MEMIT.from_dict(ROME().to_dict())
    with pytest.raises(TypeError, match="needs names and values"):
        read(ValueSearch, [1, 2])
    assert read(ValueSearch, write(SEARCH)) == SEARCH


@pytest.mark.parametrize("kind", [ROME, MEMIT, EMMET])
def test_every_row_of_the_presets_makes_a_method(kind):
    rows = presets()[kind.__name__]
    assert {"gpt2-xl", "gpt-j-6b", "llama-2-7b"} <= set(rows)
    for name, row in rows.items():
        method = kind.preset(name)
        assert len(row["source"]) > 20
        assert method.search.site == ("mlp" if kind is ROME else "block")
        assert method.search.steps == row["search"]["steps"]


def test_presets_are_found_by_the_model_s_name():
    assert MEMIT.preset("EleutherAI/gpt-j-6B") == MEMIT.preset("gpt-j-6b")
    assert MEMIT.preset("gpt2-xl").layers == (13, 14, 15, 16, 17)
    assert MEMIT.preset("gpt2-xl").lam == 20_000
    assert ROME.preset("gpt2-xl").layer == 17
    search = ROME.preset("gpt2-xl").search
    assert search.contexts.prefixes == ((10, 5), (10, 10))
    assert search.clamp_to == "site"
    with pytest.raises(ValueError, match="MEMIT has no preset for 'gpt2-large'"):
        MEMIT.preset("gpt2-large")
    with pytest.raises(ValueError, match="Known: none"):
        preset_row("KE", "gpt2-xl")


@pytest.mark.parametrize("kind", [ROME, MEMIT, EMMET])
def test_every_method_can_be_cited(kind):
    text = kind().citation
    assert text.startswith("@inproceedings{")
    assert text.count("{") == text.count("}")
