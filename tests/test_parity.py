"""Recorded numbers of the original implementations are reproduced.

`pytest tests/test_parity.py --golden DIR` runs on any folder of the same layout and
prints, for each quantity and model, the largest relative error beside its bound, and
where a default of ours differs from an original on purpose. What a folder does not hold
is skipped; the committed folder holds most model-dependent numbers of GPT-J only, for
its size.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import accumulate, product
from pathlib import Path

import pytest
import torch
from recorded import Record, Table, fact_of, records, relative
from recorded_mend import editors_of, layers_of, names_of

from edutools.arch import architecture_of, submodule
from edutools.batch import EMMET, MEMIT, BatchMethod
from edutools.change import Edit
from edutools.contexts import BARE, Contexts
from edutools.factors import Factors, gradient_factors
from edutools.facts import Case, Fact
from edutools.hooks import capture
from edutools.keyvalue import ValueSearch, at_subject, keys, site_name, states
from edutools.mend import MEND
from edutools.methods import edit
from edutools.moments import second_moment
from edutools.prompts import (
    Prompt,
    encode,
    fill,
    subject_span,
    target_ids,
    token_ids,
)
from edutools.rome import ROME
from edutools.rows import answer_rows
from edutools.scoring import score
from edutools.search import TargetStates, target_states
from edutools.solve import (
    CollidingKeys,
    LowRank,
    emmet_update,
    memit_update,
    rome_update,
)
from edutools.spread import shares, spread
from edutools.tracing import Trace, causal_trace, embedding_std

pytestmark = pytest.mark.filterwarnings("ignore:Fact .*the model already says")

# Fixture -> name of the files, and whether their tests need the weights.
FILES = {
    "lookup_file": ("1_lookup_idx", False),
    "keys_file": ("2_keys", True),
    "moment_file": ("3_second_moment", True),
    "values_file": ("4_values_*", True),
    "closed_file": ("5_[me]*", False),
    "single_file": ("5_emmet_*_B1_*", False),
    "equal_file": ("5_[me]*dup*", False),
    "batch_file": ("5_[me]*", True),
    "rome_file": ("5_*rome_*", True),
    "released_file": ("5_rome_*", True),
    "trace_file": ("6_trace_*", True),
    "range_file": ("6_find_token_range", False),
    "mend_file": ("7_mend_*", True),
    "eval_file": ("8_eval", True),
}
# Relative bounds.
MEASURED = 1e-5  # keys, moments, probabilities, log-probabilities
SEARCHED = 1e-4  # values
CLOSED = 1e-6  # closed forms of recorded inputs
INVERSE = 2e-3  # where the original inverts C in float32
EDITED = 1e-5  # MEND's factors, transforms and changes
WRITTEN = 1e-3  # changes of weights, from the facts to the end


def pytest_generate_tests(metafunc):
    golden = metafunc.config.getoption("golden")
    for name, (pattern, weights) in FILES.items():
        if name in metafunc.fixturenames:
            found = records(golden, pattern, weights=weights)
            ids = [f"{record.kind}-{record.name}" for record in found]
            metafunc.parametrize(name, found, ids=ids)


@pytest.fixture(scope="module")
def table(request) -> Iterator[Table]:
    """Collects the largest error of each quantity; prints them at the end."""
    found = Table()
    yield found
    plugins = request.config.pluginmanager
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        found.write(plugins.get_plugin("terminalreporter").write_line)


def test_the_folder_holds_numbers(golden):
    """So that a wrong path does not pass by testing nothing."""
    assert records(golden, "*", weights=True), f"no models and numbers in {golden}"


def test_the_committed_folder_holds_every_quantity():
    committed = Path(__file__).parent / "golden"
    for name, (pattern, weights) in FILES.items():
        assert records(committed, pattern, weights=weights), name


# Positions


def counted_apart(tokenizer, prompt: str, subject: str) -> dict[str, int]:
    """ROME's and MEMIT's rule: the tokens of the pieces are counted one by one.

    Raises:
        AssertionError: if the text in front of the subject does not end in a space.
    """
    before, _, after = prompt.partition("{}")
    if before:
        assert before.endswith(" ")
        before, subject = before[:-1], f" {subject.strip()}"
    first, inside, rest = map(len, token_ids(tokenizer, [before, subject, after]))
    following = first + inside - (rest == 0)
    return {
        "last": first + inside - 1,
        "first": first,
        "first_after_last": following,
    }


def counted_to_the_end(tokenizer, prompt: str, subject: str) -> dict[str, int]:
    """The later rule: the tokens up to the subject's end are counted at once.

    Its `first` is left out: the original subtracts in the wrong order.
    """
    before, _, after = prompt.partition("{}")
    upto, whole = token_ids(tokenizer, [before + subject, before + subject + after])
    last = len(upto) - 1
    return {"last": last, "first_after_last": last + (len(whole) > len(upto))}


def test_subject_positions(lookup_file, table):
    """Also with BOS, Unicode, repeated subjects, punctuation, surrounding spaces."""
    tokenizer, kind = lookup_file.tokenizer, lookup_file.kind
    for row in lookup_file.data["rows"]:
        before, _, after = row["prompt"].partition("{}")
        prompt = Prompt(before, row["subject"], after)
        assert prompt.text == row["sentence"]
        (ids,) = token_ids(tokenizer, [prompt.text])
        table.same("token ids", kind, ids, row["input_ids"])
        tokens = tokenizer.convert_ids_to_tokens(ids)
        table.same("tokens", kind, tokens, row["raw_tokens"])
        first, end = prompt.span(tokenizer)
        found = {
            "last": end - 1,
            "first": first,
            "first_after_last": min(end, len(ids) - 1),
        }
        for name, wanted in row["char_span_answer"].items():
            table.same(f"position, {name}", kind, found[name], wanted)


def test_positions_by_the_original_rules(lookup_file, table):
    """They are reproduced; where they are wrong, ours differ."""
    tokenizer, kind = lookup_file.tokenizer, lookup_file.kind
    for row in lookup_file.data["rows"]:
        before, _, _ = row["prompt"].partition("{}")
        ours = subject_span(tokenizer, before, row["subject"], row["sentence"])[1] - 1
        at_once = counted_to_the_end(tokenizer, row["prompt"], row["subject"])
        for name, found in at_once.items():
            wanted = row["unified_easyedit"][name]
            table.same(f"position by the later rule, {name}", kind, found, wanted)
        theirs = row["rome_memit_original"]
        if str(theirs["last"]).startswith("ERROR"):
            with pytest.raises(AssertionError):
                counted_apart(tokenizer, row["prompt"], row["subject"])
            continue
        apart = counted_apart(tokenizer, row["prompt"], row["subject"])
        table.same("position by ROME's rule", kind, apart, theirs)
        agrees = row["agree_last"]["rome_memit_original"]
        assert (apart["last"] == ours) == agrees
        if not agrees and token_ids(tokenizer, [""]) != [[]]:  # BOS counted twice
            late = float(abs(apart["last"] - ours))
            table.differs("tokens that ROME's rule is late by, BOS", kind, late, 0.5)


def searched(tokenizer, ids: list[int], subject: str) -> list[int]:
    """ROME's rule in tracing: search the text of tokens that are decoded one by one."""
    pieces = [tokenizer.decode([token]) for token in ids]
    begin = "".join(pieces).index(subject)
    ends = list(accumulate(map(len, pieces)))
    last = bisect_left(ends, begin + len(subject))
    return [bisect_right(ends, begin), last + 1]


def test_ranges_of_tokens(range_file, table):
    tokenizer, kind = range_file.tokenizer, range_file.kind
    for row in range_file.data["rows"]:
        sentence, subject = row["sentence"], row["subject"]
        (ids,) = token_ids(tokenizer, [sentence])
        table.same("token ids", kind, ids, row["input_ids"])
        before = sentence[: sentence.index(subject)]
        ours = list(subject_span(tokenizer, before, subject, sentence))
        if str(row["find_token_range"]).startswith("ERROR"):
            with pytest.raises(ValueError, match="not found"):
                searched(tokenizer, ids, subject)
            continue
        found = searched(tokenizer, ids, subject)
        table.same("range by ROME's rule", kind, found, row["find_token_range"])
        if subject == subject.strip():  # outer spaces do not belong to a subject
            table.same("range of tokens", kind, ours, row["find_token_range"])


# Keys and second moments


def test_keys_and_states(keys_file, table):
    model, tokenizer = keys_file.both
    facts, asked = keys_file.facts, [fill(fact) for fact in keys_file.facts]
    mean = replace(keys_file.contexts, average="mean")
    plain = Contexts(given=tuple(keys_file.common["rome_templates"]))
    for layer in keys_file.layers:
        write = architecture_of(model).write(layer)
        grouped = keys_file.contexts
        found = {
            "keys_memit": keys(model, tokenizer, facts, layer, contexts=grouped),
            "keys_rome": keys(model, tokenizer, facts, layer, contexts=plain),
            "key_prompt_only": keys(model, tokenizer, facts, layer, contexts=BARE),
            "rewrite_out_prompt_only": at_subject(model, tokenizer, asked, write).T,
            "block_out": states(model, tokenizer, facts, layer),
        }
        for name, columns in found.items():
            at = f"layer{layer}.{name}"
            table.compare(name, keys_file, at, columns.T, MEASURED)
        # The papers take the plain mean; the released MEMIT groups.
        ours = keys(model, tokenizer, facts, layer, contexts=mean).T
        size = relative(ours, keys_file.tensor(f"layer{layer}.keys_memit"))
        table.differs("keys, mean in place of grouped", keys_file.kind, size, MEASURED)
    if not keys_file.layers:
        pytest.skip("no keys in this folder")


def test_keys_where_the_original_reads_them(keys_file, table):
    """At the same token; with an automatic BOS one later, which is another key."""
    model, tokenizer = keys_file.both
    for layer, (i, fact) in product(keys_file.layers, enumerate(keys_file.facts)):
        before, _, _ = fact.prompt.partition("{}")
        if before and not before.endswith(" "):
            continue  # refused there
        at = counted_apart(tokenizer, fact.prompt, fact.subject)["last"]
        write = architecture_of(model).write(layer)
        with torch.no_grad(), capture(model, write, inputs=True) as seen:
            model(**encode(tokenizer, [fact.text]).inputs)
        wanted = keys_file.tensor(f"layer{layer}.key_prompt_only")[i]
        error, kind = relative(seen[write][0, at], wanted), keys_file.kind
        if at == fill(fact).span(tokenizer)[1] - 1:
            table.check("key_prompt_only by ROME's rule", kind, error, MEASURED)
        else:
            table.differs("key by ROME's rule, BOS", kind, error, MEASURED)


@cache
def measured(record: Record, layers: tuple[int, ...]):
    """Second moments of the model that a record belongs to."""
    return second_moment(*record.both, record.texts, layers=layers, progress=False)


def test_second_moments(moment_file, table):
    about, kind = moment_file.data, moment_file.kind
    rows = token_ids(moment_file.tokenizer, moment_file.texts)
    lengths = [min(len(row), about["n_positions"]) for row in rows]
    table.same("tokens of each text", kind, lengths, about["token_counts"])
    found = measured(moment_file, tuple(moment_file.layers))
    for name, wanted in moment_file.tensors.items():
        layer, which = re.fullmatch(r"layer(\d+)\.(.+)", name).groups()
        error = relative(found[int(layer)].value, wanted)
        table.check(f"C, {which}", kind, error, MEASURED)
    for name, told in about["layers"].items():
        layer = int(name.split(".")[0])
        if layer not in found:
            continue
        C = found[layer].value
        table.same("C, tokens counted", kind, found[layer].count, told["count"])
        table.same("C, module", kind, found[layer].info["module"], told["module"])
        error = abs(float(C.trace()) / told["trace"] - 1)
        table.check("C, trace", kind, error, MEASURED)
        # The smallest eigenvalue feels float32 by as much as the condition number.
        error = abs(float(torch.linalg.cond(C)) / told["cond"] - 1)
        bound = max(MEASURED, 1e-7 * told["cond"])
        table.check("C, condition number", kind, error, bound)


def test_second_moments_of_an_edited_model_are_others(values_file, table):
    """The original measures what C is missing while it writes layer after layer, so
    that the second layer's C has seen the edit of the first. Here a missing C is
    refused; measured at the same moment, it gives the original's wrong change."""
    model, tokenizer = values_file.both
    facts = values_file.facts
    z = torch.stack([values_file.tensor(f"req{i}.z") for i in range(len(facts))], 1)
    top, names = values_file.data["z_layer"], architecture_of(model)
    lam = float(values_file.settings["mom2_update_weight"])

    def changes(lazily: bool) -> list[LowRank]:
        made: dict[str, LowRank] = {}

        def update(layer, W, K, V):
            with Edit(made if lazily else {}).applied(model):
                C = second_moment(
                    model, tokenizer, values_file.texts, layer=layer, progress=False
                )
            made[names.write(layer)] = memit_update(W, K, V, C.factor, lam)
            return made[names.write(layer)]

        plan, contexts = shares(range(top + 1)), values_file.contexts
        spread(
            model,
            tokenizer,
            facts,
            plan=plan,
            targets={top: z},
            update=update,
            contexts=contexts,
        )
        return list(made.values())

    early, late = changes(False), changes(True)
    assert relative(late[0].dense(), early[0].dense()) == 0
    size = relative(late[1].dense(), early[1].dense())
    what = "second layer's Δ, C measured too late"
    table.differs(what, values_file.kind, size, WRITTEN)


# Values

PART = {"weight_decay": "decay", "avg_prob_target": "probability"}  # else the same


def check_search(record: Record, found: TargetStates, name: str, table: Table) -> None:
    """Evaluations, start, end and every column of the trajectory of every request."""
    data, tensors = record.data, record.tensors
    done = found.iterations.tolist()
    table.same(f"{name}, evaluations", record.kind, done, data["iterations"])
    floors = data.get("z_relative_change_under_weight_jitter_1e7", [0.0] * len(done))
    for i, floor in enumerate(floors):
        start, value, bound = (
            found.initial[:, i],
            found.values[:, i],
            max(SEARCHED, floor),
        )
        table.compare(name, record, f"req{i}.{name}", value, bound)
        what = f"{name}, start"
        table.compare(what, record, f"req{i}.target_init", start, MEASURED)
        what = f"{name}, δ at the end"
        table.compare(what, record, f"req{i}.delta_final", value - start, bound)
        path = tensors.get(f"req{i}.trajectory", torch.zeros(0, len(data["columns"])))
        for column, wanted in zip(data["columns"], path.T, strict=True):
            mine = found.history[PART.get(column, column)][i, : len(wanted)]
            error = relative(mine, wanted, least=1e-3)
            table.check(f"{name}, {column} by step", record.kind, error, SEARCHED)


def shifts(record: Record, fact: Fact, layer: int, search: ValueSearch):
    """δ at the start of each evaluation, seen from outside: in front of a block."""
    model, tokenizer = record.both
    place = fill(fact).span(tokenizer)[1] - 1
    seen = []

    def look(_block, args):
        seen.append(args[0][0, place].detach().double())  # the bare prompt

    above = submodule(model, site_name(model, layer + 1, "block"))
    hook = above.register_forward_pre_hook(look)
    target_states(model, tokenizer, [fact], layer, search=search)
    hook.remove()
    return torch.stack(seen[1:]) - seen[0]


def check_shifts(
    record: Record,
    found: TargetStates,
    layer: int,
    search: ValueSearch,
    name: str,
    table,
) -> None:
    """δ at every step where all were recorded, else at the last."""
    for i, fact in enumerate(record.facts):
        wanted = record.tensors.get(f"req{i}.delta_per_step")
        if wanted is None:
            continue
        moved = (found.values - found.initial)[:, i]
        error = relative(moved, wanted[-1], least=1e-3)
        table.check(f"{name}, δ at the end", record.kind, error, SEARCHED)
        if len(wanted) < record.data["iterations"][i]:
            continue
        steps = shifts(record, fact, layer, search)
        for mine, theirs in zip(steps, wanted, strict=True):
            error = relative(mine, theirs, least=1e-3)
            table.check(f"{name}, δ by step", record.kind, error, SEARCHED)


def test_values(values_file, table):
    search, layer = values_file.search("block"), values_file.data["z_layer"]
    found = target_states(*values_file.both, values_file.facts, layer, search=search)
    check_search(values_file, found, "z", table)
    check_shifts(values_file, found, layer, search, "z", table)


# MEMIT and EMMET


def method_of(record: Record) -> BatchMethod:
    """The method that the hyperparameters describe."""
    told, n = record.settings, len(record.facts)
    if told.get("update_norm_lambda", 0):
        pytest.skip("EMMET with a penalty on the norm is not part of the methods")
    layers, search = tuple(told["layers"]), record.search("block")
    weight = float(told["mom2_update_weight"])
    if record.data["method"] == "MEMIT":
        return MEMIT(layers=layers, lam=weight, search=search)
    ridge = float(told["emmet_lambda"]) if n > 1 else 0.0  # skipped for one fact
    return EMMET(layers=layers, ridge=ridge, weight=weight, search=search)


def moments_for(record: Record) -> dict:
    """The C that was used; EMMET on some models summed it in another order."""
    suffix = "_emmet" if record.data["method"] == "EMMET" else ""
    return record.moments(record.settings["layers"], suffix)


def recorded_delta(record: Record, layer: int) -> torch.Tensor:
    """The change of a layer; left out of some files for its size."""
    if f"layer{layer}.delta" in record.tensors:
        return record.tensor(f"layer{layer}.delta")
    return record.tensor(f"layer{layer}.resid") @ record.tensor(f"layer{layer}.adj_k").T


def test_closed_forms(closed_file, table):
    """From the recorded keys, residuals and C: in float64, so 1e-6 is generous."""
    record, method = closed_file, method_of(closed_file)
    at = record.data["method"], record.kind
    plan = {share.layer: share for share in shares(method.layers)}
    for layer, moment in moments_for(record).items():
        K, R, adj_k, cur = (
            record.tensor(f"layer{layer}.{name}")
            for name in ("K", "resid", "adj_k", "cur_zs")
        )
        residual = (record.tensor("zs") - cur) / plan[layer].divisor
        table.check(
            f"{at[0]} residual, closed form", at[1], relative(residual, R), CLOSED
        )
        for what, V, wanted in (
            ("adj_k", torch.eye(K.shape[1]).double(), adj_k.T),
            ("Δ", R, recorded_delta(record, layer)),
        ):
            W = torch.zeros(len(V), len(K), dtype=torch.float64)
            found = method.update(W, K, V, moment).dense()
            error = relative(found, wanted)
            table.check(f"{at[0]} {what}, closed form", at[1], error, CLOSED)


def test_the_ridge_of_a_single_fact(single_file, table):
    """One original leaves EMMET's λ out for a single fact, another never does."""
    told = single_file.settings
    ridge = float(told["emmet_lambda"] * told["mom2_update_weight"])
    if ridge == 0:
        pytest.skip("λ is zero")
    for layer, moment in moments_for(single_file).items():
        K, R = (single_file.tensor(f"layer{layer}.{name}") for name in ("K", "resid"))
        W = torch.zeros(len(R), len(K), dtype=torch.float64)
        with_ridge = emmet_update(W, K, R, moment.factor, ridge).dense()
        size = relative(with_ridge, recorded_delta(single_file, layer))
        what = "EMMET Δ of one fact, with its λ"
        table.differs(what, single_file.kind, size, CLOSED)


def test_equal_keys_are_refused_where_the_original_takes_a_pseudo_inverse(equal_file):
    for layer, moment in moments_for(equal_file).items():
        K, R = (equal_file.tensor(f"layer{layer}.{name}") for name in ("K", "resid"))
        assert len(K.T.unique(dim=0)) < K.shape[1]
        W = torch.zeros(len(R), len(K), dtype=torch.float64)
        with pytest.raises(CollidingKeys, match="cannot both be given"):
            emmet_update(W, K, R, moment.factor)


def test_keys_and_residuals_after_each_layer(batch_file, table):
    """From the recorded values: what `spread` hands to the closed form."""
    model, tokenizer = batch_file.both
    record, method, moments = batch_file, method_of(batch_file), moments_for(batch_file)
    Z = record.tensor("zs")
    plan = {share.layer: share for share in shares(method.layers)}

    def update(layer, W, K, V):
        R = V - W @ K
        found = {"K": K, "cur_zs": Z - R * plan[layer].divisor, "resid": R}
        for name, columns in found.items():
            what = f"{name} while layers are written"
            table.compare(what, record, f"layer{layer}.{name}", columns, MEASURED)
        return method.update(W, K, V, moments[layer])

    spread(
        model,
        tokenizer,
        record.facts,
        plan=list(plan.values()),
        targets={max(plan): Z},
        update=update,
        contexts=record.contexts,
    )


def nlls(record: Record, facts: list[Fact]) -> torch.Tensor:
    """Mean negative log-probability of the targets' tokens on the bare prompts."""
    prompts, targets = [fact.text for fact in facts], [fact.target for fact in facts]
    return -score(*record.both, prompts, targets).per_token


def check_effect(record, change: Edit, facts, effect, at: str, bound: float, table):
    """The targets' probabilities before and after a change.

    They are differences of logits of order ten, of which float32 keeps 1e-6.
    """
    if not effect:
        return
    before = nlls(record, facts)
    with change.applied(record.model):
        after = nlls(record, facts)
    for when, mine, limit in (("before", before, MEASURED), ("after", after, bound)):
        wanted = torch.tensor(effect[f"nll_new_{when}"])
        error = float(((mine - wanted).abs() / wanted.clamp(min=1)).max())
        what = "NLL before" if when == "before" else f"NLL after {at}"
        table.check(what, record.kind, error, limit)


def test_updates_from_end_to_end(batch_file, table):
    model, tokenizer = batch_file.both
    record, method, moments = batch_file, method_of(batch_file), moments_for(batch_file)
    zs = searched_states(record.path.parent, tuple(record.facts), method)
    error = max(
        relative(*pair) for pair in zip(zs.T, record.tensor("zs").T, strict=True)
    )
    table.check("zs of a batch", record.kind, error, SEARCHED)
    change = edit(model, tokenizer, record.facts, method=method, moments=moments)
    told = record.data["weight_names"]
    kept = {}
    for layer, (name, delta) in zip(method.layers, change.deltas.items(), strict=True):
        at = "names of weights", record.kind
        table.same(*at, f"{name}.weight", told[str(layer)])
        wanted = recorded_delta(record, layer)
        kept[name] = LowRank.of(wanted.float())
        what = f"{record.data['method']} Δ end to end"
        table.check(what, record.kind, relative(delta.dense(), wanted), WRITTEN)
    for at, done, bound in (
        ("the recorded Δ", Edit(kept), MEASURED),
        ("the edit", change, WRITTEN),
    ):
        effect = record.data.get("effect")
        check_effect(record, done, record.facts, effect, at, bound, table)


@cache
def searched_states(folder: Path, facts: tuple[Fact, ...], method: BatchMethod):
    """The values of a batch; several files share one."""
    record = Record(folder / "any")
    top = max(method.layers)
    found = target_states(*record.both, facts, top, search=method.search)
    return found.values


def test_updates_with_second_moments_measured_here(batch_file, table):
    """Another order of summation moves C by 1e-7, and Δ by that times C's condition."""
    record, method = batch_file, method_of(batch_file)
    mine = measured(record, tuple(record.settings["layers"]))
    for layer, moment in moments_for(record).items():
        K, R = (record.tensor(f"layer{layer}.{x}") for x in ("K", "resid"))
        W = torch.zeros(len(R), len(K), dtype=torch.float64)
        found = method.update(W, K, R, mine[layer]).dense()
        error = relative(found, recorded_delta(record, layer))
        bound = max(WRITTEN, 1e-7 * float(torch.linalg.cond(moment.value)))
        table.check("Δ with C measured here", record.kind, error, bound)


# ROME


def rome_of(record: Record) -> ROME:
    """The method that the hyperparameters describe."""
    told = record.settings
    key = "mean" if told.get("enable_random_prefix_keys") else "mixed"
    key = "prompt" if told.get("enable_prompt_keys") else key
    (layer,) = told["layers"]
    return ROME(layer=layer, key=key, search=record.search("mlp"))


def test_keys_of_rome(rome_file, table):
    """Keys over the templates, and what the write map reads and says in between."""
    model, tokenizer = rome_file.both
    method = rome_of(rome_file)
    write = architecture_of(model).write(method.layer)
    texts = ("{}",) if method.key == "prompt" else rome_file.contexts.given
    for i, fact in enumerate(rome_file.facts):
        asked = [fill(fact, text) for text in texts]
        rows = at_subject(model, tokenizer, asked, write, inputs=True)
        outputs = at_subject(model, tokenizer, asked, write)
        used = 1 if method.key == "mixed" else len(texts)  # the bare prompt, or all
        found = {
            "k_per_template": rows,
            "k_star": rows.mean(0),
            "cur_input": rows[:used].mean(0),
            "cur_output": outputs[:used].mean(0),
        }
        for name, mine in found.items():
            table.compare(f"ROME {name}", rome_file, f"req{i}.{name}", mine, MEASURED)


def inverse_of(record: Record) -> torch.Tensor | None:
    """The inverse of C that the original used, from any file of the same layer."""
    for other in [record, *record.beside("5_rome_*")]:
        same = other.settings["layers"] == record.settings["layers"]
        if same and "C_inv" in other.tensors:
            return other.tensors["C_inv"]
    return None


def test_closed_form_of_rome(rome_file, table):
    """By the original's float32 inverse, and by a float64 solution in its place."""
    record, method, t = rome_file, rome_of(rome_file), rome_file.tensors
    C = record.moments([method.layer])[method.layer]
    inverse = inverse_of(record)
    if inverse is not None:
        error = relative(torch.linalg.inv(C.value), inverse)
        table.check("ROME C⁻¹ in float32", record.kind, error, INVERSE)
    needed = ("k_star", "u", "cur_input", "cur_output", "v", "v_star")
    for i in range(len(record.facts)):
        if not all(f"req{i}.{name}" in t for name in needed):
            continue
        k, u, at, now, v, goal = (t[f"req{i}.{name}"].double() for name in needed)
        W = torch.zeros(len(v), len(k), dtype=torch.float64)
        solved = rome_update(W, k, goal - now, C.factor)  # Δ k* = goal - now
        mine = solved.right[0] / solved.right[0].norm()
        delta = solved.dense() * ((mine @ k) / (mine @ at))  # two keys, if mixed
        found = {
            "ROME u, solved in float64": (mine, u, INVERSE),
            "ROME Δ, solved in float64": (delta, torch.outer(v, u), INVERSE),
            "ROME v, closed form": ((goal - now) / (at @ u), v, CLOSED),
        }
        if inverse is not None:
            full = inverse.double() @ k
            terms = inverse.double().abs() @ k.abs()  # what float32 rounds, then sums
            bound = max(CLOSED, 2**-24 * float(terms.norm() / full.norm()))
            found["ROME u, by the recorded inverse"] = full / full.norm(), u, bound
        for what, (mine, wanted, bound) in found.items():
            table.check(what, record.kind, relative(mine, wanted), bound)
        product = torch.outer(v, u)
        table.compare("ROME Δ = v uᵀ", record, f"req{i}.deltaW", product, CLOSED)


def test_values_of_rome(rome_file, table):
    layer, search = rome_of(rome_file).layer, rome_of(rome_file).search
    found = target_states(*rome_file.both, rome_file.facts, layer, search=search)
    check_search(rome_file, found, "v_star", table)
    check_shifts(rome_file, found, layer, search, "v_star", table)


def test_rome_from_end_to_end(rome_file, table):
    record, method = rome_file, rome_of(rome_file)
    moments = record.moments([method.layer])
    for i, fact in enumerate(record.facts):
        change = edit(*record.both, [fact], method=method, moments=moments)
        ((name, delta),) = change.deltas.items()
        wanted = torch.outer(*(record.tensor(f"req{i}.{x}") for x in ("v", "u")))
        error = relative(delta.dense(), wanted)
        what = f"ROME Δ end to end, key={method.key!r}"
        table.check(what, record.kind, error, WRITTEN)
        told = record.data["weight_names"][str(method.layer)]
        table.same("names of weights", record.kind, f"{name}.weight", told)
        for at, done, bound in (
            ("the recorded Δ", Edit({name: LowRank.of(wanted)}), MEASURED),
            ("the edit", change, WRITTEN),
        ):
            effect = record.data.get("effect", {i: None})[i]
            check_effect(record, done, [fact], effect, at, bound, table)


def test_the_default_of_rome_differs_from_the_released_form(released_file, table):
    """Mixed keys and the place of the essence matter; all have their option."""
    released = rome_of(released_file)
    moments, search = released_file.moments([released.layer]), released.search

    def delta(method: ROME) -> torch.Tensor:
        fact = released_file.facts[:1]
        change = edit(*released_file.both, fact, method=method, moments=moments)
        return next(iter(change.deltas.values())).dense()

    wanted = delta(released)
    for what, other in {
        "one key in place of two": {"key": "mean"},
        "essence at the end": {"search": replace(search, essence="end")},
        "decay squared": {"search": replace(search, decay="square")},
    }.items():
        size = relative(delta(replace(released, **other)), wanted)
        table.differs(f"ROME Δ, {what}", released_file.kind, size, SEARCHED)


# Causal tracing


def traced(record: Record, **options) -> Trace:
    data = record.data
    prompt = data["prompt"].replace(data["subject"], "{}", 1)
    return causal_trace(
        *record.both,
        Fact(data["subject"], prompt, "x"),
        noise=data["noise_level"] / data["embedding_std"],
        sigma=data["embedding_std"],
        **({"noise_unit": record.tensor("noise_unit")} | options),
    )


KINDS = {"hidden": "hidden", "mlp": "mlp", "attn": "attention"}


def options_of(record: Record, name: str) -> dict | None:
    """What to ask for, to get the scores of this name; None if it is unknown."""
    match = re.fullmatch(
        r"scores_(hidden|mlp|attn)(?:_window(\d+)|_(uniform|replace)|"
        r"_(mlp|attn)_severed)?",
        name,
    )
    if match is None:
        return None
    kind, window, noise, severed = match.groups()
    options: dict = {"kind": KINDS[kind]}
    if kind != "hidden":
        options["window"] = int(window or record.data["window"])
    if noise == "uniform":
        options["noise_unit"] = record.tensor("noise_unit_uniform")
    if noise == "replace":
        options["replace"] = True
    if severed:
        options["sever"] = KINDS[severed]
        options["second_noise"] = record.tensor("noise_unit_second_pass")
    return options


def test_traces(trace_file, table):
    data, kind = trace_file.data, trace_file.kind
    for name, wanted in trace_file.tensors.items():
        options = options_of(trace_file, name)
        if options is None:
            continue
        trace = traced(trace_file, **options)
        what = name.replace("scores_", "trace ")
        table.check(what, kind, relative(trace.p_restored, wanted), MEASURED)
        table.same("trace, subject", kind, list(trace.subject), data["subject_range"])
        table.same("trace, tokens", kind, list(trace.tokens), data["input_tokens"])
        table.same("trace, answer", kind, trace.answer, data["answer"])
        table.same("trace, samples", kind, trace.samples, data["samples"])
        error = relative(trace.p_clean, data["high_score"])
        table.check("trace, clean", kind, error, MEASURED)
        low = data["low_score_uniform" if "uniform" in name else "low_score"]
        if "replace" not in name:
            error = relative(trace.p_corrupt, low)
            table.check("trace, corrupted", kind, error, MEASURED)
        check_differences(trace_file, name, trace, table)


def check_differences(record: Record, name: str, trace: Trace, table: Table) -> None:
    """The original severs with two noises, and forgets `replace` in its baseline."""
    if name.endswith("_severed"):
        options = options_of(record, name) | {"second_noise": None}
        once = traced(record, **options).p_restored
        size = float((once - record.tensors[name]).abs().max())
        what = "probability, severed with one noise"
        table.differs(what, record.kind, size, MEASURED)
    if name.endswith("_replace"):
        told = record.data["low_score_replace"]
        error = relative(traced(record).p_corrupt, told)
        table.check("trace, corrupted (replace)", record.kind, error, MEASURED)
        what, size = "probability, baseline of replace", abs(trace.p_corrupt - told)
        table.differs(what, record.kind, size, MEASURED)


def test_the_size_of_embeddings(trace_file, table):
    data = trace_file.data
    subjects = [record["subject"] for record in trace_file.common["facts"]]
    found = embedding_std(*trace_file.both, subjects)
    error = relative(found, data["embedding_std"])
    table.check("size of embeddings", trace_file.kind, error, MEASURED)
    error = relative(3 * found, data["noise_level"])
    table.check("size of the noise", trace_file.kind, error, MEASURED)


# MEND


def mend_batches(record: Record) -> Iterator[tuple[str, list[Fact]]]:
    """The recorded batches of edits, by name."""
    for name, told in record.data["edits"].items():
        if f"{name}.input_ids" in record.tensors:
            known = record.common["facts"]
            requests = [
                r if isinstance(r, dict) else known[r] for r in told["requests"]
            ]
            yield name, [fact_of(request) for request in requests]


def test_mend_gradients(mend_file, table):
    """Also where batches are padded, and their mean is over all answer tokens."""
    model, tokenizer = mend_file.both
    for batch, facts in mend_batches(mend_file):
        rows = answer_rows(
            tokenizer, [fact.text for fact in facts], [fact.target for fact in facts]
        )
        width = rows.ids.shape[1]  # the original also reads the last answer token
        ids = mend_file.tensors[f"{batch}.input_ids"][:, :width]
        mask = rows.mask.bool()
        table.same(
            "MEND, token ids",
            mend_file.kind,
            ids[mask].tolist(),
            rows.ids[mask].tolist(),
        )
        names = names_of(mend_file)
        found = gradient_factors(model, rows, names, reduction="mean")
        for name in names:
            told = f"{batch}.{name}.weight"
            keep = found[name].keep
            for letter, ours in (("u", found[name].u), ("delta", found[name].d)):
                if f"{told}.{letter}" in mend_file.tensors:
                    theirs = mend_file.tensors[f"{told}.{letter}"]
                    error = relative(ours[keep], theirs[:, :width][keep])
                    table.check(f"MEND, {letter}", mend_file.kind, error, EDITED)


def test_mend_transforms(mend_file, table):
    """From the recorded factors: which tokens count, ũ, d̃ and the change."""
    editors = editors_of(mend_file)
    for batch, _ in mend_batches(mend_file):
        for name in names_of(mend_file):
            told, tensors = f"{batch}.{name}.weight", mend_file.tensors
            if f"{told}.u" not in tensors:
                continue
            factors = Factors(tensors[f"{told}.u"], tensors[f"{told}.delta"])
            new = editors.transform({name: factors})[name]
            u, d = new.u.detach(), new.d.detach()
            keep = factors.keep
            change = editors.change(name, factors).dense()
            for what, part, ours in (
                ("MEND, ũ", "u_tilde", u[keep]),
                ("MEND, d̃", "delta_tilde", d[keep]),
                ("MEND, change", "weight_update", change),
            ):
                table.compare(what, mend_file, f"{told}.{part}", ours, EDITED)


def test_mend_from_the_facts_to_the_end(mend_file, table):
    model, tokenizer = mend_file.both
    told = mend_file.data["mend_config"]
    mend = MEND(
        rank=told["rank"],
        blocks=told["n_hidden"] + 1,
        combine=told["combine"],
        shared=told["shared"],
        normalize=told["norm"],
        reduction="mean",
        layers=layers_of(mend_file),
        editors=editors_of(mend_file),
    )
    for batch, facts in mend_batches(mend_file):
        change = edit(model, tokenizer, facts, method=mend)
        for name in names_of(mend_file):
            table.compare(
                "MEND, change from facts",
                mend_file,
                f"{batch}.{name}.weight.weight_update",
                change.deltas[name].dense(),
                EDITED,
            )


# Evaluation


def test_evaluation(eval_file, table):
    for item in eval_file.data["counterfact"]:
        case, result = Case.from_counterfact(item["record"]), item["result"]
        groups = {
            "rewrite": (case.fact.text,),
            "paraphrase": case.paraphrases,
            "neighborhood": case.neighborhood,
        }
        for name, prompts in groups.items():
            answers = {"target_new": case.fact.target, "target_true": case.fact.truth}
            scores = {
                key: score(*eval_file.both, prompts, [answer] * len(prompts))
                for key, answer in answers.items()
            }
            for key, found in scores.items():
                told = result[f"{name}_prompts_probs"]
                nll = torch.tensor([each[key] for each in told])
                error = ((-found.per_token - nll).abs() / nll.clamp(min=1)).max()
                what = f"CounterFact NLL, {name}"
                table.check(what, eval_file.kind, float(error), MEASURED)
            judged = scores["target_true" if name == "neighborhood" else "target_new"]
            wanted = result[f"{name}_prompts_correct"]
            what = f"CounterFact correct, {name}"
            table.same(what, eval_file.kind, judged.correct.tolist(), wanted)


@pytest.mark.parametrize("part", ["zsre", "zsre_true_answers"])
def test_question_answering(eval_file, part, table):
    for item in eval_file.data.get(part, ()):
        record, rewrite = item["record"], item["record"]["requested_rewrite"]
        text = rewrite["prompt"].replace("{}", rewrite["subject"])
        answer = rewrite["target_new"]["str"]
        ids = target_ids(eval_file.tokenizer, answer)
        table.same(f"{part}, target ids", eval_file.kind, ids, item["target_token_ids"])
        other = record["neighborhood_prompts"]  # token by token, each after the last
        unrelated = "".join(each["target"] for each in other)
        unrelated = item.get("source", {}).get("loc_ans", unrelated)
        for name, prompts, told in (
            ("rewrite", [text], answer),
            ("paraphrase", record["paraphrase_prompts"], answer),
            ("neighborhood", [other[0]["prompt"]], unrelated),
        ):
            hits = score(*eval_file.both, prompts, [told] * len(prompts)).hits
            flat = [hit for each in hits for hit in each]
            wanted = item["result"][f"{name}_prompts_correct"]
            table.same(f"{part}, {name}", eval_file.kind, flat, wanted)
