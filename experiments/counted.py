"""A model's answers, counted under every convention that is in use."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import edutools as edu
from edutools.fluency import says
from edutools.metrics import harmonic_mean
from edutools.prompts import target_ids
from edutools.report import RATES, per_case
from edutools.scoring import score
from experiments.study import Setup, Unit

SPARE = 3  # tokens beyond those of an answer
Question = tuple[int, str, str, str, str]  # case, rate, prompt, wanted, other
Rates = Mapping[str, Mapping[str, Tensor]]  # by convention and rate, one per case


def questions(cases: Sequence[edu.Case]) -> list[Question]:
    """What each case asks, the answer that is wanted, and the other one."""
    asked = []
    for i, case in enumerate(cases):
        new, old = case.fact.target, case.fact.truth or case.fact.target
        asked.append((i, "efficacy", case.fact.text, new, old))
        asked += [(i, "paraphrase", prompt, new, old) for prompt in case.paraphrases]
        asked += [(i, "neighborhood", prompt, old, new) for prompt in case.neighborhood]
    return asked


def exactly(text: str, answer: str) -> bool:
    """Whether a text is the answer and no more, up to the end of its sentence."""
    rest = text.strip().removeprefix(answer.strip())
    return says(text, answer) and rest[:1] in ("", ".")


def measured(setup: Setup, cases: Sequence[edu.Case]) -> Rates:
    """The model, as it is now, under every convention: one number per case and rate."""
    model, tokenizer = setup.model, setup.tokenizer
    asked = questions(cases)
    owners, names, prompts, wanted, other = (
        list(part) for part in zip(*asked, strict=True)
    )
    new = score(model, tokenizer, prompts, wanted, batch_size=128)
    old = score(model, tokenizer, prompts, other, batch_size=128)
    room = [len(target_ids(tokenizer, answer)) + SPARE for answer in wanted]
    texts = edu.generate(model, tokenizer, prompts, max_new_tokens=room, batch_size=128)
    pairs = list(zip(texts, wanted, strict=True))
    right = {
        "NLL per token": new.per_token > old.per_token,
        "joint probability": new.joint > old.joint,
        "first choices, per token": torch.tensor([sum(h) / len(h) for h in new.hits]),
        "first choices, per answer": new.correct,
        "free text, begins": torch.tensor([says(*pair) for pair in pairs]),
        "free text, exact": torch.tensor([exactly(*pair) for pair in pairs]),
    }
    told: dict[str, dict[str, Tensor]] = {convention: {} for convention in right}
    for rate in RATES:
        mine = [j for j, name in enumerate(names) if name == rate]
        of = torch.tensor([owners[j] for j in mine])
        for convention, values in right.items():
            told[convention][rate] = per_case(values.float()[mine], of, len(cases))
    return told


def summed_up(parts: Sequence[Rates]) -> list[Unit]:
    """Rates and score of each convention, over the cases of all parts."""
    told = []
    for convention in parts[0]:
        rates = {
            rate: float(torch.cat([part[convention][rate] for part in parts]).nanmean())
            for rate in RATES
        }
        score = harmonic_mean(*rates.values())
        told.append({"convention": convention} | rates | {"score": score})
    return told


def probability(setup: Setup, cases: Sequence[edu.Case]) -> list[float]:
    """Of each new target, all its tokens together."""
    facts = [case.fact for case in cases]
    prompts, targets = [f.text for f in facts], [f.target for f in facts]
    return score(setup.model, setup.tokenizer, prompts, targets).joint.exp().tolist()
