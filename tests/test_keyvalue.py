"""Keys, states and the value search."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from edutools import capacity, load
from edutools.capacity import kept_bytes
from edutools.contexts import BARE, Contexts
from edutools.descent import Descent
from edutools.facts import Fact
from edutools.hooks import capture, evaluating, frozen, patch
from edutools.keyvalue import ValueSearch, keys, site_name, states
from edutools.objective import Objective
from edutools.prompts import encode, fill, target_ids
from edutools.rows import SearchRows
from edutools.search import target_states
from edutools.testing import TINY, TINY_FACTS, taught_model, tiny_tokenizer

FACTS = list(TINY_FACTS)
LONG = Fact("Marie Curie", "{} was born in", "the city of Rome")
GIVEN = Contexts(given=("{}", "It is known. {}", "Therefore I believe. {}"))
SEARCH = ValueSearch(steps=8, contexts=GIVEN)


@pytest.fixture(scope="module")
def taught():
    return taught_model("gptj"), tiny_tokenizer("gptj")


def subject_state(model, tokenizer, fact, context, name, *, inputs=False):
    """The plain way: one text, one forward pass, one index."""
    prompt = fill(fact, context)
    with torch.no_grad(), capture(model, name, inputs=inputs) as seen:
        model(**encode(tokenizer, [prompt.text]).inputs, use_cache=False)
    return seen[name][0, prompt.span(tokenizer)[1] - 1].double()


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_a_key_is_the_mean_over_contexts_of_what_the_write_map_reads(tiny, kind):
    model, tokenizer = tiny(kind)
    name = {"gpt2": ".c_proj", "gptj": ".fc_out", "llama": ".down_proj"}[kind]
    name = site_name(model, 1, "mlp") + name
    found = keys(model, tokenizer, FACTS, 1, contexts=GIVEN, batch_size=2)
    for i, fact in enumerate(FACTS):
        each = [
            subject_state(model, tokenizer, fact, text, name, inputs=True)
            for text in GIVEN.given
        ]
        torch.testing.assert_close(found[:, i], sum(each) / 3, atol=1e-6, rtol=1e-5)
    assert found.dtype == torch.float64


def test_grouped_keys_give_the_bare_prompt_half_the_weight():
    grouped = replace(GIVEN, average="grouped")
    assert grouped.weights(3).tolist() == [0.5, 0.25, 0.25]
    assert grouped.weights(1).tolist() == [1.0]


def test_states_are_those_of_the_bare_prompt(tiny):
    model, tokenizer = tiny("llama")
    found = states(model, tokenizer, FACTS, 1)
    one = subject_state(model, tokenizer, FACTS[1], "{}", site_name(model, 1, "block"))
    torch.testing.assert_close(found[:, 1], one, atol=1e-6, rtol=1e-5)
    mlp = states(model, tokenizer, FACTS, 1, site="mlp")
    assert not torch.allclose(mlp, found)


def test_facts_whose_prompts_start_alike_have_the_same_key(tiny):
    model, tokenizer = tiny("gptj")
    twice = [FACTS[0], replace(FACTS[0], prompt="{} was built in", target="Warsaw")]
    found = keys(model, tokenizer, twice, 1)
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=1e-6, rtol=1e-5)


def test_contexts_that_the_model_writes_begin_with_the_bare_prompt(tiny):
    model, tokenizer = tiny("gpt2")
    contexts = Contexts(prefixes=((2, 3), (1, 5)), seed=4)
    written = contexts.texts(model, tokenizer)
    assert written[0] == "{}"
    assert len(written) == 4
    assert written == contexts.texts(model, tokenizer)
    assert contexts.resolved(model, tokenizer).given == written
    assert written != replace(contexts, seed=5).texts(model, tokenizer)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("site", ["block", "mlp"])
def test_the_value_makes_the_target_more_probable(kind, site):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    search = replace(SEARCH, site=site, clamp=4.0)
    found = target_states(model, tokenizer, FACTS, 1, search=search)
    first = found.history["probability"][:, 0]
    assert (found.probability > first).all()
    assert found.values.dtype == torch.float64
    assert found.values.shape == (16, 3)


def logits_with(model, site, ids, at, delta):
    def add(h):
        shift = torch.zeros_like(h)
        shift[0, at] = 1
        return h + shift * delta

    with patch(model, {site: add}):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def plain_loss(model, tokenizer, fact, site, search, delta):
    """The loss written plainly: whole forward passes, torch's own KL."""
    target, losses = target_ids(tokenizer, fact.target), []
    for text in search.contexts.given:
        prompt = fill(fact, text)
        ids, at = tokenizer(prompt.text).input_ids, prompt.span(tokenizer)[1] - 1
        logits = logits_with(model, site, [*ids, *target[:-1]], at, delta)
        said = logits[len(ids) - 1 :].log_softmax(-1)
        losses.append(-said[range(len(target)), target].mean())
    prompt = fill(replace(fact, prompt="{} is a"))
    ids, at = tokenizer(prompt.text).input_ids, prompt.span(tokenizer)[1] - 1
    now = logits_with(model, site, ids, at, delta)[-1].log_softmax(-1)
    before = logits_with(model, site, ids, at, 0 * delta)[-1].log_softmax(-1).detach()
    kl = functional.kl_div(before, now, log_target=True, reduction="sum")
    return sum(losses) / len(losses) + search.kl * kl


def one_by_one(model, tokenizer, fact, layer, search):
    """The search written plainly, for one fact."""
    site = site_name(model, layer, search.site)
    initial = states(model, tokenizer, [fact], layer, site=search.site)[:, 0].float()
    delta = torch.zeros_like(initial, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.lr)
    longest = search.clamp * initial.norm()
    for step in range(search.steps):
        decay = search.weight_decay * delta.norm() / initial.norm() ** 2
        loss = plain_loss(model, tokenizer, fact, site, search, delta) + decay
        if loss < search.stop_loss or step == search.steps - 1:
            break
        delta.grad = torch.autograd.grad(loss, delta)[0]
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, float(longest / delta.norm()))
    return (initial + delta).detach().double()


@pytest.mark.parametrize("site", ["block", "mlp"])
def test_the_batched_search_equals_one_search_per_fact(taught, site):
    model, tokenizer = taught
    facts = [*FACTS, LONG]
    search = ValueSearch(steps=12, contexts=GIVEN, site=site, clamp=2.0, stop_loss=1.5)
    found = target_states(model, tokenizer, facts, 1, search=search)
    assert len(set(found.iterations.tolist())) > 1  # some fact left the batch early
    for i, fact in enumerate(facts):
        plain = one_by_one(model, tokenizer, fact, 1, search)
        error = (found.values[:, i] - plain).norm() / plain.norm()
        assert error < 1e-4


def test_neither_order_nor_size_of_batches_changes_the_values(taught):
    model, tokenizer = taught
    facts = [*FACTS, LONG]
    whole = target_states(model, tokenizer, facts, 1, search=SEARCH)
    parts = target_states(model, tokenizer, facts[::-1], 1, search=SEARCH, batch_size=3)
    torch.testing.assert_close(whole.values, parts.values.flip(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("site", ["block", "mlp"])
def test_the_search_from_the_layer_on_is_the_whole_one(kind, site):
    """In batches, in several passes, and alone: the plain search of each fact."""
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    search = ValueSearch(steps=3, contexts=GIVEN, site=site, clamp=2.0)
    found = target_states(model, tokenizer, FACTS, 1, search=search)
    parts = target_states(model, tokenizer, FACTS, 1, search=search, batch_size=1)
    for i, fact in enumerate(FACTS):
        plain = one_by_one(model, tokenizer, fact, 1, search)
        assert (found.values[:, i] - plain).norm() < 1e-4 * plain.norm()
        assert (parts.values[:, i] - plain).norm() < 1e-4 * plain.norm()


def test_the_search_of_a_trained_model_does_not_depend_on_batches():
    model, tokenizer = load("pocket-gptj-organism")
    search = ValueSearch(steps=4, contexts=GIVEN, site="mlp", clamp=4.0)
    found = target_states(model, tokenizer, FACTS, 5, search=search)
    for i, fact in enumerate(FACTS):
        alone = target_states(model, tokenizer, [fact], 5, search=search).values[:, 0]
        plain = one_by_one(model, tokenizer, fact, 5, search)
        assert (found.values[:, i] - alone).norm() < 1e-4 * alone.norm()
        assert (alone - plain).norm() < 1e-4 * plain.norm()


def blocks_run(model, facts, tokenizer, layer, **options):
    """How many rows go through each block during a search; with gradients, of which."""
    rows = torch.zeros(3, 2, dtype=torch.long)

    def count(depth):
        def hook(_block, _args, output):
            h = output if isinstance(output, torch.Tensor) else output[0]
            rows[depth, int(h.requires_grad)] += len(h)

        name = site_name(model, depth, "block")
        return model.get_submodule(name).register_forward_hook(hook)

    handles = [count(depth) for depth in range(3)]
    found = target_states(model, tokenizer, facts, layer, **options)
    for handle in handles:
        handle.remove()
    return rows.tolist(), found


def test_what_lies_below_and_the_layer_itself_are_computed_once(taught):
    search = replace(SEARCH, steps=4, stop_loss=0.0)
    rows, _ = blocks_run(taught[0], FACTS, taught[1], 1, search=search)
    each = 3 * (len(GIVEN.given) + 1)  # facts · (contexts and the essence)
    assert rows[0] == rows[1] == [each, 0]
    # Once before the search; the last evaluation, which only measures; the others.
    assert rows[2] == [2 * each, 3 * each]


def test_a_finished_fact_costs_nothing(taught):
    search = ValueSearch(steps=12, contexts=GIVEN, clamp=2.0, stop_loss=1.5)
    facts = [*FACTS, LONG]
    rows, found = blocks_run(taught[0], facts, taught[1], 1, search=search)
    taken = found.iterations
    assert len(set(taken.tolist())) > 1
    per = len(GIVEN.given) + 1
    assert sum(rows[2]) == per * (len(facts) + int(taken.sum()))


def test_the_graph_begins_at_the_layer(taught):
    """What is kept for gradients does not grow with the layers below."""
    model, tokenizer = taught
    rows = SearchRows.of(tokenizer, FACTS[:1], GIVEN.given, essence="end")
    with frozen(model):
        kept = [
            sum(kept_bytes(Objective.at(model, layer, SEARCH), rows).values())
            for layer in (0, 1)
        ]
    whole = rows.ids.numel() * 16 * 4  # one state of every token, in bytes
    assert kept[0] - kept[1] > 8 * whole  # a block keeps several of them
    both = SearchRows.of(tokenizer, FACTS[:1] * 2, GIVEN.given, essence="end")
    with frozen(model):
        twice = sum(kept_bytes(Objective.at(model, 1, SEARCH), both).values())
    assert twice == pytest.approx(2 * kept[1], rel=0.02)


def test_free_memory_decides_how_many_facts_go_together(taught, monkeypatch):
    model, tokenizer = taught
    rows = SearchRows.of(tokenizer, FACTS[:1], GIVEN.given, essence="end")
    objective = Objective.at(model, 1, SEARCH)
    window = int((rows.mask.sum(2) - rows.subject).max())  # what δ can reach
    assert capacity.facts_per_pass(objective, rows) == 2048 // (4 * window)
    monkeypatch.setattr(capacity, "TOKENS", 3)
    assert capacity.facts_per_pass(objective, rows) == 1
    size, gpu = 1000, torch.device("cuda", 0)
    monkeypatch.setattr(capacity, "on_gpu", lambda _model: True)
    monkeypatch.setattr(capacity, "kept_bytes", lambda *_: {gpu: size})
    for free, facts in ((0, 1), (2 * size, 1), (7 * size, 2), (16 * size, 8)):
        monkeypatch.setattr(capacity, "free_bytes", lambda _device, free=free: free)
        assert capacity.facts_per_pass(objective, rows) == facts


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_senseless_size_is_refused(taught, wrong):
    with pytest.raises((TypeError, ValueError), match="batch_size"):
        target_states(*taught, FACTS, 1, search=SEARCH, batch_size=wrong)


def test_the_search_leaves_weights_gradients_and_modes_alone(taught):
    model, tokenizer = taught
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = list(model.parameters())
    weights[0].requires_grad_(False)
    model.train()
    try:
        target_states(model, tokenizer, FACTS, 1, search=SEARCH)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert [p.requires_grad for p in weights] == [False] + [True] * (len(weights) - 1)
    weights[0].requires_grad_(True)
    assert all(p.grad is None for p in weights)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_fact_that_is_known_already_stops_at_once(taught):
    model, tokenizer = taught
    known = Fact("Anna Karenina", "{} lives in", "Moscow")
    search = replace(SEARCH, stop_loss=1.0, contexts=BARE)
    found = target_states(model, tokenizer, [known], 1, search=search)
    assert found.iterations.tolist() == [1]
    assert torch.equal(found.values, found.initial)
    assert found.history["loss"][0, 1:].isnan().all()


def first_choices(model, tokenizer, fact, site, search, delta):
    """In every context: is each token of the target the first choice? Plainly."""
    target = tokenizer(" " + fact.target, add_special_tokens=False).input_ids
    hits = []
    for text in search.contexts.given:
        prompt = fill(fact, text)
        ids, at = tokenizer(prompt.text).input_ids, prompt.span(tokenizer)[1] - 1
        with torch.no_grad():
            logits = logits_with(model, site, [*ids, *target[:-1]], at, delta)
        said = logits[len(ids) - 1 :].argmax(-1).tolist()
        hits.append([a == b for a, b in zip(said, target, strict=True)])
    return hits


SAYS = ValueSearch(
    steps=30, contexts=GIVEN, stop="argmax", clamp=30.0, weight_decay=0.0, kl=0.0
)
SAYABLE = [*FACTS[1:], Fact("Marie Curie", "{} was born in", "Warsaw and")]


@pytest.mark.parametrize("fact", SAYABLE, ids=lambda fact: fact.target)
def test_an_early_stop_waits_for_every_token_in_every_context(
    taught, fact, monkeypatch
):
    """By plain forward passes at every δ on the way."""
    model, tokenizer = taught
    tried = []
    losses = Objective.losses

    def spy(self, rows, start, delta_h):
        tried.append(delta_h.detach()[0].clone())
        return losses(self, rows, start, delta_h)

    monkeypatch.setattr(Objective, "losses", spy)
    found = target_states(model, tokenizer, [fact], 0, search=SAYS)
    site = site_name(model, 0, "block")
    hits = [first_choices(model, tokenizer, fact, site, SAYS, d) for d in tried]
    whole = torch.tensor([[all(tokens) for tokens in texts] for texts in hits])
    said = found.history["said"][0, : len(tried)]
    torch.testing.assert_close(said, whole.float().mean(1))
    assert whole.all(1).tolist() == [False] * (len(tried) - 1) + [True]
    move = (found.values - found.initial)[:, 0]
    torch.testing.assert_close(move, tried[-1].double(), atol=1e-5, rtol=1e-4)
    if fact.target == "Warsaw and":  # a count of right tokens would have stopped early
        assert any(sum(map(sum, texts)) >= 3 for texts in hits[:-1])


@pytest.mark.parametrize("extra", [1, 3])
@pytest.mark.parametrize("stop", ["argmax", "loss"])
def test_extra_steps_follow_the_stop(taught, stop, extra):
    model, tokenizer = taught
    search = replace(SAYS, stop=stop, stop_loss=1.5)
    met = target_states(model, tokenizer, SAYABLE, 0, search=search)
    assert met.iterations.max() + extra <= search.steps
    search = replace(search, extra_steps=extra)
    later = target_states(model, tokenizer, SAYABLE, 0, search=search)
    assert (later.iterations - met.iterations).tolist() == [extra] * len(SAYABLE)
    assert not torch.allclose(later.values, met.values)


def test_the_last_evaluation_only_measures(taught):
    model, tokenizer = taught
    search = replace(SEARCH, steps=1)
    found = target_states(model, tokenizer, FACTS, 1, search=search)
    assert torch.equal(found.values, found.initial)
    assert found.history["kl"].abs().max() < 1e-5  # nothing has changed yet


@pytest.mark.parametrize(("to", "clamp"), [("site", 0.5), ("block", 0.25)])
def test_no_value_strays_further_than_the_clamp(taught, to, clamp):
    model, tokenizer = taught
    search = replace(SEARCH, site="mlp", clamp_to=to, clamp=clamp)
    found = target_states(model, tokenizer, FACTS, 1, search=search)
    site = "mlp" if to == "site" else "block"
    length = states(model, tokenizer, FACTS, 1, site=site).norm(dim=0)
    ratio = (found.values - found.initial).norm(dim=0) / length
    torch.testing.assert_close(ratio.max().item(), clamp, rtol=1e-4, atol=0)


def test_decay_and_essence_have_the_form_that_their_names_say(taught):
    model, tokenizer = taught
    norm = target_states(model, tokenizer, FACTS, 1, search=SEARCH)
    first = norm.history["decay"][:, 1]
    length = replace(SEARCH, steps=2)
    moved = target_states(model, tokenizer, FACTS, 1, search=length)
    delta = (moved.values - moved.initial).norm(dim=0)
    start = moved.initial.norm(dim=0)
    torch.testing.assert_close(
        first.double(), 0.5 * delta / start**2, rtol=1e-4, atol=0
    )
    square = replace(SEARCH, steps=2, decay="square")
    found = target_states(model, tokenizer, FACTS, 1, search=square)
    torch.testing.assert_close(
        found.history["decay"][:, 1].double(),
        0.5 * (delta / start) ** 2,
        rtol=1e-4,
        atol=0,
    )
    at_end = norm.history["kl"][:, -1]
    at_subject = target_states(
        model, tokenizer, FACTS, 1, search=replace(SEARCH, essence="subject")
    ).history["kl"][:, -1]
    assert not torch.allclose(at_end, at_subject)


def test_a_half_precision_model_is_searched_in_float32(taught):
    model, tokenizer = taught_model("gptj").to(torch.bfloat16), taught[1]
    found = target_states(model, tokenizer, FACTS, 1, search=SEARCH)
    assert model.dtype == torch.bfloat16
    assert (found.probability > found.history["probability"][:, 0]).all()
    rounded = found.values.to(torch.bfloat16).double()
    assert not torch.equal(found.values, rounded)
    rows = SearchRows.of(tokenizer, FACTS, GIVEN.given, essence="end")
    with evaluating(model), frozen(model):
        descent = Descent(Objective.at(model, 1, SEARCH), rows, torch.arange(3), 2)
        descent.run()
    assert descent.delta_h.dtype == descent.initial.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in descent.history.values())
    assert descent.delta_h.grad.dtype == torch.float32


def test_the_record_is_short_and_plain(taught):
    model, tokenizer = taught
    found = target_states(model, tokenizer, FACTS[:1], 1, search=SEARCH)
    assert found.summary()["iterations"] == [8]
    assert repr(found).startswith("TargetStates(n=1, mean probability=")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"site": "attention"}, "ValueSearch.site is 'attention'; choose one of"),
        ({"clamp_to": "mlp"}, "clamp_to is 'mlp'"),
        ({"essence": "start"}, "essence is 'start'"),
        ({"decay": "cube"}, "decay is 'cube'"),
        ({"stop": "never"}, "stop is 'never'; choose one of 'loss', 'argmax'"),
        ({"extra_steps": -1}, "extra_steps is -1; it must be at least 0"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"kl": -1.0}, "kl is -1.0; it must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"lr": 0.0}, "lr is 0.0; it must be positive"),
        ({"clamp": float("nan")}, "clamp is nan; it must be a finite number"),
    ],
)
def test_senseless_searches_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ValueSearch(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"given": ("It rains. {}",)}, "must start with the bare prompt"),
        ({"given": ()}, "must start with the bare prompt"),
        ({"given": ("{}", "It rains.")}, "exactly one '{}' where the prompt goes"),
        ({"average": "median"}, "average is 'median'; choose one of 'mean', 'grouped'"),
    ],
)
def test_senseless_contexts_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Contexts(**settings)


def test_layers_and_subjects_are_checked_first(taught):
    model, tokenizer = taught
    with pytest.raises(ValueError, match="no layer 7"):
        keys(model, tokenizer, FACTS, 7)
    with pytest.raises(ValueError, match="The site is 'attention'"):
        states(model, tokenizer, FACTS, 1, site="attention")
    with pytest.raises(ValueError, match="Layer 2 is the last one"):
        target_states(model, tokenizer, FACTS, 2, search=SEARCH)
    with pytest.raises(ValueError, match="no layer -1"):
        target_states(model, tokenizer, FACTS, -1, search=SEARCH)


def test_numbers_that_are_not_finite_are_reported_with_the_fact():
    model, tokenizer = taught_model("gptj"), tiny_tokenizer("gptj")
    with torch.no_grad():
        model.transformer.h[2].mlp.fc_out.bias.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="'The Eiffel Tower is located in"):
        target_states(model, tokenizer, FACTS[:1], 1, search=SEARCH)
