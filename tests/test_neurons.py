"""Attribution and knowledge neurons: what integrated gradients promise, and use."""

import random
from dataclasses import replace

import pytest
import torch

from edutools.arch import architecture_of, oriented, submodule
from edutools.attribution import Attribution, attribute
from edutools.corpus import counterfact_records
from edutools.facts import Case, Fact
from edutools.hooks import capture, patch
from edutools.neurons import (
    KnowledgeNeurons,
    amplify,
    find_neurons,
    rewrite,
    suppress,
)
from edutools.pocket import load
from edutools.prompts import encode, target_ids
from edutools.scoring import score
from edutools.testing import TINY, TINY_FACTS, taught_model, tiny_tokenizer
from edutools.world import build_world

PROMPTS = ["The Eiffel Tower is located in the city of", "Anna Karenina lives in"]
ANSWERS = ["Paris", "Moscow and speaks"]


@pytest.fixture(scope="module", params=["gptj", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


@pytest.fixture(scope="module")
def world():
    return build_world()


@pytest.fixture(scope="module")
def cases(world):
    """Two facts that the pocket models know, in the schema of CounterFact."""
    return [Case.from_counterfact(r) for r in counterfact_records(world)[40:42]]


def last_keys(model, ids, layer):
    name = architecture_of(model).write(layer)
    with torch.no_grad(), capture(model, name, inputs=True) as seen:
        model(ids)
    return name, seen[name][0, -1]


def probability(model, tokenizer, prompt, answer, layer, w):
    """P of the answer with a layer's neurons at the prompt's end set to w, plainly."""
    name = architecture_of(model).write(layer)
    start = tokenizer(prompt).input_ids
    end = target_ids(tokenizer, answer)
    ids = torch.tensor([start + end])

    def put(k):
        k = k.clone()
        k[0, len(start) - 1] = w
        return k

    with patch(model, {name: put}, inputs=True):
        logp = model(ids).logits[0].log_softmax(-1)
    return logp[range(len(start) - 1, ids.shape[1] - 1), end].sum().exp()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("layer", [0, 2])
def test_scores_are_the_papers_right_riemann_sum(taught, which, layer):
    """Against central differences of a plain forward pass, neuron by neuron."""
    model, tokenizer = taught
    prompt, answer, m, eps = PROMPTS[which], ANSWERS[which], 3, 0.02
    ids = torch.tensor([tokenizer(prompt).input_ids])
    _, full = last_keys(model, ids, layer)
    found = attribute(model, tokenizer, [prompt], [answer], steps=m).scores[0, layer]

    def p(w):
        with torch.no_grad():
            return float(probability(model, tokenizer, prompt, answer, layer, w))

    # The largest score of all and a few others.
    for i in [int(found.abs().argmax()), 0, 5, 11]:
        step = eps * torch.nn.functional.one_hot(torch.tensor(i), len(full))
        slopes = [
            (p(k / m * full + step) - p(k / m * full - step)) / (2 * eps)
            for k in range(1, m + 1)
        ]
        wanted = float(full[i]) / m * sum(slopes)
        assert float(found[i]) == pytest.approx(wanted, abs=2e-4, rel=0.02)


def test_nothing_is_lost_and_the_error_falls_as_one_over_m(taught):
    found = {m: attribute(*taught, PROMPTS, ANSWERS, steps=m) for m in (10, 40, 160)}
    gain = found[160].probability[:, None] - found[160].silent
    assert gain.abs().max() > 0.1  # there is something to lose
    errors = {m: float(f.error.abs().max()) for m, f in found.items()}
    assert errors[160] < 0.03 * float(gain.abs().max())
    assert 3 < errors[10] / errors[40] < 5
    assert 3 < errors[40] / errors[160] < 5


def test_ends_of_the_path_are_plain_forward_passes(taught):
    model, tokenizer = taught
    found = attribute(model, tokenizer, PROMPTS, ANSWERS, steps=1)
    plain = score(model, tokenizer, PROMPTS, ANSWERS).joint.exp().double()
    torch.testing.assert_close(found.probability, plain, rtol=1e-4, atol=1e-6)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for layer in range(3):
            with torch.no_grad():
                p = probability(model, tokenizer, prompt, answer, layer, 0.0)
            assert float(found.silent[i, layer]) == pytest.approx(float(p), rel=1e-3)


def test_batches_and_company_do_not_matter(taught):
    together = attribute(*taught, PROMPTS, ANSWERS, steps=5)
    in_parts = attribute(*taught, PROMPTS, ANSWERS, steps=5, batch_size=3)
    torch.testing.assert_close(in_parts.scores, together.scores, rtol=1e-3, atol=1e-6)
    for i in range(2):
        alone = attribute(*taught, PROMPTS[i : i + 1], ANSWERS[i : i + 1], steps=5)
        torch.testing.assert_close(
            alone.scores[0], together.scores[i], rtol=1e-3, atol=1e-6
        )


def test_the_model_is_left_as_it_was(taught):
    model, tokenizer = taught
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    with torch.no_grad():
        attribute(model, tokenizer, PROMPTS, ANSWERS, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    model.eval()


def of_scores(*scores):
    scores = torch.tensor(scores, dtype=torch.float64)
    n, layers, _ = scores.shape
    return Attribution(scores, torch.zeros(n).double(), torch.zeros(n, layers).double())


def test_refinement_keeps_what_the_wordings_share():
    found = of_scores(
        [[1.0, 0.3, 0.1], [0.0, 0.19, -5.0]],
        [[10.0, 0.0, 2.0], [0.0, 1.9, -5.0]],
        [[0.1, 0.0, 0.05], [0.0, 0.0, 0.2]],
    )
    # Shares of the largest: (0, 0) 1, 1, .5 · (0, 1) .3, 0, 0 · (0, 2) .1, .2, .25
    assert found.shared(threshold=0.2, share=1.0) == ((0, 0),)
    assert found.shared(threshold=0.2, share=0.6) == ((0, 0), (0, 2))
    assert found.shared(threshold=0.1, share=1.0) == ((0, 0), (0, 2))
    assert set(found.shared(threshold=0.2, share=0.3)) == {
        *[(0, 0), (0, 1), (0, 2), (1, 2)]
    }
    assert found.top(3) == ((0, 0), (0, 2), (1, 1))
    assert repr(found) == "Attribution(n=3, layers=2, neurons=3)"


def test_a_neuron_that_hinders_is_never_kept():
    found = of_scores([[-1.0, -2.0]], [[-1.0, -3.0]])
    assert found.shared(threshold=0.0, share=0.5) == ()
    assert of_scores([[0.0, 0.0]]).shared(threshold=0.0, share=0.0) != ((0, 2),)


def test_a_share_of_the_prompts_is_not_lost_to_rounding():
    scores = [[[1.0, 1.0]]] * 7 + [[[1.0, 0.0]]] * 3
    assert of_scores(*scores).shared(share=0.7) == ((0, 0), (0, 1))


@pytest.mark.parametrize("kind", TINY)
def test_scaled_neurons_do_what_scaled_columns_do(tiny, kind):
    """The column of W is the neuron's value slot."""
    model, tokenizer = tiny(kind)
    inputs = encode(tokenizer, PROMPTS).inputs
    neurons = [(0, 3), (2, 5), (2, 1), (0, 3)]
    with suppress(model, neurons):
        silent = model(**inputs).logits
    with amplify(model, neurons, factor=3.0):
        loud = model(**inputs).logits
    plain = model(**inputs).logits
    for factor, wanted in ((0.0, silent), (3.0, loud)):
        saved = {k: v.clone() for k, v in model.state_dict().items()}
        for layer, index in set(neurons):
            W = oriented(submodule(model, architecture_of(model).write(layer)))
            W[:, index] *= factor
        torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)
        model.load_state_dict(saved)
        assert not torch.allclose(wanted, plain, atol=1e-3)
    assert torch.equal(model(**inputs).logits, plain)


def test_scaling_nests_and_ends_with_an_exception(tiny):
    model, tokenizer = tiny("gptj")
    inputs = encode(tokenizer, PROMPTS).inputs
    plain = model(**inputs).logits
    seen = []

    def interrupted():
        with amplify(model, [(1, 2)]), amplify(model, [(1, 2)], factor=0.5):
            seen.append(model(**inputs).logits)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(seen[0], plain)  # twice and half
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rewriting_moves_the_value_slots_and_nothing_else(tiny, kind):
    model, tokenizer = tiny(kind)
    fact, how = TINY_FACTS[0], KnowledgeNeurons(subtract=2.0, add=3.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    change = rewrite(model, tokenizer, fact, [(0, 3), (1, 4), (0, 1)], settings=how)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    place = architecture_of(model)
    assert set(change.deltas) == {place.write(0), place.write(1)}
    assert change.deltas[place.write(0)].rank == 2
    head = model.get_parameter(f"{place.head}.weight")
    old, new = (head[target_ids(tokenizer, x)[0]] for x in (fact.truth, fact.target))
    for layer, mine in ((0, [1, 3]), (1, [4])):
        W = oriented(submodule(model, place.write(layer)))
        moved = change.deltas[place.write(layer)].dense()
        for i in range(W.shape[1]):
            size = W[:, i].norm()
            wanted = size * (3 * new / new.norm() - 2 * old / old.norm())
            torch.testing.assert_close(
                moved[:, i], wanted if i in mine else torch.zeros_like(wanted)
            )
    assert change.info["facts"][0]["target"] == "Rome"
    assert repr(change) == "Edit(KnowledgeNeurons, 1 facts, 2 weights, rank 2)"
    with change.applied(model):
        pass  # the fingerprints are those of this model


# The pocket models


def wordings(world, case):
    templates = world.relations[case.relation].templates[:2]
    return [t.replace("{}", case.fact.subject) for t in templates]


@pytest.mark.parametrize("name", ["pocket-gptj-organism", "pocket-llama"])
def test_top_neurons_carry_the_answer_and_random_ones_do_not(name, world, cases):
    model, tokenizer = load(name)
    draw, fall = random.Random(0), {"top": 0.0, "random": 0.0}
    for case in cases:
        prompts, answers = wordings(world, case), [case.fact.truth] * 2
        found = attribute(model, tokenizer, prompts, answers, steps=4, batch_size=40)
        top = found.top(20)
        others = [(layer, draw.randrange(found.scores.shape[2])) for layer, _ in top]
        before = score(model, tokenizer, prompts, answers).joint.mean()
        for label, chosen in (("top", top), ("random", others)):
            with suppress(model, chosen):
                after = score(model, tokenizer, prompts, answers).joint.mean()
            fall[label] += float(before - after)
    assert fall["top"] > 5 * abs(fall["random"])
    assert fall["top"] > 0.05


def test_found_neurons_can_be_rewritten(world, cases):
    model, tokenizer = load("pocket-llama")
    case = cases[1]
    how = KnowledgeNeurons(steps=5, share=0.5)
    neurons = find_neurons(
        model, tokenizer, wordings(world, case), case.fact.truth, settings=how
    )
    assert 0 < len(neurons) <= 4
    prompts, answers = [case.fact.text] * 2, [case.fact.truth, case.fact.target]
    before = score(model, tokenizer, prompts, answers).joint
    with rewrite(model, tokenizer, case.fact, neurons).applied(model):
        after = score(model, tokenizer, prompts, answers).joint
    assert after[0] < before[0]
    assert after[1] > before[1]


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "KnowledgeNeurons.steps is 0; it must be at least 1"),
        ({"top": 0}, "KnowledgeNeurons.top is 0"),
        ({"threshold": 1.5}, "KnowledgeNeurons.threshold is 1.5; it must be between"),
        ({"share": -0.1}, "KnowledgeNeurons.share is -0.1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeNeurons(**settings)


def test_wrong_questions_are_named(tiny):
    model, tokenizer = tiny("gptj")
    with pytest.raises(ValueError, match="got 0 prompts"):
        attribute(model, tokenizer, [], [])
    with pytest.raises(ValueError, match="steps=0"):
        attribute(model, tokenizer, PROMPTS, ANSWERS, steps=0)
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        attribute(model, tokenizer, PROMPTS, ANSWERS[:1])
    with pytest.raises(ValueError, match="share is 2"):
        of_scores([[1.0]]).shared(share=2.0)


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([], "Got no neurons. Lower `threshold`"),
        ([(3, 0)], "no layer 3"),
        ([(0, 32)], "Layer 0 has no neuron 32. Choose one of 0 to 31"),
        ([(0, -1)], "no neuron -1"),
    ],
)
def test_neurons_that_are_not_there_are_named(tiny, neurons, message):
    model, tokenizer = tiny("gptj")
    with pytest.raises(ValueError, match=message), suppress(model, neurons):
        pass
    with pytest.raises(ValueError, match=message):
        rewrite(model, tokenizer, TINY_FACTS[0], neurons)


def test_a_fact_must_tell_old_and_new_answer_apart(tiny):
    model, tokenizer = tiny("gptj")
    with pytest.raises(ValueError, match="has no truth"):
        rewrite(model, tokenizer, Fact("Anna", "{} lives in", "Rome"), [(0, 0)])
    same = replace(TINY_FACTS[0], target="Paris again")
    with pytest.raises(ValueError, match="begin with the same token"):
        rewrite(model, tokenizer, same, [(0, 0)])


def test_the_paper_is_cited():
    assert KnowledgeNeurons().citation.startswith("@inproceedings{dai2022knowledge,\n")
