"""Causal tracing: the limits it must have, and the plain computation it must equal."""

import copy

import pytest
import torch
from tokenizers import normalizers

from edutools import suffix
from edutools.arch import architecture_of
from edutools.effects import ROLES, Trace, average_effect
from edutools.facts import Fact, SubjectNotFound
from edutools.hooks import capture, patch
from edutools.prompts import encode, fill
from edutools.restore import Restore
from edutools.runs import Runs
from edutools.testing import TINY, TINY_FACTS, taught_model, tiny_tokenizer
from edutools.tracing import causal_trace, causal_traces, embedding_std

FACTS = list(TINY_FACTS)
ZOE = FACTS[2]  # has words before and after the subject


@pytest.fixture(scope="module", params=["gptj", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


def clean_probability(model, tokenizer, fact):
    ids = tokenizer(fact.text, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits[0, -1].softmax(-1)


@pytest.mark.parametrize("sever", [None, "mlp", "attention"])
@pytest.mark.parametrize("kind", ["hidden", "mlp", "attention"])
def test_without_noise_nothing_is_lost_and_nothing_comes_back(taught, kind, sever):
    trace = causal_trace(*taught, ZOE, kind=kind, noise=0.0, samples=2, sever=sever)
    assert trace.total_effect == pytest.approx(0, abs=1e-6)
    assert trace.effect.abs().max() < 1e-6


def test_the_last_state_of_the_last_token_brings_everything_back(taught):
    trace = causal_trace(*taught, ZOE, samples=3)
    assert trace.total_effect > 0.01
    assert trace.p_restored[-1, -1] == pytest.approx(trace.p_clean, abs=1e-6)


def test_the_clean_probability_is_the_model_s_own(taught):
    p = clean_probability(*taught, ZOE)
    trace = causal_trace(*taught, ZOE, samples=2)
    assert trace.p_clean == pytest.approx(float(p.max()), abs=1e-6)
    assert trace.answer == taught[1].decode([int(p.argmax())])


def test_before_the_subject_restoring_brings_nothing(taught):
    trace = causal_trace(*taught, ZOE, samples=2)
    first, end = trace.subject
    assert first > 0
    assert (trace.p_restored[:first] == trace.p_corrupt).all()
    words = "".join(trace.tokens[first:end])  # some tokenizers decode no space
    assert words.replace(" ", "") == "ZoëÅngström"


def test_the_seed_fixes_the_noise(taught):
    again = [causal_trace(*taught, ZOE, samples=3, seed=s) for s in (0, 0, 1)]
    assert torch.equal(again[0].p_restored, again[1].p_restored)
    assert not torch.equal(again[0].p_restored, again[2].p_restored)


def test_the_size_of_batches_changes_nothing(taught):
    whole = causal_trace(*taught, ZOE, kind="mlp", samples=3)
    parts = causal_trace(*taught, ZOE, kind="mlp", samples=3, batch_size=5)
    torch.testing.assert_close(whole.p_restored, parts.p_restored, atol=1e-6, rtol=0)


def test_every_sample_counts_alike(taught):
    noise = unit(*taught, samples=3)
    whole = causal_trace(*taught, ZOE, kind="mlp", noise_unit=noise)
    each = [causal_trace(*taught, ZOE, kind="mlp", noise_unit=x[None]) for x in noise]
    assert whole.samples == 3
    mean = torch.stack([trace.p_restored for trace in each]).mean(0)
    torch.testing.assert_close(whole.p_restored, mean, atol=1e-6, rtol=0)
    mean = sum(trace.p_corrupt for trace in each) / 3
    assert whole.p_corrupt == pytest.approx(mean, abs=1e-6)


def test_noise_is_a_multiple_of_the_measured_deviation(taught):
    model, tokenizer = taught
    noise = unit(*taught, samples=2)
    own = embedding_std(model, tokenizer, [ZOE.subject])
    three = causal_trace(*taught, ZOE, noise_unit=noise)
    assert three.noise == pytest.approx(3 * own)
    same = causal_trace(*taught, ZOE, noise_unit=noise / 2, noise=3.0, sigma=2 * own)
    torch.testing.assert_close(three.p_restored, same.p_restored, atol=1e-6, rtol=0)
    more = causal_trace(*taught, ZOE, noise_unit=noise, noise=6.0)
    assert not torch.allclose(three.p_restored, more.p_restored)


def unit(model, tokenizer, *, samples: int, seed: int = 3) -> torch.Tensor:
    """Noise of standard deviation one for the subject of ZOE."""
    first, end = fill(ZOE).span(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    shape = samples, end - first, model.config.hidden_size
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Plain:
    """One cell by three forward passes, as slowly and plainly as can be."""

    def __init__(self, model, tokenizer, *, replace=False):
        self.model, self.names = model, architecture_of(model)
        self.replace = replace
        self.ids = encode(tokenizer, [ZOE.text]).ids
        self.first, self.end = fill(ZOE).span(tokenizer)
        self.known = {}  # clean and corrupted runs that do not depend on the place

    def module(self, kind: str, layer: int) -> str:
        names = {
            "hidden": self.names.block,
            "mlp": self.names.mlp,
            "attention": self.names.attention,
        }
        return names[kind](layer)

    def corruption(self, noise):
        def corrupt(h):
            h = h.clone()
            if self.replace:
                h[:, self.first : self.end] = 0
            h[:, self.first : self.end] += noise.to(h.dtype)
            return h

        return {self.names.embedding: corrupt}

    def run(self, modules, rows, changes):
        with (
            torch.no_grad(),
            patch(self.model, changes),
            capture(self.model, modules) as seen,
        ):
            logits = self.model(self.ids.expand(rows, -1)).logits[:, -1]
        return {name: h.clone() for name, h in seen.items()}, logits.softmax(-1)

    def restored(self, noise, place, kind, window, sever=None, held_noise=None):
        restore = {self.module(kind, layer) for layer in window}
        hold = (
            {self.module(sever, x) for x in range(window[-1] + 1, 3)} if sever else ()
        )
        held_noise = noise if held_noise is None else held_noise
        key = kind, tuple(window), sever, id(held_noise)
        if key not in self.known:
            self.known[key] = (
                *self.run(restore, 1, {}),
                self.run(hold, len(noise), self.corruption(held_noise))[0],
            )
        clean, p, held = self.known[key]

        def put(values):
            def function(h):
                h = h.clone()
                h[:, place] = values[:, place]
                return h

            return function

        fixed = {name: put(values) for name, values in (clean | held).items()}
        _, found = self.run([], len(noise), fixed | self.corruption(noise))
        return float(found[:, int(p.argmax())].mean())


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attention"])
@pytest.mark.parametrize(
    ("width", "layer", "window"),
    [(1, 1, [1]), (2, 1, [0, 1]), (3, 2, [1, 2]), (3, 0, [0, 1]), (10, 1, [0, 1, 2])],
)
def test_a_cell_equals_the_plain_computation(taught, kind, width, layer, window):
    sigma, noise = embedding_std(*taught, [ZOE.subject]), unit(*taught, samples=2)
    trace = causal_trace(*taught, ZOE, kind=kind, window=width, noise_unit=noise)
    plain = Plain(*taught)
    for place in range(trace.subject[0], len(trace.tokens)):
        wanted = plain.restored(3 * sigma * noise, place, kind, window)
        assert float(trace.p_restored[place, layer]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("sever", ["mlp", "attention"])
@pytest.mark.parametrize(
    ("kind", "width", "layer", "window"),
    [("hidden", 1, 0, [0]), ("hidden", 1, 1, [1]), ("mlp", 2, 1, [0, 1])],
)
def test_a_severed_cell_equals_the_plain_computation(
    taught, sever, kind, width, layer, window
):
    sigma, noise = embedding_std(*taught, [ZOE.subject]), unit(*taught, samples=2)
    other = unit(*taught, samples=2, seed=4)
    options = {"kind": kind, "window": width, "sever": sever, "noise_unit": noise}
    once = causal_trace(*taught, ZOE, **options)
    twice = causal_trace(*taught, ZOE, **options, second_noise=other)
    assert once.severed == twice.severed == sever
    plain, place = Plain(*taught), once.subject[1] - 1
    one, two = 3 * sigma * noise, 3 * sigma * other
    wanted = plain.restored(one, place, kind, window, sever)
    assert float(once.p_restored[place, layer]) == pytest.approx(wanted, abs=1e-6)
    wanted = plain.restored(two, place, kind, window, sever, held_noise=one)
    assert float(twice.p_restored[place, layer]) == pytest.approx(wanted, abs=1e-6)


def table(taught, trace, noise, *, second_noise=None, replace=False):
    """The whole table of a trace: three whole passes for each cell."""
    plain, half = Plain(*taught, replace=replace), trace.window // 2
    held_noise = noise
    wanted = torch.full(trace.p_restored.shape, trace.p_corrupt)
    for layer in range(3):
        window = range(max(0, layer - half), min(3, layer - half + trace.window))
        above = window[-1] < 2  # else nothing is held, and nobody asks for the second
        own = second_noise if above and second_noise is not None else noise
        for place in range(trace.subject[0], len(trace.tokens)):
            wanted[place, layer] = plain.restored(
                own, place, trace.kind, window, trace.severed, held_noise
            )
    return wanted


@pytest.mark.parametrize("sever", [None, "mlp", "attention"])
@pytest.mark.parametrize("kind", ["hidden", "mlp", "attention"])
@pytest.mark.parametrize("width", [2, 3])
def test_every_cell_equals_a_whole_pass_of_its_own(taught, kind, width, sever):
    """What is below a cell is not computed again, and nobody can tell."""
    sigma, noise = embedding_std(*taught, [ZOE.subject]), unit(*taught, samples=2)
    swap = width == 2
    options = {"kind": kind, "window": width, "sever": sever, "replace": swap}
    trace = causal_trace(*taught, ZOE, noise_unit=noise, **options)
    wanted = table(taught, trace, 3 * sigma * noise, replace=swap)
    first = trace.subject[0]
    torch.testing.assert_close(
        trace.p_restored[first:], wanted[first:], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("kind", "width", "sever"),
    [("hidden", 1, None), ("attention", 3, None), ("mlp", 2, "attention")],
)
@pytest.mark.parametrize("model_kind", TINY)
def test_so_it_is_in_every_architecture_and_with_a_second_noise(
    model_kind, kind, width, sever
):
    both = taught_model(model_kind), tiny_tokenizer(model_kind)
    sigma, noise = embedding_std(*both, [ZOE.subject]), unit(*both, samples=2)
    other = unit(*both, samples=2, seed=4) if sever else None
    options = {"kind": kind, "window": width, "sever": sever, "batch_size": 6}
    trace = causal_trace(
        *both, ZOE, noise_unit=noise, second_noise=other, sigma=sigma, **options
    )
    again = None if other is None else 3 * sigma * other
    wanted = table(both, trace, 3 * sigma * noise, second_noise=again)
    first = trace.subject[0]
    torch.testing.assert_close(
        trace.p_restored[first:], wanted[first:], atol=0, rtol=1e-5
    )


@pytest.mark.parametrize("sever", [None, "mlp", "attention"])
@pytest.mark.parametrize("kind", ["hidden", "mlp", "attention"])
def test_tokens_before_a_cell_need_no_run_of_their_own(
    taught, kind, sever, monkeypatch
):
    options = {"kind": kind, "sever": sever, "samples": 2}
    windows = causal_trace(*taught, ZOE, **options)
    monkeypatch.setattr(suffix, "TABLE", {})  # a family that nobody has looked at
    whole = causal_trace(*taught, ZOE, **options)
    torch.testing.assert_close(windows.p_restored, whole.p_restored, atol=0, rtol=1e-5)


def test_only_the_layers_above_a_cell_are_run(taught):
    """The last block runs in the first passes and for all cells but those above it."""
    model, tokenizer = taught
    rows = {0: 0, 2: 0}
    place = architecture_of(model)

    def count(layer):
        def hook(_block, _args, output):
            rows[layer] += len(output if torch.is_tensor(output) else output[0])

        return model.get_submodule(place.block(layer)).register_forward_hook(hook)

    handles = [count(layer) for layer in rows]
    trace = causal_trace(model, tokenizer, ZOE, samples=2)
    for handle in handles:
        handle.remove()
    places = len(trace.tokens) - trace.subject[0]
    assert rows[0] == 1 + 2  # clean and corrupted
    assert rows[2] == 1 + 2 + 2 * 2 * places  # and for cells of two layers


def test_only_the_tokens_from_a_cell_on_are_run(taught, monkeypatch):
    model, tokenizer = taught
    block = model.get_submodule(architecture_of(model).block(2))
    forward, shapes = block.forward, []

    def spy(h, *args, **kwargs):
        shapes.append(tuple(h.shape[:2]))
        return forward(h, *args, **kwargs)

    monkeypatch.setattr(block, "forward", spy)
    spy.__wrapped__ = forward  # as accelerate wraps it
    trace = causal_trace(model, tokenizer, ZOE, samples=2)
    tokens, first = len(trace.tokens), trace.subject[0]
    cells = [(2 * 2, tokens - place) for place in range(first, tokens)]
    assert first > 0
    assert shapes == [(1, tokens), (2, tokens), *cells]  # clean, corrupted, restored


def test_severing_holds_what_comes_after(taught):
    whole = causal_trace(*taught, ZOE, samples=3)
    for part in ("mlp", "attention"):
        cut = causal_trace(*taught, ZOE, samples=3, sever=part)
        # Nothing is left to be held above the last layer.
        torch.testing.assert_close(
            cut.p_restored[:, -1], whole.p_restored[:, -1], atol=1e-6, rtol=0
        )
        assert not torch.allclose(cut.p_restored[:, 0], whole.p_restored[:, 0])


def test_a_second_noise_reaches_the_cells_with_something_held(taught):
    """Above the last layer nothing is held, so that the first noise stays."""
    same = causal_trace(*taught, ZOE, sever="mlp", samples=3, seed=0)
    alike = causal_trace(*taught, ZOE, sever="mlp", samples=3, seed=0, second_noise=0)
    other = causal_trace(*taught, ZOE, sever="mlp", samples=3, seed=0, second_noise=1)
    fresh = causal_trace(*taught, ZOE, samples=3, seed=1)
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(same.p_restored, alike.p_restored, **close)
    assert same.p_corrupt == other.p_corrupt
    last = same.p_restored[:, -1]
    torch.testing.assert_close(other.p_restored[:, -1], last, **close)
    assert not torch.allclose(same.p_restored[:, 0], other.p_restored[:, 0])
    before = other.p_restored[: other.subject[0], :-1]  # nothing restored, other noise
    assert before.numel()
    assert (before == fresh.p_corrupt).all()
    with pytest.raises(ValueError, match="second_noise without sever"):
        causal_trace(*taught, ZOE, second_noise=1)


def test_noise_can_take_the_embedding_s_place(taught):
    added = causal_trace(*taught, ZOE, samples=2)
    replaced = causal_trace(*taught, ZOE, samples=2, replace=True, noise=0.0)
    again = causal_trace(*taught, ZOE, samples=2, replace=True, noise=0.0, seed=1)
    assert replaced.p_corrupt == again.p_corrupt  # zeros, whatever the seed
    assert abs(replaced.total_effect) > 1e-3  # the subject is gone
    assert added.p_clean == replaced.p_clean


def test_the_truth_can_be_followed(taught):
    fact = Fact("Anna Karenina", "{} lives in", "Rome", "Warsaw")
    p = clean_probability(*taught, fact)
    trace = causal_trace(*taught, fact, samples=1, answer="truth")
    token = taught[1](" Warsaw", add_special_tokens=False).input_ids[0]
    assert trace.p_clean == pytest.approx(float(p[token]), abs=1e-6)


@pytest.mark.parametrize("kind", TINY)
def test_every_architecture_can_be_traced_and_is_left_alone(kind):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for part in ("hidden", "mlp", "attention"):
        trace = causal_trace(model, tokenizer, ZOE, kind=part, samples=2)
        assert trace.p_restored.shape == (len(trace.tokens), 3)
        assert trace.window == (1 if part == "hidden" else 3)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_roles_of_tokens():
    def roles(tokens, subject):
        table = torch.zeros(tokens, 2)
        words = tuple("abcdefgh"[:tokens])
        return Trace(ZOE, words, subject, "x", "mlp", 1, 1.0, 0.0, table, 1, 0.1).roles

    first, middle, last, after, further, end = ROLES
    assert roles(8, (1, 5)) == (
        *("before subject", first, middle, middle, last),
        *(after, further, end),
    )
    assert roles(3, (0, 1)) == (last, after, end)
    assert roles(2, (0, 2)) == (first, end)
    assert roles(2, (0, 1)) == (last, end)


def test_the_average_counts_every_fact_once():
    def trace(values, subject):
        table = torch.tensor(values)[:, None].expand(-1, 2)
        tokens = tuple("abcdefgh"[: len(values)])
        return Trace(ZOE, tokens, subject, "x", "hidden", 1, 1.0, 0.0, table, 1, 0.1)

    one = trace([0.1, 0.2, 0.4, 0.5, 0.0, 0.9], (0, 4))  # two middle tokens
    two = trace([0.3, 0.1, 0.2, 0.7], (0, 2))
    mean = average_effect([one, two])
    assert mean.facts == (2, 1, 2, 2, 0, 2)
    middle = mean.at("middle subject tokens")
    assert middle.tolist() == pytest.approx([0.3, 0.3])
    assert mean.at("last subject token")[0].item() == pytest.approx((0.5 + 0.1) / 2)
    assert mean.at("further tokens").isnan().all()
    assert mean.total_effect == pytest.approx(1)
    half = 1.959964 * torch.tensor([0.5, 0.1]).std() / 2**0.5
    assert mean.half[2, 0].item() == pytest.approx(half.item())
    assert mean.half[1].isnan().all()  # one fact has no interval
    assert "largest AIE 0.800 at 'last token'" in repr(mean)


def test_many_facts_share_one_size_of_noise(taught):
    model, tokenizer = taught
    traces = causal_traces(model, tokenizer, FACTS, samples=2, kind="mlp")
    sigma = embedding_std(model, tokenizer, [fact.subject for fact in FACTS])
    assert [trace.noise for trace in traces] == [3 * sigma] * 3
    mean = average_effect(traces)
    assert mean.mean.shape == (len(ROLES), 3)
    frame = mean.to_frame()
    assert len(frame) == 18
    assert (frame.high >= frame.low).sum() >= 9
    frame = traces[2].to_frame()
    assert len(frame) == len(traces[2].tokens) * 3
    assert set(frame.role) <= {*ROLES, "before subject"}


def test_traces_and_averages_introduce_themselves():
    table = torch.tensor([[0.1, 0.2], [0.75, 0.3]])
    trace = Trace(ZOE, ("a", "b"), (0, 1), "x", "mlp", 3, 0.9, 0.1, table, 2, 0.1)
    assert repr(trace) == (
        f"Trace({ZOE.text!r}, kind='mlp', total_effect=0.800, largest effect 0.650 at "
        "'b', layer 0)"
    )
    mean = average_effect([trace])
    assert mean.roles == ROLES
    assert torch.equal(mean.at(mean.roles[2]), mean.mean[2])


def test_a_given_size_of_noise_serves_all_facts(taught):
    traces = causal_traces(*taught, FACTS[:2], samples=1, sigma=0.5, noise=2.0)
    assert [trace.noise for trace in traces] == [1.0, 1.0]


def test_subjects_without_a_token_are_refused(taught):
    lossy = tiny_tokenizer("gptj")
    lossy.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(SubjectNotFound, match="None of the subjects"):
        embedding_std(taught_model("gptj"), lossy, ["\u200b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_can_be_traced(taught, dtype):
    model, tokenizer = taught
    plain = causal_trace(model, tokenizer, ZOE, samples=3)
    half = causal_trace(copy.deepcopy(model).to(dtype), tokenizer, ZOE, samples=3)
    assert half.answer == plain.answer
    assert half.total_effect == pytest.approx(plain.total_effect, abs=0.05)
    torch.testing.assert_close(half.p_restored, plain.p_restored, atol=0.1, rtol=0)


def test_the_size_of_embeddings(taught):
    model, tokenizer = taught
    ids = [tokenizer(fact.subject).input_ids for fact in FACTS]
    flat = torch.tensor([token for row in ids for token in row])
    weight = model.get_input_embeddings().weight[flat]
    found = embedding_std(model, tokenizer, [fact.subject for fact in FACTS])
    assert found == pytest.approx(float(weight.detach().std()), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mlps"}, "kind='mlps'; choose one of 'hidden', 'mlp', 'attention'"),
        ({"sever": "hidden"}, "sever='hidden'; choose one of None, 'mlp'"),
        ({"answer": "target"}, "answer='target'; choose one of 'argmax', 'truth'"),
        ({"window": 0}, "window=0; it must be at least 1"),
        ({"samples": 0}, "samples=0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0; it must be at least 1"),
    ],
)
def test_senseless_options_are_refused(taught, options, message):
    with pytest.raises(ValueError, match=message):
        causal_trace(*taught, ZOE, **options)


def test_noise_of_another_shape_is_refused(taught):
    noise = unit(*taught, samples=2)
    with pytest.raises(ValueError, match=rf"this subject has {noise.shape[1]} tokens"):
        causal_trace(*taught, ZOE, noise_unit=noise[:, 1:])
    runs = Runs.of(*taught, ZOE, noise, replace=False)
    with pytest.raises(ValueError, match="second noise has shape"):
        runs.all_cells(Restore("hidden", 1, []), 0, 8, again=noise[:1])


def test_missing_things_are_named(taught):
    with pytest.raises(ValueError, match="has no truth"):
        causal_trace(*taught, Fact("Rome", "{} is in", "Italy"), answer="truth")
    with pytest.raises(ValueError, match="Got no subjects"):
        embedding_std(*taught, [])
    with pytest.raises(ValueError, match="of one kind, window and model; got none"):
        average_effect([])
    mixed = [causal_trace(*taught, ZOE, kind=k, samples=1) for k in ("mlp", "hidden")]
    with pytest.raises(ValueError, match="of one kind"):
        average_effect(mixed)
    with pytest.raises(ValueError, match="No role 'subject'"):
        average_effect(mixed[:1]).at("subject")
