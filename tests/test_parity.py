"""Recorded numbers of the original implementations are reproduced.

`pytest tests/test_parity.py --golden DIR` runs on any folder of the same layout and
prints the largest error of each quantity. What a folder does not hold is not tested;
the committed folder holds the model-dependent numbers of GPT-J only, for its size.
"""

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from edutools.batch import EMMET, MEMIT
from edutools.contexts import Contexts
from edutools.facts import Case, Fact
from edutools.keyvalue import ValueSearch, keys, states
from edutools.methods import edit
from edutools.moments import SecondMoment
from edutools.objective import PARTS
from edutools.rome import ROME
from edutools.scoring import score
from edutools.search import target_states
from edutools.spread import shares, spread
from edutools.tracing import causal_trace, embedding_std

pytestmark = pytest.mark.filterwarnings("ignore:Fact .*the model already says")

FILES = {
    "keys_file": "2_keys",
    "values_file": "4_values_memit_*",
    "batch_file": "5_[me]*",
    "rome_file": "5_*rome*",
    "trace_file": "6_trace_*",
    "eval_file": "8_eval",
}
KEY = {
    "5_rome_L1": "mixed",
    "5_r_rome_L1_prefix_keys": "mean",
    "5_r_rome_L1_prompt_keys": "prompt",
}


def with_models(golden: Path) -> list[Path]:
    """Folders of numbers whose models are there."""
    weights = sorted(golden.glob("models/*/model.safetensors"))
    return [golden / path.parent.name for path in weights]


def pytest_generate_tests(metafunc):
    for name, pattern in FILES.items():
        if name in metafunc.fixturenames:
            found = [
                path.with_suffix("")
                for folder in with_models(metafunc.config.getoption("golden"))
                for path in sorted(folder.glob(f"{pattern}.json"))
            ]
            ids = [f"{path.parent.name}-{path.name}" for path in found]
            metafunc.parametrize(name, found, ids=ids)


@pytest.fixture(scope="module")
def errors(request):
    """Collects the largest error of each quantity; prints the table at the end."""
    worst = defaultdict(float)
    yield worst
    plugins = request.config.pluginmanager
    report = plugins.get_plugin("terminalreporter")
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        report.write_line("")
        report.write_line(f"{'quantity':<36} {'model':<12} largest error")
        for (quantity, model), error in sorted(worst.items()):
            report.write_line(f"{quantity:<36} {model:<12} {error:.1e}")


@cache
def loaded(folder: Path):
    place = folder.parent / "models" / folder.name
    model = AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(place)


def recorded(path: Path):
    text = path.with_name(path.name + ".json").read_text(encoding="utf-8")
    tensors = path.with_name(path.name + ".safetensors")
    return json.loads(text), load_file(tensors) if tensors.exists() else {}


@cache
def common(golden: Path):
    return json.loads((golden / "facts.json").read_text(encoding="utf-8"))


def fact_of(record) -> Fact:
    return Fact(
        subject=record["subject"],
        prompt=record["prompt"],
        target=record["target_new"]["str"],
        truth=record["target_true"]["str"],
    )


def facts_of(data, golden: Path) -> list[Fact]:
    records = data["requests"]
    if isinstance(records, str):  # the first n of the common facts
        records = common(golden)["facts"][: data["n_requests"]]
    return [fact_of(record) for record in records]


def grouped(golden: Path) -> Contexts:
    groups = common(golden)["memit_templates"]
    texts = tuple(text for group in groups for text in group)
    return Contexts(given=texts, average="grouped")


def search_of(settings, contexts: Contexts, site: str) -> ValueSearch:
    return ValueSearch(
        site=site,
        steps=settings["v_num_grad_steps"],
        lr=float(settings["v_lr"]),
        weight_decay=float(settings["v_weight_decay"]),
        kl=float(settings["kl_factor"]),
        clamp=float(settings["clamp_norm_factor"]),
        essence="subject",
        contexts=contexts,
    )


def moments_of(folder: Path, layers) -> dict[int, SecondMoment] | None:
    """The recorded moments; None if the folder lacks one of them."""
    data, tensors = recorded(folder / "3_second_moment")
    names = {layer: f"layer{layer}.moment_f32" for layer in layers}
    if not all(name in tensors for name in names.values()):
        return None
    counts = {int(k.split(".")[0]): v["count"] for k, v in data["layers"].items()}
    return {
        layer: SecondMoment(tensors[name].double() * counts[layer], counts[layer])
        for layer, name in names.items()
    }


def relative(found, wanted) -> float:
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


def test_the_folder_holds_models_and_numbers(golden):
    folders = with_models(golden)
    assert folders
    for folder in folders:
        names = {path.name for path in folder.glob("*.json")}
        for pattern in FILES.values():
            assert any(Path(name).match(f"{pattern}.json") for name in names), pattern


def test_keys_and_states(keys_file, golden, errors):
    model, tokenizer = loaded(keys_file.parent)
    _, tensors = recorded(keys_file)
    facts = [fact_of(record) for record in common(golden)["facts"][:16]]
    plain = Contexts(given=tuple(common(golden)["rome_templates"]))
    for layer in sorted({int(name[5]) for name in tensors}):
        found = {
            "keys_memit": keys(
                model, tokenizer, facts, layer, contexts=grouped(golden)
            ),
            "keys_rome": keys(model, tokenizer, facts, layer, contexts=plain),
            "block_out": states(model, tokenizer, facts, layer),
        }
        for name, columns in found.items():
            error = relative(columns.T, tensors[f"layer{layer}.{name}"])
            at = name, keys_file.parent.name
            errors[at] = max(errors[at], error)
            assert error < 1e-5


def test_values_and_trajectories(values_file, golden, errors):
    model, tokenizer = loaded(values_file.parent)
    data, tensors = recorded(values_file)
    facts = facts_of(data, golden)
    search = search_of(data["hparams"], grouped(golden), "block")
    found = target_states(model, tokenizer, facts, data["z_layer"], search=search)
    assert found.iterations.tolist() == data["iterations"]
    check_values(found, tensors, "z", ("z", values_file.parent.name), errors)


def check_values(found, tensors, name, at, errors):
    for i in range(found.values.shape[1]):
        error = relative(found.values[:, i], tensors[f"req{i}.{name}"])
        errors[at] = max(errors[at], error)
        assert error < 1e-4
        path = tensors[f"req{i}.trajectory"]
        mine = torch.stack([found.history[part][i, : len(path)] for part in PARTS], 1)
        error = float(((mine - path).abs() / (1 + path.abs())).max())
        errors["trajectory of " + at[0], at[1]] = max(
            errors["trajectory of " + at[0], at[1]], error
        )
        assert error < 1e-4


def method_of(data, name: str, contexts: Contexts, n: int):
    settings = data["hparams"]
    layers = tuple(settings["layers"])
    search = search_of(settings, contexts, "block")
    weight = float(settings["mom2_update_weight"])
    if data["method"] == "MEMIT":
        return MEMIT(layers=layers, lam=weight, search=search)
    ridge = float(settings["emmet_lambda"]) if n > 1 else 0.0  # skipped for one fact
    return EMMET(layers=layers, ridge=ridge, weight=weight, search=search)


def test_updates_of_batches_end_to_end(batch_file, golden, errors):
    model, tokenizer = loaded(batch_file.parent)
    data, tensors = recorded(batch_file)
    facts = facts_of(data, golden)
    method = method_of(data, batch_file.name, grouped(golden), len(facts))
    moments = moments_of(batch_file.parent, method.layers)
    assert moments is not None
    change = edit(model, tokenizer, facts, method=method, moments=moments)
    deltas = list(change.deltas.values())
    for layer, delta in zip(method.layers, deltas, strict=True):
        wanted = tensors.get(f"layer{layer}.delta")
        if wanted is None:
            wanted = tensors[f"layer{layer}.resid"] @ tensors[f"layer{layer}.adj_k"].T
        error = relative(delta.dense(), wanted)
        at = f"{data['method']} Δ end to end", batch_file.parent.name
        errors[at] = max(errors[at], error)
        assert error < 1e-3


def test_keys_and_residuals_after_each_layer(batch_file, golden, errors):
    """From the recorded values: what `spread` hands to the closed form."""
    model, tokenizer = loaded(batch_file.parent)
    data, tensors = recorded(batch_file)
    facts = facts_of(data, golden)
    method = method_of(data, batch_file.name, grouped(golden), len(facts))
    moments = moments_of(batch_file.parent, method.layers)
    assert moments is not None

    def update(layer, W, K, V):
        found = {"K": K, "resid": V - W @ K}
        for name, columns in found.items():
            error = relative(columns, tensors[f"layer{layer}.{name}"])
            at = f"{name} while layers are written", batch_file.parent.name
            errors[at] = max(errors[at], error)
            assert error < 1e-5
        return method.update(W, K, V, moments[layer].factor)

    spread(
        model,
        tokenizer,
        facts,
        plan=shares(method.layers),
        targets={method.layers[-1]: tensors["zs"].double()},
        update=update,
        contexts=grouped(golden),
    )


def test_rome_end_to_end(rome_file, golden, errors):
    model, tokenizer = loaded(rome_file.parent)
    data, tensors = recorded(rome_file)
    contexts = Contexts(given=tuple(data["templates"]))
    search = search_of(data["hparams"], contexts, "mlp")
    (layer,) = data["hparams"]["layers"]
    moments = moments_of(rome_file.parent, [layer])
    assert moments is not None
    facts = facts_of(data, golden)
    found = target_states(model, tokenizer, facts, layer, search=search)
    assert found.iterations.tolist() == data["iterations"]
    if rome_file.name == "5_rome_L1":
        check_values(
            found, tensors, "v_star", ("ROME v", rome_file.parent.name), errors
        )
    method = ROME(layer=layer, key=KEY[rome_file.name], search=search)
    for i, fact in enumerate(facts):
        change = edit(model, tokenizer, [fact], method=method, moments=moments)
        (delta,) = change.deltas.values()
        wanted = torch.outer(tensors[f"req{i}.v"], tensors[f"req{i}.u"])
        error = relative(delta.dense(), wanted)
        at = f"ROME Δ, key={method.key!r}", rome_file.parent.name
        errors[at] = max(errors[at], error)
        assert error < 1e-3


def test_the_default_of_rome_differs_from_the_released_form(rome_file, golden):
    """Mixed keys and the place of the essence matter; both have their option."""
    model, tokenizer = loaded(rome_file.parent)
    data, _ = recorded(rome_file)
    search = search_of(data["hparams"], Contexts(given=tuple(data["templates"])), "mlp")
    (layer,) = data["hparams"]["layers"]
    moments = moments_of(rome_file.parent, [layer])
    fact = facts_of(data, golden)[:1]

    def delta(**options):
        method = ROME(layer=layer, **options)
        change = edit(model, tokenizer, fact, method=method, moments=moments)
        return next(iter(change.deltas.values())).dense()

    released = delta(key="mixed", search=search)
    assert relative(delta(key="mean", search=search), released) > 0.02
    at_end = replace(search, essence="end")
    assert relative(delta(key="mixed", search=at_end), released) > 1e-3
    square = replace(search, decay="square")
    assert relative(delta(key="mixed", search=square), released) > 1e-3


def traced(trace_file, **options):
    model, tokenizer = loaded(trace_file.parent)
    data, tensors = recorded(trace_file)
    prompt = data["prompt"].replace(data["subject"], "{}", 1)
    return causal_trace(
        model,
        tokenizer,
        Fact(data["subject"], prompt, "x"),
        sigma=data["embedding_std"],
        **({"noise_unit": tensors["noise_unit"]} | options),
    )


def variants(data, tensors):
    """What was recorded, and the options that ask for it."""
    window = data["window"]
    known = {
        "hidden": {},
        "mlp": {"kind": "mlp", "window": window},
        "attn": {"kind": "attention", "window": window},
        "mlp_window2": {"kind": "mlp", "window": 2},
        "mlp_window10": {"kind": "mlp", "window": 10},
        "hidden_uniform": {"noise_unit": tensors.get("noise_unit_uniform")},
        "hidden_replace": {"replace": True},
    }
    return {k: v for k, v in known.items() if f"scores_{k}" in tensors}


def test_traces(trace_file, golden, errors):
    data, tensors = recorded(trace_file)
    for name, options in variants(data, tensors).items():
        trace = traced(trace_file, **options)
        error = float((trace.p_restored - tensors[f"scores_{name}"]).abs().max())
        at = f"trace {name}", trace_file.parent.name
        errors[at] = max(errors[at], error)
        assert error < 1e-5
        assert list(trace.subject) == data["subject_range"]
        assert list(trace.tokens) == data["input_tokens"]
        assert trace.answer == data["answer"]
        assert trace.p_clean == pytest.approx(data["high_score"], abs=1e-5)
        if name in ("hidden", "mlp", "attn"):
            assert trace.p_corrupt == pytest.approx(data["low_score"], abs=1e-5)


def test_severed_traces(trace_file, errors):
    """The released code draws the noise twice where it holds something, else once."""
    _, tensors = recorded(trace_file)
    if "scores_hidden_mlp_severed" not in tensors:
        assert trace_file.name != "6_trace_0"
        return
    wanted = tensors["scores_hidden_mlp_severed"]
    twice = traced(
        trace_file,
        sever="mlp",
        noise_unit=tensors["noise_unit_second_pass"],
        held_unit=tensors["noise_unit"],
    ).p_restored
    once = traced(trace_file, sever="mlp").p_restored
    found = torch.cat([twice[:, :-1], once[:, -1:]], 1)
    error = float((found - wanted).abs().max())
    at = "trace hidden, MLP severed", trace_file.parent.name
    errors[at] = max(errors[at], error)
    assert error < 1e-5
    assert float((once - wanted)[:, :-1].abs().max()) > 0.02  # one noise: our default


def test_the_size_of_embeddings(trace_file, golden):
    model, tokenizer = loaded(trace_file.parent)
    data, _ = recorded(trace_file)
    subjects = [record["subject"] for record in common(golden)["facts"]]
    found = embedding_std(model, tokenizer, subjects)
    assert found == pytest.approx(data["embedding_std"], rel=1e-5)


def test_evaluation(eval_file, errors):
    model, tokenizer = loaded(eval_file.parent)
    data, _ = recorded(eval_file)
    for item in data["counterfact"]:
        case, result = Case.from_counterfact(item["record"]), item["result"]
        groups = {
            "rewrite": (case.fact.text,),
            "paraphrase": case.paraphrases,
            "neighborhood": case.neighborhood,
        }
        for name, prompts in groups.items():
            new = score(model, tokenizer, prompts, [case.fact.target] * len(prompts))
            true = score(model, tokenizer, prompts, [case.fact.truth] * len(prompts))
            for key, found in {"target_new": new, "target_true": true}.items():
                probs = result[f"{name}_prompts_probs"]
                nll = torch.tensor([each[key] for each in probs])
                error = ((-found.per_token - nll).abs() / nll.clamp(min=1)).max()
                at = "evaluation NLL", eval_file.parent.name
                errors[at] = max(errors[at], float(error))
                assert error < 1e-5
            judged = true if name == "neighborhood" else new
            assert judged.correct.tolist() == result[f"{name}_prompts_correct"]


def test_question_answering(eval_file):
    model, tokenizer = loaded(eval_file.parent)
    data, _ = recorded(eval_file)
    for item in [*data["zsre"], *data["zsre_true_answers"]]:
        record, rewrite = item["record"], item["record"]["requested_rewrite"]
        text = rewrite["prompt"].replace("{}", rewrite["subject"])
        answer = rewrite["target_new"]["str"]
        for name, prompts in {
            "rewrite": [text],
            "paraphrase": record["paraphrase_prompts"],
        }.items():
            found = score(model, tokenizer, prompts, [answer] * len(prompts))
            flat = [hit for hits in found.hits for hit in hits]
            assert flat == item["result"][f"{name}_prompts_correct"]
