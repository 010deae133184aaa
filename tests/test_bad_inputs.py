"""Bad inputs from outside: refused before any work, in our words, with nothing changed.

The checks of shapes and types that other tests run under are off here: what a message
says is what a reader sees.
"""

import copy
import json
import os
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config
from typer.testing import CliRunner

import edutools as edu
from edutools import cli
from edutools.arch import UnknownArchitecture
from edutools.attribution import attribute
from edutools.codebook import Codebook
from edutools.contexts import Contexts
from edutools.exercises import check_rome_update, check_score
from edutools.facts import SubjectNotFound, ZsreCase
from edutools.generation import Generation, generate
from edutools.incontext import InContext, in_context
from edutools.keyvalue import ValueSearch, keys
from edutools.memory import GRACE, memorize
from edutools.mend import Training
from edutools.method import Method
from edutools.moments import load_moments, save_moments
from edutools.neurons import KnowledgeNeurons, find_neurons, rewrite, suppress
from edutools.perplexity import drawdown, perplexity
from edutools.pocket import chosen
from edutools.questions import evaluate_zsre
from edutools.retrieval import embed
from edutools.solve import LowRank
from edutools.testing import TINY_FACTS, tiny_tokenizer
from edutools.writing import evaluate_writing
from tests.bench import (
    AT_MLP,
    FACT,
    INF,
    LONG,
    NAN,
    ROME,
    SEARCH,
    Bench,
    large,
    state,
    wordy,
    written,
)

MEMIT = edu.MEMIT(layers=(0, 1), lam=0.1, search=SEARCH)
EMMET = edu.EMMET(layers=(1,), search=SEARCH)
ALPHA = edu.AlphaEdit(layers=(0, 1), scale="mean", threshold=0.5, search=SEARCH)
ENCORE = edu.ENCORE(layers=(0, 1), lam=0.1, norm=0.1, search=SEARCH)
MERGE = edu.MEMITMerge(layers=(0, 1), lam=0.1, search=SEARCH)
TUNE = edu.FineTune(layers=(1,), steps=2)
CASE = edu.Case(FACT, ("The tower of Paris is in",), ("The Colosseum is in",))
OTHERS = [edu.Case(fact) for fact in TINY_FACTS[1:]]


@pytest.fixture(scope="module", autouse=True)
def as_a_reader_sees_it():
    usual = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", usual)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, as_a_reader_sees_it) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def untouched(bench, monkeypatch):
    """Models and files are at the end what they were at the beginning."""
    monkeypatch.chdir(bench.folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = {name: state(model) for name, model in bench.models.items()}
    files, noise = written(bench.folder), torch.random.get_rng_state()
    yield bench
    for name, model in bench.models.items():
        assert state(model) == before[name], f"the model {name!r} has changed"
    assert written(bench.folder) == files
    assert torch.equal(torch.random.get_rng_state(), noise)


@dataclass(frozen=True)
class Bad:
    """A call with a bad input, and what the refusal must say.

    Args:
        call: the call, on a bench.
        error: exactly this type.
        given: what was given, as the message shows it.
        wanted: what is wanted or to be done; a regular expression.
        late: the fault shows only in the course of the work.
    """

    call: Callable[[Bench], Any]
    error: type[Exception]
    given: str
    wanted: str
    late: bool = False


def of(kind: type, **settings: Any) -> Callable[[Bench], Any]:
    return lambda _: kind(**settings)


def tuned(**settings: Any) -> Callable[[Bench], Any]:
    return of(edu.FineTune, **settings)


def traced(**options: Any) -> Callable[[Bench], Any]:
    fact = options.pop("fact", FACT)
    options = {"samples": 2} | options
    return lambda b: edu.causal_trace(b.model, b.tokenizer, fact, **options)


def continued(prompts: Any = ("Anna lives in",), **options: Any) -> Callable:
    options = {"max_new_tokens": 2} | options
    return lambda b: generate(b.model, b.tokenizer, prompts, **options)


def learned(b: Bench) -> edu.MEND:
    """A MEND with networks for the bench's model."""
    return edu.MEND(layers=(1,), rank=2).start(b.model)


def fitted(model: Any = "taught", **options: Any) -> Callable[[Bench], Any]:
    """A training of MEND; the model by its name on the bench."""

    def call(b: Bench) -> Any:
        given = {"tokenizer": b.tokenizer, "cases": [CASE, *OTHERS]} | options
        tokenizer, cases = given.pop("tokenizer"), given.pop("cases")
        given = {"held_out": OTHERS, "progress": False} | given
        mend = edu.MEND(layers=(1,), rank=2)
        return mend.fit(b.models.get(model), tokenizer, cases, **given)

    return call


def evaluated(cases: Any = (CASE,), **options: Any) -> Callable[[Bench], Any]:
    return lambda b: edu.evaluate(b.model, b.tokenizer, cases, **options)


def measured(texts: Any = ("It is Paris.",), **options: Any) -> Callable[[Bench], Any]:
    options = {"layer": 1, "progress": False} | options
    return lambda b: edu.second_moment(b.model, b.tokenizer, texts, **options)


FACTS = {
    "prompt with two slots": Bad(
        of(edu.Fact, subject="Anna", prompt="{} and {}", target="Rome"),
        ValueError,
        "'{} and {}'",
        r"exactly one '\{\}' where the subject goes.* Write e\.g\.",
    ),
    "prompt without a slot": Bad(
        of(edu.Fact, subject="Anna", prompt="Anna is in", target="Rome"),
        ValueError,
        "'Anna is in'",
        "exactly one",
    ),
    "empty subject": Bad(
        of(edu.Fact, subject=" \n", prompt="{} is in", target="Rome"),
        ValueError,
        r"' \n'",
        r"Fact\.subject must not be empty",
    ),
    "empty target": Bad(
        of(edu.Fact, subject="Anna", prompt="{} is in", target=""),
        ValueError,
        "''",
        r"Fact\.target must not be empty",
    ),
    "target that is a number": Bad(
        of(edu.Fact, subject="Anna", prompt="{} is", target=3),
        TypeError,
        "3",
        r"Fact\.target must be text",
    ),
    "paraphrases in one text": Bad(
        of(edu.Case, fact=FACT, paraphrases="The tower is in"),
        TypeError,
        "'The tower is in'",
        r"Case\.paraphrases must be a list of texts",
    ),
    "case of a text": Bad(
        of(edu.Case, fact="Anna lives in Rome"),
        TypeError,
        "'Anna lives in Rome'",
        r"Case\.fact must be a Fact",
    ),
    "question without its subject": Bad(
        lambda _: ZsreCase("Who?", "Who is it?", "Ada", "Is it?", "no", "Linux"),
        SubjectNotFound,
        "'Linux'",
        "must hold the subject",
    ),
    "facts None": Bad(
        lambda b: b.edit(None), TypeError, "None", "facts must be a list, each item a F"
    ),
    "one fact": Bad(lambda b: b.edit(FACT), TypeError, "not one", r"Pass \[fact\]"),
    "facts in a dict": Bad(
        lambda b: b.edit({"a": FACT}), TypeError, "{'a': Fact(", "facts must be a list"
    ),
    "facts in one text": Bad(
        lambda b: b.edit("Paris"), TypeError, "'Paris'", "each item a Fact"
    ),
    "a text among facts": Bad(
        lambda b: b.edit([FACT, "Paris"]), TypeError, "'Paris'", r"facts\[1\] must be a"
    ),
    "cases for facts": Bad(
        lambda b: b.edit([CASE]), TypeError, "Case(fact=", r"facts\[0\] must be a Fact"
    ),
    "no facts": Bad(
        lambda b: b.edit([]), ValueError, "Got no facts", "at least one Fact"
    ),
    "no facts, one by one": Bad(
        lambda b: edu.edit_each(b.model, b.tokenizer, None, method=ROME),
        TypeError,
        "None",
        "facts must be a list",
    ),
    "several facts for ROME": Bad(
        lambda b: b.edit(TINY_FACTS), ValueError, "got 3", "Use MEMIT or EMMET"
    ),
    "prompt beyond the context": Bad(
        lambda b: b.edit([LONG]),
        ValueError,
        "has 6010 tokens",
        "reads at most 64. Shorten the prompt",
    ),
    "prompt beyond the context, fine-tuned": Bad(
        lambda b: b.edit([LONG], TUNE), ValueError, "tokens", "reads at most 64"
    ),
    "subject that vanishes": Bad(
        lambda b: b.edit(
            [edu.Fact("Zoë", "{} is in", "Rome")], tokenizer=wordy(), moments={}
        ),
        SubjectNotFound,
        "'Zoë'",
        "lost in tokenization.* Write it in characters",
    ),
    "target that vanishes": Bad(
        lambda b: b.edit([edu.Fact("Rome", "{} is in", "Zoë")], tokenizer=wordy()),
        ValueError,
        "'Zoë'",
        "has no tokens in this tokenizer's vocabulary",
    ),
    "two facts with one key": Bad(
        lambda b: b.edit([FACT, replace(FACT, target="Moscow")], EMMET),
        ValueError,
        "('The Eiffel Tower', 'The Eiffel Tower')",
        "nearly the same key.* Drop one, or use MEMIT",
    ),
    "facts that contradict each other": Bad(
        lambda b: b.edit([FACT, replace(FACT, target="Moscow")], MERGE),
        ValueError,
        "'Moscow'",
        "contradict each other.* Drop one",
    ),
    "more facts than dimensions": Bad(
        lambda b: b.edit(
            [edu.Fact(f"Anna {i}", "{} is in", "Rome") for i in range(25)], EMMET
        ),
        ValueError,
        "25 facts",
        "at most 24 at once, or use MEMIT",
    ),
}

LAYERS = {
    f"layer {layer!r} of {name}": Bad(
        call,
        TypeError if not isinstance(layer, int) or layer is True else ValueError,
        repr(layer),
        "whole number" if not isinstance(layer, int) or layer is True else "0 to 2",
    )
    for layer in (-1, 99, True, 2.5, "5")
    for name, call in {
        "ROME": lambda b, x=layer: b.edit(method=edu.ROME(layer=x)),
        "MEMIT": lambda b, x=layer: b.edit(method=edu.MEMIT(layers=(x,))),
        "FineTune": lambda b, x=layer: b.edit(method=edu.FineTune(layers=(x,))),
        "GRACE": lambda b, x=layer: memorize(
            b.model, b.tokenizer, [FACT], method=GRACE(layer=x)
        ),
        "second_moment": measured(layer=layer),
    }.items()
} | {
    "a layer twice": Bad(
        of(edu.MEMIT, layers=(4, 3, 4)), ValueError, "[4, 3, 4]", "each once"
    ),
    "no layer": Bad(of(edu.EMMET, layers=()), ValueError, "[]", "at least one layer"),
    "layers in one number": Bad(
        of(edu.MEMIT, layers=5), TypeError, "5", "MEMIT.layers.* a tuple of whole num"
    ),
    "layers in one text": Bad(
        tuned(layers="34"), TypeError, "'34'", "a tuple of whole numbers"
    ),
    "both layer and layers": Bad(
        measured(layers=[1]), ValueError, "layers=[1]", "Give either layer=17 or layers"
    ),
    "layers of a moment in one number": Bad(
        measured(layer=None, layers=1), TypeError, "not one", r"Pass \[layer\]"
    ),
    "no layer of a moment": Bad(
        measured(layer=None, layers=[]), ValueError, "is empty", "at least one layer"
    ),
    "the last layer": Bad(
        lambda b: b.edit(
            method=replace(ROME, layer=2, covariance="identity"), moments=None
        ),
        ValueError,
        "Layer 2 is the last",
        "Choose an earlier layer",
    ),
}

SETTINGS = {
    "lam 0": Bad(of(edu.MEMIT, lam=0.0), ValueError, "0.0", "positive.* use EMMET"),
    "lam negative": Bad(of(edu.MEMITMerge, lam=-1.0), ValueError, "-1.0", "positive"),
    "lam nan": Bad(of(edu.MEMIT, lam=NAN), ValueError, "nan", "MEMIT.lam.* finite"),
    "lam infinite": Bad(of(edu.ENCORE, lam=INF), ValueError, "inf", "a finite number"),
    "lam in words": Bad(of(edu.MEMIT, lam="5"), TypeError, "'5'", "must be a number"),
    "lam True": Bad(of(edu.MEMIT, lam=True), TypeError, "True", "must be a number"),
    "ridge negative": Bad(
        of(edu.EMMET, ridge=-0.5), ValueError, "ridge=-0.5", "ridge >= 0"
    ),
    "ridge infinite": Bad(of(edu.EMMET, ridge=INF), ValueError, "inf", "finite"),
    "norm nan": Bad(of(edu.ENCORE, norm=NAN), ValueError, "nan", "ENCORE.norm.*finite"),
    "l2 negative": Bad(of(edu.AlphaEdit, l2=-1.0), ValueError, "l2=-1.0", "l2 > 0"),
    "unknown scale": Bad(
        of(edu.AlphaEdit, scale="x"), ValueError, "'x'", "'absolute', 'mean'"
    ),
    "unknown key": Bad(of(edu.ROME, key="men"), ValueError, "'men'", "choose one of"),
    "a dict for the search": Bad(
        of(edu.MEMIT, search={"steps": 3}),
        TypeError,
        "{'steps': 3}",
        "MEMIT.search.* must be a ValueSearch",
    ),
    "search at the wrong place": Bad(
        of(edu.MEMIT, search=AT_MLP), ValueError, "'mlp'", r"Use ValueSearch\(site"
    ),
    "steps 2.5": Bad(
        of(ValueSearch, steps=2.5), TypeError, "2.5", "steps.* a whole number"
    ),
    "steps 0": Bad(of(ValueSearch, steps=0), ValueError, "0", "at least 1"),
    "kl nan": Bad(
        of(ValueSearch, kl=NAN), ValueError, "nan", "ValueSearch.kl.* finite"
    ),
    "stop_loss nan": Bad(of(ValueSearch, stop_loss=NAN), ValueError, "nan", "finite"),
    "clamp negative": Bad(of(ValueSearch, clamp=-1.0), ValueError, "-1.0", "positive"),
    "contexts None": Bad(
        of(ValueSearch, contexts=None), TypeError, "None", "must be a Contexts"
    ),
    "context with two slots": Bad(
        of(Contexts, given=("{}", "{} {}")), ValueError, "'{} {}'", "exactly one"
    ),
    "a number among contexts": Bad(
        of(Contexts, given=("{}", 3)), TypeError, "('{}', 3)", "a tuple of texts or N"
    ),
    "prefixes not in pairs": Bad(
        of(Contexts, prefixes=(5, 10)), TypeError, "(5, 10)", "tuples of 2 whole numbe"
    ),
    "contexts beyond the context": Bad(
        lambda b: b.edit(
            method=replace(
                ROME, search=ValueSearch(contexts=Contexts(prefixes=((1, 99),)))
            )
        ),
        ValueError,
        "65 tokens",
        "reads at most 64. Shorten the prompt or the contexts",
    ),
    "epsilon nan": Bad(tuned(epsilon=NAN), ValueError, "nan", "epsilon.* finite"),
    "batch_size of fine-tuning 0": Bad(
        tuned(batch_size=0), ValueError, "0", "batch_size.* at least 1"
    ),
    "lr in words": Bad(tuned(lr="0.1"), TypeError, "'0.1'", "must be a number"),
    "radius 0": Bad(of(GRACE, layer=1, radius=0.0), ValueError, "0.0", "positive"),
    "steps of GRACE 2.5": Bad(
        of(GRACE, layer=1, steps=2.5), TypeError, "2.5", "a whole number"
    ),
    "share above 1": Bad(
        of(KnowledgeNeurons, share=1.5), ValueError, "1.5", "between 0 and 1"
    ),
    "added share nan": Bad(
        of(KnowledgeNeurons, add=NAN), ValueError, "nan", "finite number"
    ),
    "ratio of two": Bad(
        of(InContext, ratio=(1, 2)), TypeError, "(1, 2)", "must be 3 whole numbers"
    ),
    "template without a question": Bad(
        of(InContext, template="New Fact: {fact}"), ValueError, "{prompt}", "must hold"
    ),
    "tokens of a text 2.5": Bad(
        of(Generation, tokens=2.5), TypeError, "2.5", "a whole number"
    ),
    "edits not in groups": Bad(
        of(Training, edits=3, together=2), ValueError, "3", "a multiple of"
    ),
    "unknown setting": Bad(
        lambda _: Method.from_dict({"method": "MEMIT", "lamb": 1.0}),
        ValueError,
        "'lamb'",
        "Did you mean 'lam'",
    ),
    "setting of the wrong type": Bad(
        lambda _: Method.from_dict({"method": "ROME", "layer": "5"}),
        TypeError,
        "'5'",
        "ROME.layer.* a whole number",
    ),
    "search that is a number": Bad(
        lambda _: Method.from_dict({"method": "MEMIT", "search": 3}),
        TypeError,
        "3",
        "ValueSearch needs names and values",
    ),
    "settings in a list": Bad(
        lambda _: Method.from_dict(["ROME"]), TypeError, "['ROME']", "names and values"
    ),
    "unknown method": Bad(
        lambda _: Method.from_dict({"method": "ROMEO"}), ValueError, "'ROMEO'", "Known:"
    ),
    "preset of another model": Bad(
        lambda _: edu.MEMIT.preset("gpt2-large"),
        ValueError,
        "'gpt2-large'",
        "Known: .* Give the settings yourself",
    ),
    "preset of a loaded model": Bad(
        lambda b: edu.MEMIT.preset(b.model), TypeError, "Llama", "the name of one"
    ),
    "class for a method": Bad(
        lambda b: b.edit(method=edu.ROME), TypeError, "<class", r"such as ROME\(layer=5"
    ),
    "name for a method": Bad(
        lambda b: b.edit(method="ROME"), TypeError, "'ROME'", "method must be a Method"
    ),
    "class for GRACE": Bad(
        lambda b: memorize(b.model, b.tokenizer, [FACT], method=GRACE),
        TypeError,
        "<class",
        r"GRACE such as GRACE\(layer=5",
    ),
}

MOMENTS = (
    {
        "no moments": Bad(
            lambda b: b.edit(moments=None), ValueError, "[1]", "second_moment.*layer=1"
        ),
        "moments without a layer": Bad(
            lambda b: b.edit(moments=b.moments[1]),
            TypeError,
            "SecondMoment",
            r"\{5: moment",
        ),
        "moments in a list": Bad(
            lambda b: b.edit(moments=[b.moments[1]]), TypeError, "[SecondM", "a Mapping"
        ),
        "a tensor for a moment": Bad(
            lambda b: b.edit(moments={1: b.moments[1].total}),
            TypeError,
            "tensor(",
            r"moments\[1\] must be a SecondMoment",
        ),
        "a moment by its name": Bad(
            lambda b: b.edit(moments={"1": b.moments[1]}),
            ValueError,
            "[1]",
            "has none for",
        ),
        "moment of another layer": Bad(
            lambda b: b.edit(moments={1: b.moments[0]}),
            ValueError,
            "at layer 0",
            "Measure it at layer 1",
        ),
        "moment of another model": Bad(
            lambda b: b.edit(moments=b.measured("other")),
            ValueError,
            "moments[1]",
            "token embedding differs.* Measure it on this model",
        ),
        "moment of another size": Bad(
            lambda b: b.edit(moments=b.measured("gptj")),
            ValueError,
            "32 x 32",
            "keys of size 24. Measure it on this model",
        ),
        "too few tokens": Bad(
            lambda b: b.edit(moments=b.at(1, count=23)),
            ValueError,
            "23 tokens",
            "Use at least 24 tokens",
        ),
    }
    | {
        f"nan in a moment for {type(method).__name__}": Bad(
            lambda b, how=method: b.edit(
                method=how, moments=b.at(1, total=b.moments[1].total * NAN)
            ),
            ValueError,
            "moments[1] holds a NaN",
            "Measure it again",
        )
        for method in (ROME, MEMIT, EMMET, ALPHA, ENCORE, MERGE)
    }
    | {
        f"too few different tokens for {type(method).__name__}": Bad(
            lambda b, how=method: b.edit(
                method=how, moments=b.measured("taught", texts=["Paris"] * 40)
            ),
            ValueError,
            "of 24",
            "too few different tokens. Use at least 24, better ten times",
        )
        for method in (ROME, MEMIT, replace(EMMET, ridge=0.1), MERGE)
    }
    | {
        "no direction free for AlphaEdit": Bad(
            lambda b: b.edit(method=replace(ALPHA, threshold=1e-30)),
            ValueError,
            "1e-30",
            "Choose a larger threshold",
        ),
        "keys of earlier edits for MEMIT": Bad(
            lambda b: b.edit(
                method=MEMIT,
                moments={
                    k: m.remember(torch.ones(24, 2)) for k, m in b.moments.items()
                },
            ),
            ValueError,
            "remembers 2 earlier keys",
            "Use AlphaEdit or ENCORE",
        ),
        "keys of another size remembered": Bad(
            lambda b: b.moments[1].remember(torch.ones(5, 1)),
            ValueError,
            "size 5",
            "Take those of the same layer",
        ),
        "moments of two layers merged": Bad(
            lambda b: b.moments[0].merge(b.moments[1]),
            ValueError,
            "'layer': 0",
            "Merge those of one layer",
        ),
        "remembering with a class": Bad(
            lambda b: edu.remember(
                b.model, b.tokenizer, [FACT], method=edu.ENCORE, moments=b.moments
            ),
            TypeError,
            "<class",
            "method must be a BatchMethod",
        ),
        "remembering without moments": Bad(
            lambda b: edu.remember(
                b.model, b.tokenizer, [FACT], method=ENCORE, moments={}
            ),
            ValueError,
            "none for [0, 1]",
            "Give those with which the facts were written",
        ),
        "remembering no facts": Bad(
            lambda b: edu.remember(
                b.model, b.tokenizer, [], method=ENCORE, moments=b.moments
            ),
            ValueError,
            "Got no facts",
            "at least one",
        ),
        "one text to measure on": Bad(
            measured("It is Paris."), TypeError, "not one", r"Pass \[text\]"
        ),
        "no text to measure on": Bad(
            lambda b: b.measured("gptj", texts=["", ""]),
            ValueError,
            "have no tokens",
            "Give one that is not empty",
        ),
        "a number among texts": Bad(
            measured(["It is", 3]), TypeError, "3", r"texts\[1\] must be text"
        ),
        "batch_tokens 0": Bad(
            measured(batch_tokens=0), ValueError, "0", "batch_tokens.* at least 1"
        ),
        "moment of a model with nan": Bad(
            lambda b: b.measured("broken", layers=[2]),
            ValueError,
            "keys of layer 2",
            "float32 or bfloat16",
            late=True,
        ),
        "moment kept in float16": Bad(
            lambda b: save_moments(b.moments, b.folder / "new", dtype=torch.float16),
            ValueError,
            "torch.float16",
            "kept in float64 or float32",
        ),
    }
)

MODELS = (
    {
        "name for a model": Bad(
            lambda b: edu.edit("gpt2", b.tokenizer, [FACT], method=ROME),
            TypeError,
            "'gpt2'",
            r"edutools\.load and AutoModelForCausalLM",
        ),
        "model and tokenizer swapped": Bad(
            lambda b: edu.evaluate(b.tokenizer, b.model, [CASE]),
            TypeError,
            "LlamaForCausalLM",
            "tokenizer must be the model's",
        ),
        "no tokenizer": Bad(
            lambda b: b.edit(tokenizer=None), TypeError, "None", "AutoTokenizer"
        ),
        "unknown architecture": Bad(
            lambda b: edu.edit(torch.nn.Identity(), b.tokenizer, [FACT], method=ROME),
            UnknownArchitecture,
            "'Identity'",
            r"Known: .* Set model\.architecture",
        ),
        "quantized weights": Bad(
            lambda b: b.edit(on="packed"),
            UnknownArchitecture,
            "torch.int8",
            "Load the model in float32, float16 or bfloat16",
        ),
        "edit applied to quantized weights": Bad(
            lambda b: b.change.apply_(b.models["packed"]),
            UnknownArchitecture,
            "torch.int8",
            "cannot be edited in place",
        ),
        "weights that overflow float16": Bad(
            lambda b: b.edit(method=replace(ROME, covariance="identity"), on="half"),
            RuntimeError,
            "nan",
            "float16 overflows easily",
            late=True,
        ),
        "loss that is no number": Bad(
            lambda b: b.edit(method=TUNE, on="broken"),
            RuntimeError,
            "nan",
            "Look whether its weights are finite",
            late=True,
        ),
        "evaluating a model with nan": Bad(
            lambda b: edu.evaluate(b.models["broken"], b.tokenizer, [CASE]),
            RuntimeError,
            "nan",
            "bfloat16 and float32 do not",
            late=True,
        ),
        "tracing a model with nan": Bad(
            lambda b: edu.causal_trace(
                b.models["broken"], b.tokenizer, FACT, samples=2
            ),
            RuntimeError,
            "nan",
            "weights are finite",
            late=True,
        ),
        "writing with a model with nan": Bad(
            lambda b: generate(b.models["broken"], b.tokenizer, ["Anna"]),
            RuntimeError,
            "nan",
            "weights are finite",
            late=True,
        ),
    }
    | {
        f"{name} on the meta device": Bad(
            call, ValueError, "meta device", "Load it so that this part stays"
        )
        for name, call in {
            "edit": lambda b: b.edit(on="flat"),
            "fine-tuning": lambda b: b.edit(method=TUNE, on="flat"),
            "applying": lambda b: b.change.apply_(b.models["flat"]),
            "second moment": lambda b: b.measured("flat"),
            "evaluation": lambda b: edu.evaluate(b.models["flat"], b.tokenizer, [CASE]),
            "trace": lambda b: edu.causal_trace(b.models["flat"], b.tokenizer, FACT),
            "generation": lambda b: generate(b.models["flat"], b.tokenizer, ["Anna"]),
        }.items()
    }
    | {
        f"tokenizer of another model: {name}": Bad(
            call,
            ValueError,
            "400 tokens only",
            "Use the tokenizer that belongs to the mod",
        )
        for name, call in {
            "edit": lambda b: b.edit(tokenizer=large()),
            "contexts": lambda b: b.edit(method=edu.ROME(layer=1), tokenizer=large()),
            "fine-tuning": lambda b: b.edit(method=TUNE, tokenizer=large()),
            "second moment": lambda b: b.measured("taught", tokenizer=large()),
            "evaluation": lambda b: edu.evaluate(b.model, large(), [CASE]),
            "trace": lambda b: edu.causal_trace(b.model, large(), FACT, samples=2),
            "generation": lambda b: generate(b.model, large(), ["Anna"]),
            "perplexity": lambda b: perplexity(b.model, large(), ["Anna is"]),
            "codebook": lambda b: memorize(
                b.model, large(), [FACT], method=GRACE(layer=1, steps=2)
            ),
            "similar texts": lambda b: embed(b.model, large(), ["Anna"]),
        }.items()
    }
)


def twice(b: Bench) -> None:
    undo = b.change.apply_(copy.deepcopy(b.model))
    undo()
    undo()


def out_of_order(b: Bench) -> None:
    model = copy.deepcopy(b.model)
    first = b.change.apply_(model)
    b.change.apply_(model, strict=False)
    first()


def huge(b: Bench) -> edu.Edit:
    """An edit whose first change fits into float16, and whose second does not."""
    (name,) = b.change.deltas
    left, right = b.change.deltas[name].left, b.change.deltas[name].right
    first = LowRank(0.01 + 0 * left, 0.01 + 0 * right)
    second = LowRank(300 + 0 * left, 300 + 0 * right)
    return edu.Edit({name.replace(".1.", ".0."): first, name: second})


EDITS = {
    "edit for another model": Bad(
        lambda b: b.change.apply_(b.models["other"]),
        ValueError,
        "model.layers.1.mlp.down_proj",
        "Load that model, or pass strict=False",
    ),
    "edit for another architecture": Bad(
        lambda b: b.change.apply_(b.models["gptj"]),
        LookupError,
        "'model.layers.1.mlp.down_proj'",
        "List them with",
    ),
    "edit for a layer of another size": Bad(
        lambda b: edu.Edit(
            {"lm_head": LowRank(torch.ones(3, 1), torch.ones(1, 2))}
        ).apply_(b.model),
        ValueError,
        "(3, 2)",
        "Load the model it was made for",
    ),
    "edit applied to nothing": Bad(
        lambda b: b.change.apply_(None), TypeError, "None", "must be a loaded model"
    ),
    "edit that overflows float16": Bad(
        lambda b: huge(b).apply_(b.models["half"]),
        ValueError,
        "overflows torch.float16",
        "Load the model in bfloat16 or float32",
    ),
    "undone twice": Bad(twice, RuntimeError, "This edit", "undone already"),
    "undone out of order": Bad(
        out_of_order, RuntimeError, "not the last one", "undo the later ones first"
    ),
    "change with nan": Bad(
        lambda b: edu.Edit({"x": LowRank(torch.tensor([[NAN]]), torch.ones(1, 1))}),
        ValueError,
        "The change of x holds a NaN",
        "Look at the keys, values and moments",
    ),
    "change that is a matrix": Bad(
        lambda b: edu.Edit({"x": torch.ones(2, 2)}),
        TypeError,
        "tensor(",
        r"deltas\['x'\] must be a LowRank",
    ),
    "changes in a list": Bad(
        lambda b: edu.Edit([torch.ones(2, 2)]), TypeError, "[tensor(", "lm_head"
    ),
    "factors that do not fit": Bad(
        lambda _: LowRank(torch.ones(3, 2), torch.ones(3, 2)),
        ValueError,
        "(3, 2)",
        r"shapes \(d_out, rank\)",
    ),
    "saved onto a file": Bad(
        lambda b: b.change.save_pretrained(b.folder / "file"),
        FileExistsError,
        "file'",
        "Name a folder",
    ),
    "saved below a file": Bad(
        lambda b: b.change.save_pretrained(b.folder / "file" / "edit"),
        FileExistsError,
        "file'",
        "nothing can be put below it",
    ),
    "saved nowhere": Bad(
        lambda b: b.change.save_pretrained(None), TypeError, "None", "must be a path"
    ),
    "saved with what JSON cannot keep": Bad(
        lambda b: edu.Edit(b.change.deltas, {"x": torch.float32}).save_pretrained(
            b.folder / "new"
        ),
        TypeError,
        "type dtype",
        "Put numbers, texts, lists and dicts there",
    ),
    "moments saved onto a file": Bad(
        lambda b: save_moments(b.moments, b.folder / "file"),
        FileExistsError,
        "file'",
        "Name a folder",
    ),
    "edit that is not there": Bad(
        lambda b: edu.Edit.from_pretrained(b.folder / "gone"),
        FileNotFoundError,
        "gone'",
        "Check the name",
    ),
    "folder without an edit": Bad(
        lambda b: edu.Edit.from_pretrained(b.folder / "empty"),
        FileNotFoundError,
        "empty'",
        "written by Edit.save_pretrained",
    ),
} | {
    f"edit with {fault}": Bad(
        lambda b, name=name: edu.Edit.from_pretrained(b.folder / name),
        ValueError,
        given,
        wanted,
    )
    for fault, (name, given, wanted) in {
        "cut weights": ("cut weights", "'cut weights'", "truncated or damaged.* again"),
        "cut origin": ("cut origin", "'cut origin'", "Copy it again, or make it anew"),
        "a list for its origin": ("listed", "'listed'", "holds no object"),
        "a number for its weights": ("numbered", "'weights' is 3", "damaged"),
        "a name for its method": ("named", "'method' is 'ROME'", "damaged"),
        "another format": ("newer", "'newer'", "not of format 'edutools edit 1'"),
        "a number for a fingerprint": ("marked", "of a is 3", "truncated or damaged"),
        "nan in its weights": ("nan", "holds a NaN", "would ruin the model"),
    }.items()
}

MENDS = {
    f"MEND with {name}": Bad(
        lambda b, name=name: edu.MEND.from_pretrained(b.folder / name),
        ValueError,
        f"'{name}' is damaged or not complete",
        rf"\({wanted}\)\. Copy it again, or train it anew",
    )
    for name, wanted in {
        "no record": r"mend\.json: the part 'record' is 3",
        "no shape": r"mend\.json: the shape of model\S+proj is 'wide'",
        "no mark": r"mend\.json: the part 'embedding' is 3",
        "no layers": r"mend\.json: it lacks 'layers'",
        "rank in words": r"mend\.json: MEND\.rank is 'two'; it must be a whole number",
        "another setting": r"mend\.json: MEND has no setting 'rate'.*",
        "another layer": r"mend\.json: the layers are \[1\], but .*model\.layers\.0.*",
        "another width": r"editors\.safetensors: .*size mismatch.*",
        "a larger rank": r"editors\.safetensors: .*size mismatch.*",
        "half a mend": r"mend\.json: .*line \d+.*",
        "a list": r"mend\.json: mend\.json holds no object",
        "cut networks": r"editors\.safetensors: .*",
        "no numbers": r"editors\.safetensors: \S+ holds a NaN or an infinity",
    }.items()
} | {
    "MEND from nowhere": Bad(
        lambda _: edu.MEND.from_pretrained(None), TypeError, "None", "must be a path"
    ),
    "MEND kept in a file": Bad(
        lambda b: learned(b).save_pretrained(b.folder / "file"),
        FileExistsError,
        "file' is a file",
        "Name a folder",
    ),
    "MEND kept nowhere": Bad(
        lambda b: learned(b).save_pretrained(None), TypeError, "None", "must be a path"
    ),
    "MEND of another model": Bad(
        lambda b: b.edit(method=learned(b), on="other"),
        ValueError,
        "This MEND was trained for",
        "Train one for this model with fit",
    ),
    "MEND of other layers than its networks": Bad(
        lambda b: b.edit(method=replace(learned(b), layers=(0,))),
        ValueError,
        "MEND.layers is [0]",
        "networks do not belong to.* Train new ones",
    ),
    "MEND of weights of another shape": Bad(
        lambda b: b.edit(method=learned(b), on="slim"),
        ValueError,
        "of shape (24, 16)",
        r"that of the model has \(20, 16\)\. Train one",
    ),
    "MEND of a single case": Bad(
        fitted(cases=CASE), TypeError, "not one", r"Pass \[case\]"
    ),
    "MEND of no cases": Bad(
        fitted(cases=None), TypeError, "None", "cases must be a list, each item a Case"
    ),
    "MEND of facts": Bad(
        fitted(cases=TINY_FACTS), TypeError, "Fact(", r"cases\[0\] must be a Case"
    ),
    "MEND of a dict": Bad(
        fitted(cases={"a": CASE}), TypeError, "{'a': Case(", "cases must be a list"
    ),
    "MEND that holds out None": Bad(
        fitted(held_out=None), TypeError, "None", "held_out must be a list"
    ),
    "MEND that holds out a single case": Bad(
        fitted(held_out=CASE), TypeError, "not one", r"held_out must .* Pass \[case\]"
    ),
    "MEND that holds out facts": Bad(
        fitted(held_out=TINY_FACTS), TypeError, "Fact(", r"held_out\[0\] must be a Case"
    ),
    "MEND with a dict for its training": Bad(
        fitted(training={"steps": 1}),
        TypeError,
        "{'steps': 1}",
        r"a Training such as Training\(steps=1000\)",
    ),
    "MEND with a class for its training": Bad(
        fitted(training=Training), TypeError, "'edutools", r"such as Training\(steps"
    ),
    "plan of a MEND by a number": Bad(
        lambda b: edu.MEND(layers=(1,)).plan(b.model, training=3),
        TypeError,
        "3",
        "training must be a Training",
    ),
    "MEND without a tokenizer": Bad(
        fitted(tokenizer=None), TypeError, "None", "must be the model's tokenizer"
    ),
    "MEND without a model": Bad(
        fitted(model=None), TypeError, "None", "must be a loaded model"
    ),
    "MEND of a model without values": Bad(
        fitted(model="flat"), ValueError, "meta", "Load it so that this part stays"
    ),
    "MEND that keeps its state in a file": Bad(
        fitted(checkpoint="file"), FileExistsError, "'file' is a file", "Name a folder"
    ),
    "MEND that keeps its state in a number": Bad(
        fitted(checkpoint=3), TypeError, "3", "checkpoint must be a path"
    ),
    "MEND of a subject that is lost": Bad(
        fitted(
            tokenizer=wordy(), cases=[edu.Case(edu.Fact("Zoë", "{} is in", "Rome"))]
        ),
        SubjectNotFound,
        "'Zoë'",
        "tokens",
    ),
}

FILES = {
    f"{load.__name__} of {name}": Bad(
        lambda b, load=load, name=name: load(b.folder / name), error, given, wanted
    )
    for load, name, error, given, wanted in (
        (edu.load_cases, "gone.json", FileNotFoundError, "gone.json", "Give the path"),
        (
            edu.load_cases,
            "empty",
            FileNotFoundError,
            "empty",
            "the path of a JSON file",
        ),
        (edu.load_cases, "cut.json", ValueError, "cut.json", "cut off.* Copy it again"),
        (edu.load_cases, "latin.json", ValueError, "latin.json", "Save it in UTF-8"),
        (edu.load_cases, "one.json", ValueError, "a dict", "must hold a list of rec"),
        (edu.load_cases, "null.json", ValueError, "NoneType", "must hold a list"),
        (edu.load_cases, "none.json", ValueError, "0 records", "none that can be read"),
        (edu.load_cases, "text.json", ValueError, "'Anna'", "paraphrase_prompts must"),
        (edu.load_cases, "flat.json", ValueError, "'Anna'", "must be an object"),
        (edu.load_zsre, "text.json", ValueError, "'answers'", "is missing"),
        (
            edu.load_facts,
            "slots.json",
            ValueError,
            "'{} and {}'",
            "record 0: .*exactly",
        ),
        (edu.load_facts, "number.json", ValueError, "7", r"Fact\.subject must be text"),
        (
            load_moments,
            "gone",
            FileNotFoundError,
            "gone",
            "keep them with save_moments",
        ),
        (load_moments, "file", FileNotFoundError, "file", "Measure them"),
        (
            load_moments,
            "cut moments",
            ValueError,
            "(70 bytes)",
            "or measure the second",
        ),
        (load_moments, "uncounted", ValueError, "'many'", "Copy it again"),
        (load_moments, "oblong", ValueError, "(3, 4)", "truncated or damaged"),
        (
            edu.MEND.from_pretrained,
            "empty",
            FileNotFoundError,
            "empty'",
            "MEND.save_pr",
        ),
        (
            edu.MEND.from_pretrained,
            "gone",
            FileNotFoundError,
            "gone'",
            "Check the name",
        ),
        (edu.SecondMoment.load, "gone", FileNotFoundError, "gone'", "Measure one"),
        (Codebook.load, "gone", FileNotFoundError, "gone'", "Write one with memorize"),
        (Codebook.load, "file", ValueError, "(5 bytes)", "write the codebook anew"),
        (
            Codebook.load,
            "moments/moment-1.safetensors",
            ValueError,
            "'edutools second moment 1'",
            "is not a codebook.* Give one that save wrote",
        ),
    )
} | {
    "no source": Bad(
        lambda _: edu.load_cases(None), TypeError, "None", "source must be a path"
    ),
    "split of a file": Bad(
        lambda b: edu.load_cases(b.folder / "one.json", split="train"),
        ValueError,
        "split='train'",
        "Leave them out",
    ),
    "data set without a revision": Bad(
        lambda _: edu.load_cases("hub:owner/name"),
        ValueError,
        "'owner/name'",
        "a commit of 40 hexadecimal digits",
    ),
    "unknown pocket model": Bad(
        lambda _: edu.pocket("gptk"), ValueError, "'gptk'", "Did you mean 'pocket-gptj'"
    ),
    "pocket model by a number": Bad(
        lambda _: edu.pocket(3), TypeError, "3", "name must be text"
    ),
    "folder without a model": Bad(
        lambda b: edu.load(b.folder / "empty"),
        ValueError,
        "empty'",
        "holds no config.json.* what `save_pretrained` writes",
    ),
    "folder that is not there": Bad(
        lambda _: edu.load("./gone"), ValueError, "'./gone'", "there is no such folder"
    ),
}

WORK = {
    "cases None": Bad(evaluated(None), TypeError, "None", "cases must be a list"),
    "one case": Bad(evaluated(CASE), TypeError, "not one", r"Pass \[case\]"),
    "facts for cases": Bad(
        evaluated([FACT]), TypeError, "Fact(subject=", r"cases\[0\] must be a Case"
    ),
    "no cases": Bad(evaluated([]), ValueError, "Got no cases", "at least one Case"),
    "batch_size 0": Bad(
        evaluated(batch_size=0), ValueError, "batch_size is 0", "at least 1"
    ),
    "batch_size 2.5": Bad(
        evaluated(batch_size=2.5), TypeError, "2.5", "a whole number"
    ),
    "generation True": Bad(
        evaluated(generation=True), TypeError, "True", r"such as Generation\(\)"
    ),
    "references without generation": Bad(
        evaluated(references=[["a"]]), ValueError, "references", "Pass generation="
    ),
    "references in one text": Bad(
        lambda b: evaluate_writing(b.model, b.tokenizer, [CASE], references=["It is"]),
        TypeError,
        "not one",
        r"references\[0\] must be several texts",
    ),
    "questions for cases": Bad(
        lambda b: evaluate_zsre(b.model, b.tokenizer, [CASE]),
        TypeError,
        "Case(fact=",
        r"cases\[0\] must be a ZsreCase",
    ),
    "prompts and answers of different number": Bad(
        lambda b: edu.accuracy(b.model, b.tokenizer, ["Anna is", "It"], ["Rome"]),
        ValueError,
        "2 prompts and 1 answers",
        "exactly one answer",
    ),
    "answer that is a number": Bad(
        lambda b: edu.accuracy(b.model, b.tokenizer, ["Anna is"], [3]),
        TypeError,
        "3",
        r"answers\[0\] must be text",
    ),
    "evaluation beyond the context": Bad(
        evaluated([edu.Case(LONG)]), ValueError, "tokens", "reads at most 64"
    ),
    "trace of a text": Bad(
        traced(fact="Anna is in"), TypeError, "'Anna is in'", "fact must be a Fact"
    ),
    "unknown kind of trace": Bad(
        traced(kind="mlps"), ValueError, "'mlps'", "choose one of 'hidden'"
    ),
    "noise nan": Bad(traced(noise=NAN), ValueError, "nan", "noise.* finite"),
    "noise negative": Bad(traced(noise=-1.0), ValueError, "-1.0", "at least 0"),
    "sigma 0": Bad(traced(sigma=0.0), ValueError, "0.0", "sigma.* positive"),
    "samples -1": Bad(traced(samples=-1), ValueError, "samples=-1", "at least 1"),
    "window 2.5": Bad(traced(window=2.5), TypeError, "2.5", "a whole number"),
    "seed None": Bad(traced(seed=None), TypeError, "None", "seed.* a whole number"),
    "noise of nan": Bad(
        traced(noise_unit=torch.full((2, 4, 16), NAN)), ValueError, "noise_unit", "NaN"
    ),
    "truth asked for and missing": Bad(
        traced(fact=edu.Fact("Anna", "{} is in", "Rome"), answer="truth"),
        ValueError,
        "'Anna is in'",
        "Give Fact.truth",
    ),
    "traced subject that vanishes": Bad(
        lambda b: edu.causal_trace(
            b.model, wordy(), edu.Fact("Zoë", "{} is in", "Rome"), samples=2
        ),
        SubjectNotFound,
        "'Zoë'",
        "lost in tokenization",
    ),
    "traces of one fact": Bad(
        lambda b: edu.causal_traces(b.model, b.tokenizer, FACT, samples=2),
        TypeError,
        "not one",
        r"Pass \[fact\]",
    ),
    "average of no traces": Bad(
        lambda _: edu.average_effect([]), ValueError, "none", "traces of one kind"
    ),
    "one prompt": Bad(continued("Anna is"), TypeError, "not one", r"Pass \[text\]"),
    "empty prompt": Bad(
        lambda b: generate(b.models["gptj"], tiny_tokenizer("gptj"), ["", "It"]),
        ValueError,
        "''",
        "nothing follows it",
    ),
    "top_k 0": Bad(continued(top_k=0), ValueError, "top_k=0", "at least 1"),
    "max_new_tokens 2.5": Bad(
        continued(max_new_tokens=2.5), TypeError, "2.5", "a whole number"
    ),
    "max_new_tokens for another number of prompts": Bad(
        continued(max_new_tokens=[1, 2]), ValueError, "2 for 1 prompts", "one number"
    ),
    "continuation beyond the context": Bad(
        continued(max_new_tokens=500), ValueError, "500 more", "lower max_new_tokens"
    ),
    "batch_size of texts -1": Bad(
        continued(batch_size=-1), ValueError, "-1", "batch_size.* at least 1"
    ),
    "one text for perplexity": Bad(
        lambda b: perplexity(b.model, b.tokenizer, "It is"),
        TypeError,
        "not one",
        "Pass",
    ),
    "no text for perplexity": Bad(
        lambda b: perplexity(b.model, b.tokenizer, []), ValueError, "no texts", "one"
    ),
    "drawdown on other texts": Bad(
        lambda b: drawdown(
            perplexity(b.model, b.tokenizer, ["It is"]),
            perplexity(b.model, b.tokenizer, ["It is", "It"]),
        ),
        ValueError,
        "2 of",
        "perplexities of the same texts",
    ),
    "too few facts for examples": Bad(
        lambda b: in_context(b.model, b.tokenizer, [CASE], corpus=OTHERS),
        ValueError,
        "has 0 facts",
        "lower InContext.demonstrations",
    ),
    "facts for examples": Bad(
        lambda b: in_context(b.model, b.tokenizer, [CASE], corpus=TINY_FACTS),
        TypeError,
        "Fact(subject=",
        r"corpus\[0\] must be a Case",
    ),
    "codebook of another model": Bad(
        lambda b: (
            memorize(b.model, b.tokenizer, [FACT], method=GRACE(layer=1, steps=1))
            .applied(b.models["other"])
            .__enter__()
        ),
        ValueError,
        "token embedding",
        "Load that model, or pass strict=False",
        late=True,
    ),
    "no neurons": Bad(
        lambda b: rewrite(b.model, b.tokenizer, FACT, []),
        ValueError,
        "Got no neurons",
        "Lower `threshold`",
    ),
    "neuron that is not there": Bad(
        lambda b: suppress(b.model, [(1, 999)]).__enter__(),
        ValueError,
        "no neuron 999",
        "0 to 23",
    ),
    "neurons without layers": Bad(
        lambda b: rewrite(b.model, b.tokenizer, FACT, [3, 4]),
        TypeError,
        "3",
        "a pair of layer and index",
    ),
    "neurons of one prompt": Bad(
        lambda b: find_neurons(b.model, b.tokenizer, "Anna is in", "Rome"),
        TypeError,
        "not one",
        r"Pass \[text\]",
    ),
    "attribution in no step": Bad(
        lambda b: attribute(b.model, b.tokenizer, ["Anna is"], ["Rome"], steps=0),
        ValueError,
        "steps=0",
        "at least one prompt and one step",
    ),
    "keys of no facts": Bad(
        lambda b: keys(b.model, b.tokenizer, [], 1), ValueError, "no facts", "one"
    ),
    "capture of an unknown module": Bad(
        lambda b: edu.capture(b.model, "model.layers.9").__enter__(),
        LookupError,
        "'model.layers.9'",
        "List them with",
    ),
    "patches in a list": Bad(
        lambda b: edu.patch(b.model, ["lm_head"]).__enter__(),
        TypeError,
        "['lm_head']",
        "a function for each module name",
    ),
    "MEND before its training": Bad(
        lambda b: b.edit(method=edu.MEND(layers=(1,), rank=2), moments=None),
        ValueError,
        "no trained networks",
        r"Train them with fit.*from_pretrained",
    ),
    "MEND without settings to learn from": Bad(
        lambda b: edu.MEND(layers=(1,), rank=2).fit(
            b.model, b.tokenizer, [CASE], held_out=OTHERS, progress=False
        ),
        ValueError,
        "1 subjects",
        "Give more cases, or lower Training.edits",
    ),
    "MEND held out what it learns from": Bad(
        lambda b: edu.MEND(layers=(1,), rank=2).fit(
            b.model,
            b.tokenizer,
            [CASE, *OTHERS],
            held_out=[CASE, *OTHERS],
            training=Training(edits=1, steps=1),
            progress=False,
        ),
        ValueError,
        "'Anna Karenina'",
        "must be about other subjects",
    ),
    "MEND of a layer that is not there": Bad(
        lambda b: edu.MEND(layers=(9,), rank=2).fit(
            b.model, b.tokenizer, [CASE, *OTHERS], held_out=OTHERS, progress=False
        ),
        ValueError,
        "no layer 9",
        "0 to 2",
    ),
}

BAD: Mapping[str, Bad] = {
    f"{part}: {name}": bad
    for part, group in {
        "facts": FACTS,
        "layers": LAYERS,
        "settings": SETTINGS,
        "moments": MOMENTS,
        "models": MODELS,
        "edits": EDITS,
        "files": FILES,
        "trained networks": MENDS,
        "work": WORK,
    }.items()
    for name, bad in group.items()
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_inputs_are_refused(untouched, monkeypatch, bad):
    if not bad.late:
        monkeypatch.setattr(torch.optim.Adam, "step", begun)
    with pytest.raises(bad.error) as caught:
        bad.call(untouched)
    assert type(caught.value) is bad.error
    text = str(caught.value)
    assert bad.given in text
    assert re.search(bad.wanted, text), text
    where = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert Path(where).parent.name == "edutools", f"raised in {where}"


def begun(*_: Any, **__: Any) -> None:
    raise AssertionError("the work has begun")


def test_there_are_enough_bad_inputs():
    assert len(BAD) >= 200
    assert len({bad.wanted for bad in BAD.values()}) >= 120


WHAT = ["--subject", "Anna", "--prompt", "{} is in", "--target", "Rome"]
EDIT = ["edit", "--method", "rome", *WHAT, "--out", "new"]
LINES = {
    "two slots": (["trace", *WHAT[:2], "--prompt", "{} {}"], "'{} {}'", "exactly one"),
    "layer in words": ([*EDIT, "--set", "layer=x"], "'x'", "ROME.layer.* whole number"),
    "steps 2.5": ([*EDIT, "--set", "search.steps=2.5"], "2.5", "steps.* whole number"),
    "lr nan": ([*EDIT, "--set", "search.lr=NaN"], "nan", "lr.* a finite number"),
    "unknown site": ([*EDIT, "--set", "search.site=x"], "'x'", "'block', 'mlp'"),
    "no target": ([*EDIT[:7], "--out", "new"], "subject, prompt", "Give either a file"),
    "a file for a folder": ([*EDIT[:-1], "file/new"], "'file'", "nothing can be put"),
    "a taken folder": (
        [*EDIT[:-1], "edit"],
        "'edit'",
        "Name another place, or add --f",
    ),
    "facts with two slots": (
        ["edit", "--method", "rome", "--facts", "slots.json", "--out", "new"],
        "'{} and {}'",
        "record 0: .* exactly one",
    ),
    "layers in words": (
        ["moments", "--texts", "file", "--layers", "three", "--out", "new"],
        "'three'",
        "write them as '3,4,5' or '3-5'",
    ),
    "no texts": (
        ["moments", "--texts", "gone", "--layers", "5", "--out", "new"],
        "'gone'",
        "Give a text file with a text in each line",
    ),
    "cut cases": (["evaluate", "--cases", "cut.json"], "cut.json", "Copy it again"),
    "no cases at all": (["evaluate", "--cases", "none.json"], "0 records", "none that"),
    "a cut edit": (["show", "cut weights"], "'cut weights'", "truncated or damaged"),
    "nothing to show": (["show", "empty"], "'empty'", "edit.json or .* is missing"),
    "an unknown command": (["shwo"], "'shwo'", "Did you mean 'show'"),
}


@pytest.mark.parametrize(("line", "given", "wanted"), LINES.values(), ids=LINES)
def test_bad_command_lines_are_refused_in_one_line(untouched, line, given, wanted):
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 2
    assert done.stdout == ""
    (text,) = done.stderr.splitlines()
    assert text.startswith("edutools: ")
    assert given in text
    assert re.search(wanted, text), text


ANSWERS = {
    "nothing": (None, "None is not a callable"),
    "no argument": (lambda: 1, "takes other arguments"),
    "no return": (lambda *_: None, "Is there a `return`"),
    "text": (lambda *_: "x", "it returns a str"),
    "nan": (lambda x, *_: x * NAN, "holds a NaN"),
    "a fault": (lambda *_: {}["x"], "it raised KeyError: 'x'"),
}


@pytest.mark.parametrize("check", [check_rome_update, check_score])
@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=ANSWERS)
def test_bad_answers_are_explained(check, answer, message):
    feedback = check(answer)
    assert not feedback
    assert message in feedback.message


def same(first: edu.Edit, second: edu.Edit) -> bool:
    return first.deltas.keys() == second.deltas.keys() and all(
        delta.equal(second.deltas[name]) for name, delta in first.deltas.items()
    )


def nameless():
    """The tokenizer without the tokens that some tokenizers lack."""
    tokenizer = tiny_tokenizer("llama")
    tokenizer.eos_token = tokenizer.pad_token = None
    return tokenizer


STRANGE = {
    "facts from a generator": lambda b: b.edit(fact for fact in [FACT]),
    "a model in training mode": lambda b: b.edit(on="trained"),
    "a tokenizer without EOS and padding": lambda b: b.edit(tokenizer=nameless()),
    "moments of more layers": lambda b: b.edit(moments=b.measured("taught")),
    "a method read from JSON": lambda b: b.edit(
        method=Method.from_dict(json.loads(json.dumps(ROME.to_dict())))
    ),
}


@pytest.mark.parametrize("call", STRANGE.values(), ids=STRANGE)
def test_strange_inputs_that_mean_the_same_give_the_same(untouched, call):
    assert same(call(untouched), untouched.change)


def test_the_order_of_layers_does_not_matter(untouched):
    first, second = (
        untouched.edit(TINY_FACTS, replace(MEMIT, layers=layers))
        for layers in ((0, 1), [1, 0])
    )
    assert same(first, second)


def test_an_edit_is_saved_over_another(bench, tmp_path):
    edu.Edit({"lm_head": LowRank(torch.ones(2, 1), torch.ones(1, 2))}).save_pretrained(
        tmp_path
    )
    bench.change.save_pretrained(tmp_path)
    assert same(edu.Edit.from_pretrained(tmp_path), bench.change)


def test_a_folder_without_permission_is_refused(bench, tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):  # who may write anywhere
        monkeypatch.setattr("edutools.places.os.access", lambda *_: False)
    for save in (
        lambda: bench.change.save_pretrained(tmp_path),
        lambda: save_moments(bench.moments, tmp_path),
    ):
        with pytest.raises(OSError, match=r"no permission to write.* another folder"):
            save()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(bench, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"new' .*\(Read-only file system\)\. Name"):
        bench.change.save_pretrained(bench.folder / "new")


def test_a_name_keeps_what_tells_a_folder_from_a_model_of_the_hub():
    assert chosen("./model") == "./model"
    assert chosen(Path("/some/model")) == "/some/model"


def train(model):
    model.model.layers[0].train()


def hook(model):
    model.lm_head.register_forward_hook(lambda *_: None)


def freeze(model):
    model.lm_head.weight.requires_grad_(False)


def grade(model):
    model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)


def nudge(model):
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight[0, 0] = weight[0, 0].nextafter(torch.tensor(INF))


@pytest.mark.parametrize("change", [train, hook, freeze, grade, nudge])
def test_what_a_call_could_leave_behind_is_seen(bench, change):
    model = copy.deepcopy(bench.model)
    before = state(model)
    assert state(copy.deepcopy(model)) == before
    change(model)
    assert state(model) != before


def test_files_that_are_written_are_seen(tmp_path):
    before = written(tmp_path)
    (tmp_path / "a").write_text("b")
    after = written(tmp_path)
    assert before != after
    (tmp_path / "a").write_text("cd")
    assert written(tmp_path) != after
