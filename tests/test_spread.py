"""Distribution of an edit over layers."""

import pytest
import torch

from edutools.arch import architecture_of, oriented, submodule
from edutools.contexts import BARE, Contexts
from edutools.keyvalue import keys, states
from edutools.moments import second_moment
from edutools.solve import emmet_update
from edutools.spread import Share, shares, spread
from edutools.testing import TINY_FACTS, taught_model, tiny_tokenizer

FACTS = list(TINY_FACTS)
GIVEN = Contexts(given=("{}", "It is known. {}"))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


def test_even_divides_by_the_layers_left_and_sqrt_by_its_root():
    assert shares([5, 3, 4]) == (Share(3, 5, 3.0), Share(4, 5, 2.0), Share(5, 5, 1.0))
    roots = [share.divisor for share in shares([3, 4, 5], "sqrt")]
    assert roots == pytest.approx([3**0.5, 2**0.5, 1.0])
    assert shares([3, 4, 5], "ends") == (Share(3, 3, 1.0), Share(5, 5, 1.0))
    assert shares([4], "ends") == shares([4]) == (Share(4, 4, 1.0),)


def test_bad_plans_are_refused():
    with pytest.raises(
        ValueError, match=r"No distribution 'odd'\. Known: 'even', 'sqrt'"
    ):
        shares([1], "odd")
    with pytest.raises(ValueError, match=r"each once; got \[1, 1\]"):
        shares([1, 1])
    with pytest.raises(ValueError, match=r"at least one layer, each once; got \[\]"):
        shares([])


def wanted(model, tokenizer, layer):
    """Some states that differ from the present ones."""
    now = states(model, tokenizer, FACTS, layer)
    generator = torch.Generator().manual_seed(1)
    move = torch.randn(*now.shape, generator=generator, dtype=torch.float64)
    return now + 0.1 * move


def test_layers_are_written_bottom_up_with_residuals_measured_anew(taught):
    model, tokenizer = taught
    targets = {1: wanted(model, tokenizer, 1)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []

    def update(layer, W, K, V):
        seen.append((layer, K, V - W @ K))
        return emmet_update(W, K, V, torch.eye(len(K), dtype=torch.float64))

    change = spread(
        model,
        tokenizer,
        FACTS,
        plan=shares((0, 1)),
        targets=targets,
        update=update,
        contexts=GIVEN,
    )
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    names = [architecture_of(model).write(layer) for layer in (0, 1)]
    assert list(change.deltas) == names

    first = type(change)({names[0]: change.deltas[names[0]]})
    now = states(model, tokenizer, FACTS, 1)
    torch.testing.assert_close(seen[0][2], (targets[1] - now) / 2)
    bare = keys(model, tokenizer, FACTS, 1, contexts=GIVEN)
    with first.applied(model):
        moved = states(model, tokenizer, FACTS, 1)
        torch.testing.assert_close(seen[1][2], targets[1] - moved)
        fresh = keys(model, tokenizer, FACTS, 1, contexts=GIVEN)
        torch.testing.assert_close(seen[1][1], fresh)
    assert not torch.allclose(bare, fresh)
    assert not torch.allclose(now, moved)


def test_an_exact_update_on_one_layer_reaches_the_wanted_state(taught):
    """The state at the subject is the wanted one, if only the subject's key is read.

    A changed weight acts at every token. Above the edited layer this may move the
    subject's state too, so one layer is written and its own output is measured.
    """
    model, tokenizer = taught
    text = ["The Eiffel Tower is located in the city of Paris. Marie Curie was born."]
    C = second_moment(model, tokenizer, text * 2, layer=1, progress=False).total
    C = C + torch.eye(len(C), dtype=torch.float64)
    targets = {1: wanted(model, tokenizer, 1)}
    change = spread(
        model,
        tokenizer,
        FACTS,
        plan=shares((1,)),
        targets=targets,
        update=lambda layer, W, K, V: emmet_update(W, K, V, C),
        contexts=BARE,
    )
    with change.applied(model):
        found = states(model, tokenizer, FACTS, 1)
    torch.testing.assert_close(found, targets[1], atol=1e-4, rtol=1e-4)


def test_values_are_written_as_the_weight_maps_keys(taught):
    model, tokenizer = taught
    name = architecture_of(model).write(1)
    W = oriented(submodule(model, name)).double()
    targets = {1: wanted(model, tokenizer, 1)}
    moves = targets[1] - states(model, tokenizer, FACTS, 1)
    K = keys(model, tokenizer, FACTS, 1)
    eye = torch.eye(W.shape[1], dtype=torch.float64)
    change = spread(
        model,
        tokenizer,
        FACTS,
        plan=shares((1,)),
        targets=targets,
        update=lambda layer, W, K, V: emmet_update(W, K, V, eye),
    )
    written = change.deltas[name].dense().double() @ K
    torch.testing.assert_close(written, moves, atol=1e-5, rtol=1e-4)
