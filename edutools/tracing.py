"""Causal tracing: which states carry a fact from the subject to the answer.

Three runs of one prompt: clean, corrupted (noise on the subject's embeddings), and
corrupted with some states put back to what they are in the clean run.

Axes: samples of the noise · tokens of the prompt · layers · batch cells times samples.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import architecture_of, n_layers, submodule
from edutools.checks import number, of_kind, several, shown
from edutools.effects import Trace
from edutools.factored import double
from edutools.facts import Fact, SubjectNotFound
from edutools.hooks import evaluating
from edutools.loaded import input_device, known, not_nan
from edutools.prompts import fill, target_ids, token_ids
from edutools.restore import Restore
from edutools.runs import Runs

__all__ = ["Trace", "causal_trace", "causal_traces", "embedding_std"]

KINDS = ("hidden", "mlp", "attention")


def embedding_std(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subjects: Sequence[str]
) -> float:
    """The standard deviation of the embeddings of these subjects, over all entries.

    Tracing measures its noise in this unit. Each subject is tokenized alone; an
    automatic BOS counts as one of its tokens.

    Raises:
        ValueError: if there is no subject.
        SubjectNotFound: if none of them has a token.

    Source: Meng et al. 2022 (ROME), section 2.1, ν = 3 σ_t; released code.
    Book: sec-tracing-noise
    """
    subjects = several("subjects", subjects, str)
    if not subjects:
        raise ValueError("Got no subjects; embedding_std needs at least one.")
    rows = token_ids(tokenizer, subjects)
    tokens = [token for row in rows for token in row]
    if not tokens:
        raise SubjectNotFound(
            f"None of the subjects {shown(subjects)} has a token. Write them in "
            "characters that the tokenizer knows."
        )
    ids = torch.tensor(tokens, device=input_device(model))
    known(model, ids)
    embed = submodule(model, architecture_of(model).embedding)
    with torch.no_grad():
        return float(embed(ids).float().std())


def causal_trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    *,
    kind: str = "hidden",
    window: int | None = None,
    samples: int = 10,
    noise: float = 3.0,
    sigma: float | None = None,
    seed: int = 0,
    answer: str = "argmax",
    sever: str | None = None,
    replace: bool = False,
    noise_unit: Float[Tensor, "samples subject d_model"] | None = None,
    second_noise: int | Float[Tensor, "samples subject d_model"] | None = None,
    batch_size: int = 512,
) -> Trace:
    r"""Measure how much of the answer restoring each state brings back.

    .. math:: IE(t, l) = P_{*,\,h_t^l \leftarrow clean}[o] - P_*[o]

    An effect says that the state carries what decides the answer in this prompt. It
    does not say that the layer is the best one to edit.

    The clean and the corrupted run are made once. Below its lowest restored layer and
    before its token a cell is the corrupted run, so that only the layers above and the
    tokens from there on are run for it.

    Args:
        model: is not changed.
        tokenizer: the model's.
        fact: its subject is corrupted.
        kind: what is restored: 'hidden' (the block's output), 'mlp' or 'attention'.
        window: how many layers around the named one are restored together; at the
            ends of the model fewer. None: 1 for 'hidden', else a fifth of the layers,
            at least 3 (the paper takes 10 of 48).
        samples: how many noises are averaged; every cell sees the same ones.
        noise: standard deviation of the noise, in multiples of `sigma`.
        sigma: size of the embeddings; None: `embedding_std` of this subject. Give the
            value measured over many subjects to compare facts.
        seed: of the noise.
        answer: follow the clean run's likeliest token ('argmax') or the first token of
            the fact's 'truth'.
        sever: hold the 'mlp' or 'attention' outputs of the restored token at their
            corrupted values in all layers above the restored ones.
        replace: put the noise in place of the embedding rather than on top of it.
        noise_unit: noise of standard deviation 1 to be used instead of a fresh one.
        second_noise: with `sever`, a second noise (its seed, or the noise itself) for
            the measured run of every cell with something held above it, while the held
            values keep the first. So does the released code, by drawing once more from
            one stream. None: one noise for both runs.
        batch_size: rows (cells of one token times samples) per forward pass; changes
            memory and speed only. States, keys and values of the corrupted run are
            kept for all layers, each where its block is.

    Returns:
        Probabilities for every token and layer. Tokens before the subject carry no
        corruption: restoring them brings nothing, which is entered without a run.

    Raises:
        TypeError: if the fact or a number is something else.
        RuntimeError: if the model's probabilities are nan.
        ValueError: if an option is unknown, a number is not positive, `second_noise`
            comes without `sever`, or answer='truth' and the fact has none.
        SubjectNotFound: if the subject is lost in tokenization.

    Source: Meng et al. 2022 (ROME), section 2.1 and appendix B.
    Book: sec-tracing-runs
    """
    _check(fact, kind=kind, sever=sever, answer=answer)
    _check_numbers(window=window, samples=samples, batch_size=batch_size, seed=seed)
    number("noise", noise, least=0)
    _check_noise(sever, noise_unit=noise_unit, second_noise=second_noise)
    if window is None:
        window = 1 if kind == "hidden" else max(3, -(-n_layers(model) // 5))
    if noise_unit is None:
        noise_unit = _draw(model, tokenizer, fact, samples=samples, seed=seed)
    if sigma is None:
        sigma = embedding_std(model, tokenizer, [fact.subject])
    number("sigma", sigma, positive=True)
    samples = len(noise_unit)
    _check_numbers(samples=samples)
    if isinstance(second_noise, int):
        second_noise = _draw(model, tokenizer, fact, samples=samples, seed=second_noise)
    again = None if second_noise is None else second_noise * noise * sigma
    runs = Runs.of(model, tokenizer, fact, noise_unit * noise * sigma, replace=replace)
    with evaluating(model), torch.no_grad():
        clean, p = runs.clean(kind)
        not_nan(p)
        token = int(p.argmax()) if answer == "argmax" else _first(tokenizer, fact)
        frozen = runs.corrupted(sever) if sever else ()
        restore = Restore(kind, window, clean, sever, frozen)
        p_corrupt, p_restored = runs.all_cells(restore, token, batch_size, again)
    return Trace(
        fact=fact,
        tokens=tuple(tokenizer.batch_decode([[i] for i in runs.ids[0].tolist()])),
        subject=runs.subject,
        answer=tokenizer.batch_decode([[token]])[0],
        kind=kind,
        window=window,
        p_clean=float(p[token]),
        p_corrupt=p_corrupt,
        p_restored=p_restored,
        samples=samples,
        noise=noise * sigma,
        severed=sever,
    )


def causal_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    progress: bool = False,
    **options: Any,
) -> tuple[Trace, ...]:
    """Trace several facts with noise of one size, measured over all their subjects.

    Args:
        model: is not changed.
        tokenizer: the model's.
        facts: what to trace.
        progress: show a bar that counts facts.
        **options: as of `causal_trace`.

    Raises:
        ValueError: if there is no fact, or as `causal_trace` does.

    Book: sec-tracing-average
    """
    facts = several("facts", facts, Fact)
    if options.get("sigma") is None:
        subjects = [fact.subject for fact in facts]
        options["sigma"] = embedding_std(model, tokenizer, subjects)
    bar = tqdm(facts, desc="traces", disable=not progress)
    return tuple(causal_trace(model, tokenizer, fact, **options) for fact in bar)


def _draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    *,
    samples: int,
    seed: int,
) -> Float[Tensor, "samples subject d_model"]:
    first, end = fill(fact).span(tokenizer)
    embed = submodule(model, architecture_of(model).embedding)
    width = embed.get_parameter("weight").shape[1]
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, end - first, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _first(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> int:
    return target_ids(tokenizer, fact.truth or "")[0]


def _check(fact: Fact, *, kind: str, sever: str | None, answer: str) -> None:
    of_kind("fact", fact, Fact, "Fact('Anna', '{} lives in', 'Rome')")
    given = {
        "kind": (kind, KINDS),
        "sever": (sever, (None, "mlp", "attention")),
        "answer": (answer, ("argmax", "truth")),
    }
    for name, (value, allowed) in given.items():
        if value not in allowed:
            raise ValueError(
                f"causal_trace got {name}={value!r}; choose one of "
                f"{', '.join(map(repr, allowed))}."
            )
    if answer == "truth" and fact.truth is None:
        raise ValueError(
            f"answer='truth', but {fact.text!r} has no truth. Give Fact.truth, or use "
            "answer='argmax'."
        )


def _check_noise(sever: str | None, **noises: Any) -> None:
    if noises["second_noise"] is not None and sever is None:
        raise ValueError(
            "causal_trace got second_noise without sever, so no value is held at the "
            "first noise. Give sever='mlp' or 'attention', or leave it out."
        )
    given = [name for name, noise in noises.items() if noise is not None]
    if isinstance(noises["second_noise"], int):  # a seed
        given.remove("second_noise")
    for name in given:
        of_kind(name, noises[name], Tensor, "torch.randn(10, 3, 768)")
        double(noises[name], name)


def _check_numbers(**numbers: Any) -> None:
    if numbers.get("window", 1) is None:  # chosen later
        del numbers["window"]
    for name, value in numbers.items():
        number(name, value, int)
        if value < 1 and name != "seed":
            raise ValueError(f"causal_trace got {name}={value}; it must be at least 1.")
