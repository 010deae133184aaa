"""GRACE: what the codebook says near its keys, and that nothing changes elsewhere."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from edutools.arch import architecture_of
from edutools.codebook import Codebook
from edutools.corpus import counterfact_records
from edutools.evaluate import evaluate
from edutools.facts import Case, Fact
from edutools.hooks import capture
from edutools.memory import GRACE, memorize
from edutools.pocket import load
from edutools.prompts import encode
from edutools.scoring import score
from edutools.testing import taught_model, tiny_tokenizer
from edutools.world import build_world

# Words that a tiny model can say: of one token, or two that it knows together.
FACTS = [
    Fact("The Colosseum", "{} is located in the city of", "the", "Rome"),
    Fact("Anna Karenina", "{} lives in", "city", "Moscow"),
    Fact("Zoë Ångström", "The mother tongue of {} is", "Danish", "Swedish"),
]
METHOD = GRACE(layer=1, radius=0.05, steps=60, stop_loss=0.6)
OTHERS = ["Marie Curie was born in", "The Eiffel Tower is", "It is known that"]


@pytest.fixture(scope="module", params=["gptj", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


@pytest.fixture(scope="module")
def book(taught):
    return memorize(*taught, FACTS, method=METHOD)


def logits(model, tokenizer, texts):
    with torch.no_grad():
        return model(**encode(tokenizer, texts).inputs, use_cache=False).logits


def state(model):
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    return weights, hooks, [p.requires_grad for p in model.parameters()]


def same(before, after):
    return before[1:] == after[1:] and all(
        torch.equal(v, after[0][k]) for k, v in before[0].items()
    )


# What it is for


def test_edited_prompts_say_their_targets(taught, book):
    prompts, targets = [f.text for f in FACTS], [f.target for f in FACTS]
    before = score(*taught, prompts, targets)
    with book.applied(taught[0]):
        after = score(*taught, prompts, targets)
    assert not before.correct.any()
    assert after.correct.all()
    assert (after.per_token > -METHOD.stop_loss).all()
    assert len(book) == len(FACTS)
    assert book.targets == tuple(targets)


def test_other_texts_keep_every_bit(taught, book):
    plain = logits(*taught, OTHERS)
    with book.applied(taught[0]):
        assert torch.equal(logits(*taught, OTHERS), plain)
        edited = logits(*taught, [FACTS[0].text])
    assert not torch.equal(edited, logits(*taught, [FACTS[0].text]))
    assert torch.equal(logits(*taught, OTHERS), plain)


def test_only_the_prompts_last_token_is_answered_whatever_follows(taught, book):
    """Padding, company and the answer behind the prompt make no difference."""
    model, tokenizer = taught
    name = architecture_of(model).block(1)
    texts = [FACTS[1].text, FACTS[1].text + " Warsaw and speaks", "Marie Curie"]
    batch = encode(tokenizer, texts)
    with book.applied(model), capture(model, name) as out:
        logits(model, tokenizer, texts)
    with capture(model, name) as plain:
        logits(model, tokenizer, texts)
    at = int(batch.lengths[0]) - 1
    for row in (0, 1):
        torch.testing.assert_close(out[name][row, at], book.values[1])
        assert torch.equal(out[name][row, :at], plain[name][row, :at])
    assert torch.equal(out[name][1, at + 1 :], plain[name][1, at + 1 :])
    assert torch.equal(out[name][2], plain[name][2])


def test_it_writes_freely_what_it_was_told(taught, book):
    """Also with a cache, where later tokens come one by one."""
    model, tokenizer = taught
    batch = encode(tokenizer, [FACTS[0].text])
    with book.applied(model):
        ids = model.generate(
            **batch.inputs, max_new_tokens=4, do_sample=False, pad_token_id=0
        )
    said = tokenizer.decode(ids[0, batch.ids.shape[1] :])
    assert said.strip().startswith(FACTS[0].target)


def test_values_are_what_the_block_says_on_keys_it_reads(taught, book):
    """The key is the block's input at the last token of the prompt."""
    model, tokenizer = taught
    name = architecture_of(model).block(1)
    with capture(model, name, inputs=True) as seen:
        logits(model, tokenizer, [FACTS[2].text])
    torch.testing.assert_close(book.keys[2], seen[name][0, -1], rtol=1e-4, atol=1e-5)
    assert book.entries(seen[name])[0].tolist()[-1] == 2
    assert set(book.entries(seen[name])[0].tolist()[:-1]) <= {-1}


def test_the_model_and_the_old_codebook_stay(taught, book):
    model, tokenizer = taught
    before, old = (
        state(model),
        [x.clone() for x in (book.keys, book.values, book.radii)],
    )
    fact = Fact("Marie Curie", "{} worked in", "and")
    grown = memorize(model, tokenizer, [fact], method=METHOD, codebook=book)
    assert same(before, state(model))
    assert all(map(torch.equal, old, (book.keys, book.values, book.radii)))
    assert len(grown) == len(book) + 1
    assert torch.equal(grown.values[:-1], book.values)
    assert [f["subject"] for f in grown.info["facts"]][-1] == "Marie Curie"
    with grown.applied(model):
        facts = [*FACTS, fact]
        found = score(
            model, tokenizer, [f.text for f in facts], [f.target for f in facts]
        )
    assert found.correct.all()


def test_hooks_go_with_an_exception_and_contexts_nest(taught, book):
    model, tokenizer = taught
    before = state(model)
    other = replace(book, values=book.values + 1)

    def interrupted():
        with other.applied(model), book.applied(model):
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert same(before, state(model))
    with other.applied(model):
        alone = logits(model, tokenizer, [FACTS[0].text])
        with book.applied(model):
            assert torch.equal(logits(model, tokenizer, [FACTS[0].text]), alone)
    with book.applied(model), other.applied(model):
        assert not torch.equal(logits(model, tokenizer, [FACTS[0].text]), alone)
    assert same(before, state(model))


def test_company_and_batches_do_not_matter(taught, book):
    alone = memorize(*taught, FACTS[1:2], method=METHOD)
    parts = memorize(*taught, FACTS, method=METHOD, batch_size=2)
    torch.testing.assert_close(alone.values[0], book.values[1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(parts.values, book.values, rtol=1e-2, atol=1e-2)


def test_a_radius_without_end_reaches_every_token(taught):
    model, tokenizer = taught
    wide = memorize(model, tokenizer, FACTS[:1], method=replace(METHOD, radius=1e3))
    name = architecture_of(model).block(1)
    with wide.applied(model), capture(model, name) as out:
        logits(model, tokenizer, OTHERS)
    assert bool((out[name] == wide.values[0]).all())


# The rules


def empty(size=2):
    rows = torch.zeros(0, size)
    return Codebook("block", rows, rows, rows[:, 0], ())


def put(book, key, target, radius=1.0):
    key = torch.tensor(key)
    return book.added(key, 10 * key, target, radius)


def test_far_keys_are_new_entries():
    book = put(put(empty(), [0.0, 0.0], "a"), [2.1, 0.0], "b")
    assert book.targets == ("a", "b")
    assert book.radii.tolist() == [1.0, 1.0]
    states = torch.tensor([[0.9, 0.0], [1.05, 0.0], [2.0, 0.5], [0.0, 1.1]])
    assert book.entries(states).tolist() == [0, -1, 1, -1]
    assert book.entries(states.view(2, 2, 2)).tolist() == [[0, -1], [1, -1]]


def test_the_same_target_near_by_expands():
    book = put(put(empty(), [0.0, 0.0], "a"), [1.8, 0.0], "a")
    assert len(book) == 1
    assert book.radii.tolist() == [pytest.approx(1.8, rel=0.01)]
    assert book.radii[0] > 1.8
    assert book.entries(torch.tensor([[1.8, 0.0], [0.0, 1.9]])).tolist() == [0, -1]
    inside = put(book, [0.5, 0.0], "a")
    assert torch.equal(inside.radii, book.radii)


def test_another_target_near_by_splits():
    book = put(put(empty(), [0.0, 0.0], "a"), [1.2, 0.0], "b")
    assert book.targets == ("a", "b")
    assert book.radii.tolist() == pytest.approx([0.6, 0.6])
    states = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.7, 0.0], [1.2, 0.0], [0.0, 0.7]])
    assert book.entries(states).tolist() == [0, 0, 1, 1, -1]
    # A narrow neighbour is not made wider.
    third = put(book, [0.0, 1.5], "c")
    assert third.radii.tolist() == pytest.approx([0.6, 0.6, 0.75])


def test_the_same_key_again_takes_the_new_target():
    book = put(put(empty(), [3.0, 0.0], "a"), [3.0, 1e-5], "b")
    assert book.targets == ("b",)
    assert book.radii.tolist() == [1.0]
    assert torch.equal(book.values, torch.tensor([[30.0, 1e-4]]))


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12))
def test_balls_of_different_targets_never_claim_each_others_keys(seed, n):
    """The newest edit is always found, and no state belongs to two entries."""
    generator = torch.Generator().manual_seed(seed)
    book = empty()
    for i, key in enumerate(torch.rand(n, 2, generator=generator) * 4):
        target = "abc"[i % 3]
        book = book.added(key, key, target, 1.0)
        hit = int(book.entries(key[None])[0])
        assert hit >= 0
        assert book.targets[hit] == target
        assert book.entries(book.keys).tolist() == list(range(len(book)))


def test_distances_keep_their_digits_far_from_the_origin():
    keys = torch.full((30, 64), 100.0)
    keys[:, 0] += torch.arange(30)
    book = Codebook("block", keys, keys, torch.full((30,), 0.01), ("a",) * 30)
    states = keys.clone()
    states[:, 1] += 0.02
    assert book.entries(keys).tolist() == list(range(30))
    assert set(book.entries(states).tolist()) == {-1}


def test_lost_facts_are_told_of(taught):
    """The same prompt with two targets: the later one is written, the first lost."""
    first, second = FACTS[1], replace(FACTS[1], target="and")
    with pytest.warns(UserWarning, match=r"Facts \[0\] are outside their entries"):
        book = memorize(*taught, [first, second], method=METHOD)
    assert book.targets == ("and",)
    with book.applied(taught[0]):
        assert score(*taught, [second.text], ["and"]).correct.all()


def test_a_wording_with_the_same_target_shares_an_entry(taught):
    model, tokenizer = taught
    first = FACTS[0]
    second = Fact("the Colosseum", "It is known that {} is in", "the")
    method = replace(METHOD, radius=20.0)
    book = memorize(model, tokenizer, [first, second], method=method)
    assert len(book) == 1
    with book.applied(model):
        found = score(model, tokenizer, [first.text, second.text], ["the", "the"])
    assert found.correct.all()


# Keeping it


def test_a_saved_codebook_is_the_same(taught, book, tmp_path):
    book.save(tmp_path / "deep" / "book.safetensors")
    loaded = Codebook.load(tmp_path / "deep" / "book.safetensors")
    for name in ("keys", "values", "radii"):
        assert torch.equal(getattr(loaded, name), getattr(book, name))
    assert (loaded.module, loaded.targets) == (book.module, book.targets)
    assert loaded.info == book.info
    assert loaded.info["method"]["radius"] == METHOD.radius
    with book.applied(taught[0]):
        wanted = logits(*taught, [FACTS[0].text])
    with loaded.applied(taught[0]):
        assert torch.equal(logits(*taught, [FACTS[0].text]), wanted)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["book.safetensors"]
    assert repr(loaded) == f"Codebook({book.module}, 3 entries)"


def test_damaged_files_are_named(book, tmp_path):
    with pytest.raises(FileNotFoundError, match="No codebook at"):
        Codebook.load(tmp_path / "nothing")
    path = tmp_path / "book"
    book.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"book \(\d+ bytes\) is truncated or damaged"):
        Codebook.load(path)
    save_file({"keys": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a codebook: its format is None"):
        Codebook.load(path)


# Refusals


def test_another_model_is_refused(taught, book, tiny):
    model, _ = tiny("gptj" if "transformer" in book.module else "llama")
    with (
        pytest.raises(ValueError, match="the token embedding of the given model"),
        book.applied(model),
    ):
        pass
    with book.applied(model, strict=False):
        pass
    stranger, _ = tiny("gpt_neox")
    with pytest.raises(LookupError, match="no module named"), book.applied(stranger):
        pass
    narrow = Codebook(book.module, *[torch.zeros(0, 8)] * 2, torch.zeros(0), ())
    with (
        pytest.raises(ValueError, match=r"keys of size 8; .* states of size 16"),
        narrow.applied(model),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_codebook_fits_its_model_in_half_precision_too(taught, book, dtype):
    with book.applied(copy.deepcopy(taught[0]).to(dtype)):
        pass
    one = {**book.info, "embedding": book.info["embedding"][0]}  # as in older files
    older = replace(book, info=one)
    with older.applied(taught[0]), older.applied(copy.deepcopy(taught[0]).bfloat16()):
        pass
    stranger = copy.deepcopy(taught[0]).to(dtype)
    with torch.no_grad():
        stranger.get_input_embeddings().weight[0] += 1
    with pytest.raises(ValueError, match="was written for"), book.applied(stranger):
        pass


def test_an_empty_codebook_changes_nothing(taught):
    model, tokenizer = taught
    book = replace(empty(16), module=architecture_of(model).block(0))
    plain = logits(model, tokenizer, OTHERS)
    with book.applied(model):
        assert torch.equal(logits(model, tokenizer, OTHERS), plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.0}, "GRACE.radius is 0.0; it must be positive"),
        ({"steps": 0}, "GRACE.steps is 0"),
        ({"lr": -1.0}, "GRACE.lr is -1.0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GRACE(layer=1, **settings)


def test_wrong_facts_and_layers_are_named(taught, book):
    with pytest.raises(ValueError, match="Got no facts"):
        memorize(*taught, [], method=METHOD)
    with pytest.raises(ValueError, match="no layer 7"):
        memorize(*taught, FACTS, method=replace(METHOD, layer=7))
    with pytest.raises(ValueError, match=r"sits at .*\.1, but GRACE.layer says .*\.0"):
        memorize(*taught, FACTS, method=replace(METHOD, layer=0), codebook=book)


def test_wrong_tensors_are_named():
    rows = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"per entry; got \[2, 2, 2, 1\]"):
        Codebook("block", rows, rows, rows[:, 0], ("a",))
    with pytest.raises(ValueError, match="a NaN or an infinity"):
        Codebook("block", rows, rows / 0, rows[:, 0], ("a", "b"))


def test_the_paper_is_cited():
    assert GRACE(layer=1).citation.startswith("@inproceedings{hartvigsen2023aging,\n")


# The pocket models


@pytest.fixture(scope="module")
def cases():
    records = counterfact_records(build_world())[:4]
    return [Case.from_counterfact(record) for record in records]


@pytest.mark.parametrize(
    ("name", "layer", "radius"),
    [("pocket-gptj-organism", 8, 25.0), ("pocket-llama", 9, 60.0)],
)
def test_pocket_models_remember_what_they_are_told(cases, name, layer, radius):
    model, tokenizer = load(name)
    before = evaluate(model, tokenizer, cases)
    narrow, wide = (
        memorize(
            model,
            tokenizer,
            [c.fact for c in cases],
            method=GRACE(layer=layer, radius=r),
        )
        for r in (1.0, radius)
    )
    with narrow.applied(model):
        there = evaluate(model, tokenizer, cases)
    with wide.applied(model):
        far = evaluate(model, tokenizer, cases)
    assert before["efficacy"].mean == 0
    assert there["efficacy_top1"].mean == far["efficacy_top1"].mean == 1
    # A narrow ball is a memory of the very prompt, a wide one of what it means.
    assert there["paraphrase"].mean == 0
    assert torch.equal(there.values["neighborhood"], before.values["neighborhood"])
    assert far["paraphrase"].mean > 0.5
    assert far["neighborhood"].mean > 0.8
