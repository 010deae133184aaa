"""The value search: all facts together, against one after the other.

``python -m benchmarks.search`` searches the same values with the same loss, steps and
contexts in two ways, in one process: with `target_states`, all facts in batches that
begin at the layer where δ is added and read the head where it is asked; and with a
plain loop as the released code of ROME and MEMIT works: fact by fact, in every step a
call of the whole model, head included, on the fact's contexts and its essence prompt.
Both stop at a fact as the released code does, once its loss is below the bound of the
preset; `--stop-loss -1` lets every fact take all steps. Both must find the same values.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import edutools as edu
from benchmarks.harness import arguments, keep, ratio, read, timed
from benchmarks.models import NAMES, SIZES, cases
from benchmarks.moments import DTYPES, loaded
from edutools.contexts import Contexts
from edutools.hooks import evaluating, frozen
from edutools.keyvalue import ValueSearch, site_name
from edutools.pocket import POCKET_MODELS
from edutools.rows import SearchRows
from edutools.search import target_states

FACTS = (1, 16, 64, 256)
MORE = 1024  # on a GPU, with a pocket model
APART = 1e-4  # how far the two ways' values may be apart in float32, relatively
Change = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def changed(module: torch.nn.Module, change: Change) -> Iterator[None]:
    """Let a module return something else than it computes."""

    def hook(_module, _args, output):
        several = isinstance(output, tuple)
        new = change(output[0] if several else output)
        return (new, *output[1:]) if several else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def one(
    model, tokenizer, fact: edu.Fact, layer: int, search: ValueSearch
) -> tuple[torch.Tensor, int]:
    """The value of one fact, and how many steps it took, by calls of the whole model.

    L(δ) = -mean log P_δ[target | contexts] + κ KL(P_δ ‖ P)[essence] + w ‖δ‖ᵃ / ‖h‖²
    """
    texts, on = search.contexts.texts(model, tokenizer), model.device
    rows = SearchRows.of(tokenizer, [fact], texts, essence=search.essence)
    ids, mask, subject = (x[0].to(on) for x in (rows.ids, rows.mask, rows.subject))
    asked, words = rows.positions[0].to(on), rows.labels[0].to(on)  # (contexts, answer)
    each = torch.arange(len(ids), device=on)
    delta = torch.zeros(model.config.hidden_size, device=on, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.lr)
    power = 1 if search.decay == "norm" else 2
    before: dict[str, torch.Tensor] = {}

    def add(h: torch.Tensor) -> torch.Tensor:  # (rows, tokens, d_out)
        before.setdefault("h", h[0, subject[0]].detach().float().clone())
        new = h.clone()
        new[each, subject] += delta.to(h.dtype)
        return new

    with changed(model.get_submodule(site_name(model, layer, search.site)), add):
        for step in range(1, search.steps + 1):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            logp = logits.float().log_softmax(-1)  # (rows, tokens, vocab)
            nll = -logp[each[:-1, None], asked, words].mean()
            now = logp[-1, rows.essence[0]]  # (vocab,)
            kl = (now.exp() * (now - before.setdefault("p", now.detach()))).sum()
            norm = before["h"].norm()
            decay = delta.norm() ** power / norm**2
            loss = nll + search.kl * kl + search.weight_decay * decay
            if loss < search.stop_loss or step == search.steps:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta *= (search.clamp * norm / delta.norm()).clamp(max=1)
    return (before["h"] + delta.detach()).double(), step


def one_by_one(
    model, tokenizer, facts: Sequence[edu.Fact], layer: int, search: ValueSearch
) -> tuple[torch.Tensor, list[int]]:
    """Values (d_out, n) and steps of all facts, one after the other."""
    with evaluating(model), frozen(model):
        found = [one(model, tokenizer, fact, layer, search) for fact in facts]
    return torch.stack([value for value, _ in found], 1), [steps for _, steps in found]


def settings(model, tokenizer, given) -> tuple[int, ValueSearch]:
    """The layer and the search of MEMIT's preset, its contexts written down."""
    method = edu.MEMIT.preset(NAMES.get(given.model, given.model))
    search = method.search
    if given.model in POCKET_MODELS:
        contexts = search.contexts.resolved(model, tokenizer)
    else:  # random weights write nothing that is worth reading
        contexts = Contexts(given=("{}", *["It is known that this is so. {}"] * 5))
    search = replace(search, contexts=contexts)
    if given.steps is not None:
        search = replace(search, steps=given.steps)
    if given.stop_loss is not None:
        search = replace(search, stop_loss=given.stop_loss)
    return max(method.layers), search


def row(model, tokenizer, n: int, given) -> dict[str, Any]:
    """One number of facts: seconds of both sides, and how far their values are apart.

    Raises:
        RuntimeError: if they are further apart than float32 explains.
    """
    layer, search = settings(model, tokenizer, given)
    facts = [case.fact for case in cases(n)]
    found: dict[str, Any] = {}
    sides = {
        "together": lambda: found.update(
            together=target_states(model, tokenizer, facts, layer, search=search)
        ),
        "one by one": lambda: found.update(
            apart=one_by_one(model, tokenizer, facts, layer, search)
        ),
    }
    seconds = timed(sides, repeats=given.repeats, device=given.device)
    ours, (theirs, steps) = found["together"], found["apart"]
    apart = (ours.values - theirs).norm(dim=0) / theirs.norm(dim=0)  # (n,)
    if given.dtype == "float32" and not apart.max() <= APART:
        worst = int(apart.argmax())
        raise RuntimeError(
            f"The two ways find different values for {facts[worst].text!r}: apart by "
            f"{apart[worst]:.1e}, after {int(ours.iterations[worst])} and "
            f"{steps[worst]} steps."
        )
    return {
        "model": model.name_or_path.rpartition("/")[2],
        "dtype": given.dtype,
        "layer": layer,
        "of": model.config.num_hidden_layers,
        "contexts": len(search.contexts.texts(model, tokenizer)),
        "steps": search.steps,
        "stop_loss": search.stop_loss,
        "facts": n,
        "taken": {"together": ours.iterations.tolist(), "one by one": steps},
        "seconds": seconds,
        "speedup": ratio(seconds["one by one"], seconds["together"]),
        "difference": float(apart.max()),
    }


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure the numbers of facts, from the smallest on; keep each row as it comes."""
    parser = arguments(__doc__.splitlines()[0])
    known = (*POCKET_MODELS, *NAMES)
    parser.add_argument("--model", choices=known, default="pocket-gptj-organism")
    parser.add_argument(
        "--size", choices=SIZES, default="full", help="of random weights"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of facts")
    parser.add_argument(
        "--steps", type=int, help="of both sides; default: the preset's"
    )
    parser.add_argument("--stop-loss", type=float, help="default: the preset's")
    given = read(parser, argv)
    more = given.device == "cuda" and given.model in POCKET_MODELS
    given.sizes = given.sizes or [*FACTS, MORE][: None if more else -1]
    model, tokenizer = loaded(given)
    name = f"search_{NAMES[given.model]}" if given.model in NAMES else "search"
    rows: list[dict[str, Any]] = []
    path = given.folder
    for n in given.sizes:
        rows.append(row(model, tokenizer, n, given))
        path = keep(name, rows, given)
        fast, slow = (side["median"] for side in rows[-1]["seconds"].values())
        times, apart = rows[-1]["speedup"]["of_medians"], rows[-1]["difference"]
        print(
            f"{n} facts: {fast:.3g} s together, {slow:.3g} s one by one, {times:.1f} "
            f"times as fast; values apart by {apart:.1e}",
            flush=True,
        )
    return path


if __name__ == "__main__":
    main()
