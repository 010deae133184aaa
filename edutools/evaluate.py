"""Whether an edit worked: efficacy, paraphrase, neighborhood, and their harmonic mean.

Every number comes with its 95 % interval and the number of cases behind it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.facts import Case
from edutools.metrics import bootstrap, harmonic_mean, magnitude, success, wilson
from edutools.scoring import score

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Report",
    "Row",
    "accuracy",
    "bootstrap",
    "evaluate",
    "harmonic_mean",
    "magnitude",
    "success",
    "wilson",
]

RATES = ("efficacy", "paraphrase", "neighborhood")
MAGNITUDES = tuple(f"{name}_magnitude" for name in RATES)


@dataclass(frozen=True)
class Row:
    """One line of a report: a mean over cases with its 95 % interval."""

    metric: str
    mean: float
    low: float
    high: float
    n: int
    unit: str = "fraction"
    note: str = ""

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return f"{self.metric:<23} undefined ({self.note})"
        interval = f"[{self.low:6.3f}, {self.high:6.3f}]"
        return f"{self.metric:<23} {self.mean:6.3f}  {interval}  {self.n:>5}"


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured, one value per case and metric.

    Attributes:
        values: for each metric one number per case, averaged over the case's prompts;
            nan where the case lacks what the metric needs.
        convention: how answers of several tokens were compared.

    Book: sec-evaluation-report
    """

    values: dict[str, Float[Tensor, " n"]]
    convention: str

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __repr__(self) -> str:
        return f"Report(cases={len(self)}, score={self['score'].mean:.3f})"

    def __getitem__(self, metric: str) -> Row:
        if metric == "score":
            return self._score()
        if metric not in self.values:
            known = ", ".join(["score", *self.values])
            raise KeyError(f"No metric {metric!r} in this report. Known: {known}.")
        return self._row(metric)

    @classmethod
    def join(cls, reports: Sequence["Report"]) -> "Report":
        """The cases of several reports in one, e.g. of facts edited one by one.

        Raises:
            ValueError: if there is none, or they compare answers in different ways.
        """
        if len({(report.convention, *report.values) for report in reports}) != 1:
            kinds = sorted({report.convention for report in reports}) or "no report"
            raise ValueError(
                f"Report.join needs reports of one kind; got {kinds}. Evaluate all "
                "cases with the same options."
            )
        names = reports[0].values
        values = {name: torch.cat([r.values[name] for r in reports]) for name in names}
        return cls(values=values, convention=reports[0].convention)

    def summary(self) -> list[Row]:
        """The score and every metric: mean, 95 % interval, number of cases."""
        return [self._score(), *(self._row(metric) for metric in self.values)]

    def __str__(self) -> str:
        head = f"{'metric':<23} {'mean':>6}  {'95 % interval':<16}  {'cases':>5}"
        return "\n".join([head, *map(str, self.summary()), self.convention])

    def to_frame(self) -> "pandas.DataFrame":
        """One row per case, one column per metric."""
        import pandas

        return pandas.DataFrame({k: v.tolist() for k, v in self.values.items()})

    def _row(self, metric: str) -> Row:
        present = self.values[metric][~self.values[metric].isnan()].double()
        n = len(present)
        if n == 0:
            return Row(metric, math.nan, math.nan, math.nan, 0, note=_missing(metric))
        mean = float(present.mean())
        unit = "probability" if metric in MAGNITUDES else "fraction"
        if bool(((present == 0) | (present == 1)).all()) and metric not in MAGNITUDES:
            low, high = wilson(int(present.sum()), n)
        else:
            low, high = bootstrap(present[:, None], lambda means: means[:, 0])
        return Row(metric, mean, low, high, n, unit)

    def _score(self) -> Row:
        parts = torch.stack([self.values[name] for name in RATES], 1).double()
        mean = harmonic_mean(*parts.nanmean(0).tolist())
        if math.isnan(mean):
            gone = [name for name in RATES if self[name].n == 0]
            note = f"no case has what {' and '.join(gone)} needs"
            return Row("score", mean, math.nan, math.nan, 0, note=note)

        def of_means(means: Tensor) -> Tensor:
            return means.shape[1] / (1 / means).sum(1)

        return Row("score", mean, *bootstrap(parts, of_means), len(parts))


def _missing(metric: str) -> str:
    needs = {"paraphrase": "paraphrases", "neighborhood": "neighborhood prompts"}
    extra = next((what for key, what in needs.items() if metric.startswith(key)), "")
    return f"no case has {extra} and a truth" if extra else "no case has a truth"


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    normalize: bool = True,
    batch_size: int = 64,
) -> Report:
    """Score a model, edited or not: does it say what it should, and keep the rest?

    Answers are compared under teacher forcing. A model may score well here and still
    say something else when it writes freely; measure that separately.

    Args:
        model: as it is; it is not changed.
        tokenizer: the model's.
        cases: facts with paraphrases and neighborhood prompts. A case without a truth,
            paraphrases or neighborhood gets nan in the metrics that need them.
        normalize: compare mean log-probabilities per token, as the released code does;
            otherwise joint probabilities of whole answers, as the papers write. They
            differ where target and truth differ in length.
        batch_size: prompts per forward pass; changes memory and speed only.

    Returns:
        Per-case values; `print` it for a table.

    Raises:
        ValueError: if there is no case.

    Source: Meng et al. 2022 (ROME), section 3.4 and appendix.
    Book: sec-evaluation-report
    """
    if not cases:
        raise ValueError("Got no cases; evaluate needs at least one Case.")
    asked = [item for i, case in enumerate(cases) for item in _questions(i, case)]
    both = [j for j, question in enumerate(asked) if question.other is not None]
    # One call: wanted answers of all questions, then the other answers of some.
    scores = score(
        model,
        tokenizer,
        [q.prompt for q in asked] + [asked[j].prompt for j in both],
        [q.wanted for q in asked] + [asked[j].other or "" for j in both],
        batch_size=batch_size,
    )
    logp = scores.per_token if normalize else scores.joint
    wanted, other = logp[: len(asked)], torch.full((len(asked),), math.nan)
    other[both] = logp[len(asked) :]
    how = "mean log-probability per token" if normalize else "joint probability"
    return Report(
        values=_by_case(asked, len(cases), wanted, other, scores.correct[: len(asked)]),
        convention=f"answers compared by {how}",
    )


@dataclass(frozen=True)
class _Question:
    case: int
    metric: str
    prompt: str
    wanted: str
    other: str | None


def _questions(i: int, case: Case) -> list[_Question]:
    fact = case.fact
    asked = [_Question(i, "efficacy", fact.text, fact.target, fact.truth)]
    asked += [
        _Question(i, "paraphrase", prompt, fact.target, fact.truth)
        for prompt in case.paraphrases
    ]
    if fact.truth is not None:
        asked += [
            _Question(i, "neighborhood", prompt, fact.truth, fact.target)
            for prompt in case.neighborhood
        ]
    return asked


def _by_case(
    asked: list[_Question],
    n: int,
    wanted: Float[Tensor, " prompts"],
    other: Float[Tensor, " prompts"],
    correct: Bool[Tensor, " prompts"],
) -> dict[str, Float[Tensor, " n"]]:
    known, nothing = ~other.isnan(), torch.tensor(math.nan)
    measured = {
        "": torch.where(known, success(wanted, other), nothing),
        "_magnitude": torch.where(known, magnitude(wanted, other), nothing),
        "_top1": correct.float(),
    }
    values = {}
    for suffix, per_prompt in measured.items():
        for name in RATES:
            mine = [j for j, question in enumerate(asked) if question.metric == name]
            owners = torch.tensor([asked[j].case for j in mine], dtype=torch.long)
            values[name + suffix] = _per_case(per_prompt[mine], owners, n)
    return values


def _per_case(
    values: Float[Tensor, " prompts"], owners: Int[Tensor, " prompts"], n: int
) -> Float[Tensor, " n"]:
    """Average the prompts of each case; nan for a case without any."""
    total = torch.zeros(n).index_add(0, owners, values)
    return total / torch.zeros(n).index_add(0, owners, torch.ones(len(values)))


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 64,
) -> Bool[Tensor, " n"]:
    """Whether the model's first choice is right at every token of each answer.

    Args:
        model: is not changed.
        tokenizer: the model's.
        prompts: texts that the answers continue.
        answers: one per prompt; earlier answer tokens are given (teacher forcing).
        batch_size: prompts per forward pass; changes memory and speed only.

    Returns:
        One truth value per prompt; its mean is the top-1 accuracy.

    Raises:
        ValueError: if the two lists differ in length, or an answer has no token.

    Book: sec-evaluation-conventions
    """
    return score(model, tokenizer, prompts, answers, batch_size=batch_size).correct
