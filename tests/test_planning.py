"""Plans of memory and operations, against what the work takes on small models."""

import gc
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import edutools as edu
from edutools import cli
from edutools.arch import architecture_of
from edutools.contexts import Contexts
from edutools.keyvalue import ValueSearch
from edutools.measured import measured
from edutools.meter import Meter
from edutools.outline import outline, published, published_name
from edutools.planning import Phase, Plan, Scale, available, plan
from edutools.rehearse import Layout, reading, searching
from edutools.scoring import score
from edutools.search import target_states
from edutools.spread import shares, spread
from edutools.testing import TINY_FACTS, tiny_tokenizer

FACTOR = 2.0  # how far an estimate may be off, either way
SIZES = {
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "gptj": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64}
    | {"rotary_dim": 8, "tie_word_embeddings": False},
    "llama": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "intermediate_size": 176}
    | {"max_position_embeddings": 64, "tie_word_embeddings": False},
}
FACTS = [
    edu.Fact(subject, "{} is located in the city of", "Rome", "Paris")
    for subject in ("The Eiffel Tower", "Anna Karenina", "Marie Curie", "The Colosseum")
]
SEARCH = ValueSearch(steps=3, contexts=Contexts(given=("{}", "It is known. {}")))


def scale(tokenizer, **more):
    """As much as these facts are."""
    tokens = max(len(tokenizer(fact.text).input_ids) for fact in FACTS)
    answer = len(tokenizer(" Rome").input_ids)
    sizes = {"facts": 4, "batch_tokens": 512, "moment_tokens": 3000}
    return Scale(tokens=tokens, answer=answer, **(sizes | more))


@pytest.fixture(scope="module", params=sorted(SIZES))
def small(request):
    """A small model, wide enough for its own tensors to count, and its tokenizer."""
    kind = request.param
    config = AutoConfig.for_model(kind, **SIZES[kind], vocab_size=400)
    config.bos_token_id, config.eos_token_id = 1, 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.name_or_path = f"small-{kind}"
    tokenizer = tiny_tokenizer(kind)
    text = " ".join(f"{fact.text} {fact.target}." for fact in TINY_FACTS)
    moments = edu.second_moment(
        model, tokenizer, [text * 3] * 60, layers=(1, 2), progress=False
    )
    # a random model's moments have an inverse, but for what it has not read
    total = {x: m.total + torch.eye(len(m.total)).double() for x, m in moments.items()}
    moments = {
        x: edu.SecondMoment(total[x], m.count, m.info) for x, m in moments.items()
    }
    return model, tokenizer, moments


def peak(call):
    gc.collect()
    with Meter() as meter:
        call()
    return meter.peak


def planned(small, method, name):
    found = plan(small[0], method=method, scale=scale(small[1]))
    return next(phase for phase in found.phases if phase.name == name)


def near(estimate, truth, above=FACTOR):
    assert truth / FACTOR <= estimate <= truth * above, (estimate, truth)


MEMIT = edu.MEMIT(layers=(1, 2), search=SEARCH, lam=10.0)


def test_second_moments_take_what_was_planned(small):
    model, tokenizer, _ = small
    text = " ".join(f"{fact.text} {fact.target}." for fact in TINY_FACTS) * 3
    phase = planned(small, MEMIT, "second moments")
    taken = peak(
        lambda: edu.second_moment(
            model, tokenizer, [text] * 30, layers=(1, 2), batch_tokens=512
        )
    )
    near(phase.peak, taken)


def test_the_value_search_takes_what_was_planned(small):
    model, tokenizer, _ = small
    phase = planned(small, MEMIT, "value search")
    taken = peak(lambda: target_states(model, tokenizer, FACTS, 2, search=SEARCH))
    near(phase.peak, taken, above=2.5)  # counted are whole rows, run is their end
    assert phase.floor < phase.peak  # one fact alone takes less


@pytest.mark.parametrize(
    "method",
    [
        MEMIT,
        edu.EMMET(layers=(1,), search=SEARCH),
        edu.AlphaEdit(layers=(1, 2), search=SEARCH, threshold=1e3),
        edu.ENCORE(layers=(1, 2), search=SEARCH, lam=10.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_the_solve_takes_what_was_planned(small, method):
    model, tokenizer, moments = small
    phase = planned(small, method, "keys and solve")
    moments = {x: edu.SecondMoment(m.total, m.count) for x, m in moments.items()}
    Z = {max(method.layers): torch.randn(64, len(FACTS)).double()}

    def write():
        spread(
            model,
            tokenizer,
            FACTS,
            plan=shares(method.layers),
            targets=Z,
            update=lambda layer, W, K, V: method.update(W, K, V, moments[layer]),
            contexts=SEARCH.contexts,
        )

    near(phase.peak, peak(write))


def test_applying_takes_what_was_planned(small):
    model, tokenizer, moments = small
    change = edu.edit(model, tokenizer, FACTS, method=MEMIT, moments=moments)
    phase = planned(small, MEMIT, "applying")

    def apply():
        with change.applied(model):
            pass

    near(phase.peak - phase.device["changes"], peak(apply))
    held = sum(4 * (d.left.numel() + d.right.numel()) for d in change.deltas.values())
    assert phase.device["changes"] == held


def test_an_evaluation_takes_what_was_planned(small):
    model, tokenizer, _ = small
    phase = planned(small, MEMIT, "evaluation")
    prompts = [fact.text for fact in FACTS] * 16
    taken = peak(lambda: score(model, tokenizer, prompts, ["Rome"] * 64))
    near(phase.peak, taken)


def test_fine_tuning_takes_what_was_planned(small):
    model, tokenizer, _ = small
    method = edu.FineTune(layers=(1, 2), steps=3)
    phase = planned(small, method, "fine-tuning")
    taken = peak(lambda: method.compute(model, tokenizer, FACTS, {}))
    near(phase.peak, taken)


def test_mend_takes_what_was_planned(small):
    model, tokenizer, _ = small
    begun = edu.MEND(layers=(2, 3), rank=16).start(model)
    phase = planned(small, begun, "editing")
    taken = peak(lambda: begun.compute(model, tokenizer, FACTS, {}))
    near(phase.peak - phase.device["editor networks"], taken)
    names = [p.name for p in plan(model, method=begun).phases]
    assert "training" not in names
    untrained = plan(model, method=edu.MEND(layers=(2, 3), rank=16))
    assert next(p.name for p in untrained.phases) == "training"


def test_operations_are_those_of_the_products(small):
    """2 per weight and token in a pass, and twice that with the gradient above."""
    model, _, _ = small
    meta = AutoModelForCausalLM.from_config(model.config).to("meta").eval()
    arch = architecture_of(meta)
    block = sum(p.numel() for p in meta.get_submodule(arch.block(0)).parameters())
    layout = Layout(4, 1, 16, 1)
    below = reading(meta, layout, [arch.block(2)]).flops
    assert below == pytest.approx(2 * 2 * block * 64, rel=0.1)
    # one fact: a context and the essence; the head reads two places
    step = searching(meta, Layout(1, 1, 16, 1), arch.block(1)).flops
    head = 2 * 400 * 64 * 2
    assert step == pytest.approx((4 + 2) * 2 * block * 32 + 2 * head, rel=0.1)


def test_plans_grow_with_what_is_asked(small):
    model, _, _ = small
    one, many = (plan(model, method=MEMIT, scale=Scale(facts=n)) for n in (1, 600))
    assert many.host_peak == one.host_peak
    pairs = zip(one.phases, many.phases, strict=True)
    assert all(a.flops <= b.flops for a, b in pairs)
    half = plan(outline("gpt2-xl", dtype="bfloat16"), method=edu.ROME(layer=17))
    full = plan(outline("gpt2-xl", dtype="float32"), method=edu.ROME(layer=17))
    assert full.weights == 2 * half.weights == 4 * half.values


def test_more_room_lets_more_facts_be_searched_together():
    model = outline("gpt2-xl", dtype="bfloat16")
    method, scale = edu.MEMIT.preset("gpt2-xl"), Scale(facts=256, moment_tokens=0)
    parts = [
        plan(model, method=method, scale=scale, memory=memory).phases[0]
        for memory in (8 * 2**30, 80 * 2**30)
    ]
    assert parts[0].peak < 5 * 2**30 < parts[1].peak < 80 * 2**30
    assert parts[0].floor == parts[1].floor < parts[0].peak


# outlines


def test_published_models_have_their_published_sizes():
    values = {
        name: sum(p.numel() for p in outline(name).parameters()) for name in published()
    }
    assert values == {
        "gpt2-xl": 1_557_611_200,
        "gpt-j-6b": 6_050_882_784,
        "llama-2-7b": 6_738_415_616,
    }
    assert all(row["source"] for row in published().values())


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("EleutherAI/gpt-j-6B", "gpt-j-6b"),
        ("gptj-6b", "gpt-j-6b"),
        ("openai-community/gpt2-xl/", "gpt2-xl"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("meta-llama/Llama-2-13b-hf", None),
    ],
)
def test_names_are_recognised(name, known):
    assert published_name(name) == known


def test_an_outline_is_the_model_without_weights():
    name = "pocket-llama"
    model, _ = edu.load(name)
    bare = outline(name)
    assert {n: p.shape for n, p in bare.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert all(p.is_meta for p in bare.parameters())
    assert outline(edu.pocket(name)).dtype == bare.dtype == model.dtype


def test_a_loaded_model_is_only_looked_at():
    model, _ = edu.load("pocket-gptj")
    method = edu.ROME.preset("pocket-gptj")
    before = {n: p.clone() for n, p in model.named_parameters()}
    looked = plan(model, method=method)
    assert looked.phases == plan("pocket-gptj", method=method).phases
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


# refusals


def big() -> Plan:
    return plan(
        outline("gpt2-xl"),
        method=edu.ROME.preset("gpt2-xl"),
        scale=Scale(moment_tokens=0),
    )


def test_what_does_not_fit_is_refused_with_advice():
    found = big()
    room = found.weights + max(phase.floor for phase in found.phases)
    found.check(room)
    with pytest.raises(
        ValueError, match="ROME of 1 fact on 'gpt2-xl' in float32"
    ) as no:
        found.check(room - 1)
    assert "or load it in bfloat16 (2.9 GiB)" in str(no.value)
    assert "\n" not in str(no.value)
    with pytest.raises(ValueError, match=r"0\.9 GiB\. Load it in bfloat16"):
        found.check(10**9)  # not even the weights: nothing else helps


def test_a_main_memory_that_is_shared_must_hold_both():
    found = big()
    rest = {"units": 1, "unit": "fact", "flops": 1, "advice": "do less"}
    part = Phase(name="work", device={"a": 10}, host={"b": 5}, **rest)
    found = replace(found, phases=(part,))
    found.check(found.weights + 10)
    found.check(found.weights + 15, shared=True)
    with pytest.raises(ValueError, match=r"for work; .* Do less, or load it"):
        found.check(found.weights + 14, shared=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("22.5 GiB", 45 * 2**29), ("80gb", 80 * 10**9)],
)
def test_sizes_are_read(text, size):
    assert available(text) == (size, False)


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "many", "24TB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match=r"The memory is .*; write it as"):
        available(text)


def test_auto_is_what_this_machine_has():
    size, shared = available("auto")
    assert size > 2**28
    assert shared is not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: plan("pocket-gptj", method=edu.ROME(layer=99)), "no layer 99"),
        (
            lambda: plan("pocket-gptj", method=edu.ROME(), scale=Scale(facts=0)),
            "facts is 0",
        ),
        (lambda: outline("gpt2-xl", dtype="int8"), "dtype is 'int8'; choose one of"),
    ],
)
def test_wrong_plans_are_refused(call, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        call()


def test_a_configuration_that_is_nowhere_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"cannot be read .*gpt-j-6b"):
        outline(tmp_path)


# times


def test_times_are_those_of_the_results(tmp_path):
    row = {"model": "gpt-j-6b", "size": "full", "method": "MEMIT", "dtype": "bfloat16"}
    row |= {"phase": "value search", "unit": "fact", "units": 256, "seconds": 128.0}
    told = {"rows": [row], "surroundings": {"device": "A GPU", "cpu": "a CPU"}}
    (tmp_path / "full_size-cuda.json").write_text(json.dumps(told))
    found = measured("EleutherAI/gpt-j-6b", "MEMIT", "value search", folder=tmp_path)
    assert str(found) == "0.5 s per fact (A GPU, bfloat16)"
    for other in [
        ("gpt2-xl", "MEMIT", "value search"),
        ("gpt-j-6b", "ROME", "applying"),
    ]:
        assert measured(*other, folder=tmp_path) is None
    row["size"] = "tenth"
    (tmp_path / "full_size-cuda.json").write_text(json.dumps(told))
    assert measured("gpt-j-6b", "MEMIT", "value search", folder=tmp_path) is None


# the meter


def test_the_meter_sees_what_lives_and_what_is_let_go():
    x = torch.ones(1000)
    with Meter() as meter:
        y = x * 2
        view = y[:10]
        assert meter.live == 4000
        del y
        assert meter.live == 4000  # the view holds it
        del view
        assert meter.live == 0
        x.add_(1)
    assert meter.peak == 4000


def test_the_meter_sees_what_gradients_keep():
    x = torch.ones(1000, requires_grad=True)
    with Meter() as meter:
        y = x.exp().tanh().sum()
        kept = meter.live
        del y
    assert kept == pytest.approx(8000, abs=100)
    assert meter.live < 100


# the command


def run(*args, code=0):
    done = CliRunner().invoke(cli.app, ["plan", *map(str, args)])
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr.splitlines()


def test_the_command_prints_the_plan():
    args = ("--model", "pocket-gptj", "--method", "memit", "--facts", 10)
    told = json.loads(run(*args, "--json")[0])
    method = edu.MEMIT.preset("pocket-gptj")
    found = plan("pocket-gptj", method=method, scale=Scale(facts=10))
    assert told["peak"] == found.peak
    assert [p["flops"] for p in told["phases"]] == [p.flops for p in found.phases]
    text, _ = run(*args)
    assert text.startswith("MEMIT of 10 facts on 'pocket-gptj', float32\n")
    assert "not measured" in text


@pytest.mark.parametrize("method", ["rome", "emmet", "alphaedit", "encore", "ft"])
def test_the_command_knows_the_methods(method):
    told = json.loads(run("--model", "pocket-llama", "--method", method, "--json")[0])
    assert told["method"]["method"].lower() in (method, "finetune")


def test_the_command_plans_mend_before_its_training():
    args = ("--method", "mend", "--set", "layers=2,3", "--set", "rank=16", "--json")
    told = json.loads(run("--model", "pocket-llama", *args)[0])
    assert told["phases"][0]["name"] == "training"


def test_the_command_refuses_in_one_line():
    args = ("--model", "gpt2-xl", "--method", "rome", "--device-memory", "6GB")
    out, lines = run(*args, code=2)
    assert out == ""
    (line,) = lines
    assert line.startswith("edutools: ROME of 1 fact on 'gpt2-xl' in float32 needs")
    assert "bfloat16" in line
    assert run(*args, "--dtype", "bfloat16", "--moment-tokens", 0)[0]
