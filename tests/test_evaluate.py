"""Scores: the metrics, the intervals, and the plain computation they must equal."""

import math

import pytest
import torch

from edutools.evaluate import RATES, Report, accuracy, evaluate
from edutools.facts import Case, Fact
from edutools.metrics import bootstrap, harmonic_mean, magnitude, success, wilson
from edutools.scoring import final_logits, last_states, score
from edutools.testing import TINY, taught_model, tiny_tokenizer

TOWER = Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")
ANNA = Fact("Anna Karenina", "{} lives in", "the city of Rome", "Moscow")
CASES = [
    Case(
        TOWER,
        paraphrases=("It is known that the capital of France is", "Rome, not"),
        neighborhood=("Marie Curie worked in",),
    ),
    Case(
        ANNA,
        paraphrases=("Anna Karenina was born in",),
        neighborhood=("The mother tongue of Zoë is", "You speak", "I believe you."),
    ),
]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def taught(request):
    return taught_model(request.param), tiny_tokenizer(request.param)


def plain(model, tokenizer, prompt, answer):
    """Log-probability of an answer by one whole forward pass; and its tokens."""
    start = tokenizer(prompt).input_ids
    whole = tokenizer(f"{prompt} {answer}").input_ids
    assert whole[: len(start)] == start
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    rows = logp[len(start) - 1 : -1]
    ids = torch.tensor(whole[len(start) :])
    return float(rows[range(len(ids)), ids].sum()), (rows.argmax(-1) == ids).tolist()


def test_scores_equal_whole_forward_passes(taught):
    prompts = [TOWER.text, ANNA.text, "You speak", TOWER.text]
    answers = ["Paris", "the city of Rome", "Russian, not Danish", "Rome"]
    found = score(*taught, prompts, answers, batch_size=3)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        joint, hits = plain(*taught, prompt, answer)
        assert float(found.joint[i]) == pytest.approx(joint, abs=1e-4)
        assert list(found.hits[i]) == hits
        assert int(found.tokens[i]) == len(hits)
        assert bool(found.correct[i]) == all(hits)
        assert float(found.per_token[i]) == pytest.approx(joint / len(hits), abs=1e-4)
    assert repr(found) == f"Scores(n=4, correct={int(found.correct.sum())})"


@pytest.mark.parametrize("kind", TINY)
def test_norm_and_head_give_the_model_s_own_logits(kind):
    model, tokenizer = taught_model(kind), tiny_tokenizer(kind)
    ids = torch.tensor([tokenizer(TOWER.text).input_ids])
    with torch.no_grad():
        own = model(ids).logits
        ours = final_logits(model, last_states(model, ids, torch.ones_like(ids)))
    torch.testing.assert_close(ours, own)


def test_accuracy_is_about_every_token(taught):
    prompts = ["Anna Karenina lives in", "Anna Karenina lives in"]
    assert accuracy(*taught, prompts, ["Moscow", "Rome"]).tolist() == [True, False]
    assert accuracy(*taught, [], []).tolist() == []


def test_bad_prompts_and_answers_are_refused(taught):
    with pytest.raises(ValueError, match="Got 2 prompts and 1 answers"):
        accuracy(*taught, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="target must not be empty"):
        accuracy(*taught, ["a"], [" "])
    with pytest.raises(ValueError, match="Got no cases"):
        evaluate(*taught, [])


def test_a_prompt_that_the_model_cannot_read_is_refused(taught):
    with pytest.raises(ValueError, match="this model reads at most 64"):
        accuracy(*taught, ["city of " * 60], ["Paris"])


def test_a_prompt_without_tokens_is_refused():
    model, tokenizer = taught_model("gpt2"), tiny_tokenizer("gpt2")  # no BOS
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        accuracy(model, tokenizer, [""], ["Paris"])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_report_equals_the_plain_computation(taught, normalize):
    report = evaluate(*taught, CASES, normalize=normalize, batch_size=2)

    def logp(prompt, answer):
        joint, hits = plain(*taught, prompt, answer)
        return joint / len(hits) if normalize else joint

    for i, case in enumerate(CASES):
        fact = case.fact
        groups = {
            "efficacy": ([fact.text], fact.target, fact.truth),
            "paraphrase": (case.paraphrases, fact.target, fact.truth),
            "neighborhood": (case.neighborhood, fact.truth, fact.target),
        }
        for name, (prompts, wanted, other) in groups.items():
            pairs = [(logp(p, wanted), logp(p, other)) for p in prompts]
            rate = sum(a > b for a, b in pairs) / len(pairs)
            lead = sum(math.exp(a) - math.exp(b) for a, b in pairs) / len(pairs)
            top = sum(all(plain(*taught, p, wanted)[1]) for p in prompts)
            assert float(report.values[name][i]) == pytest.approx(rate)
            value = float(report.values[f"{name}_magnitude"][i])
            assert value == pytest.approx(lead, abs=1e-5)
            assert float(report.values[f"{name}_top1"][i]) == pytest.approx(
                top / len(prompts)
            )


def test_the_convention_is_named_and_matters(taught):
    cases = [CASES[1]]  # target of several tokens, truth of one or two
    mean = evaluate(*taught, cases)
    joint = evaluate(*taught, cases, normalize=False)
    assert mean.convention == "answers compared by mean log-probability per token"
    assert joint.convention == "answers compared by joint probability"
    assert mean["efficacy_magnitude"].mean != joint["efficacy_magnitude"].mean


def test_what_a_case_lacks_is_undefined_and_said(taught):
    bare = Case(Fact("Rome", "{} is in", "Italy"), paraphrases=(), neighborhood=())
    report = evaluate(*taught, [bare])
    assert all(report.values[name].isnan().all() for name in RATES)
    assert report["efficacy"].note == "no case has a truth"
    assert report["paraphrase"].note == "no case has paraphrases and a truth"
    assert report["neighborhood"].n == 0
    assert math.isnan(report["score"].mean)
    assert "efficacy and paraphrase and neighborhood" in report["score"].note
    assert report["efficacy_top1"].n == 1
    assert "undefined (no case has a truth)" in str(report)
    mixed = evaluate(*taught, [bare, *CASES])
    assert mixed["efficacy"].n == 2
    assert mixed["efficacy_top1"].n == 3
    assert not math.isnan(mixed["score"].mean)


def table(**columns):
    """A report from given per-case rates."""
    values = {name: torch.tensor(columns[name]) for name in RATES}
    return Report(values=values, convention="given")


def test_the_score_is_the_harmonic_mean_of_mean_rates():
    report = table(efficacy=[1.0, 1.0], paraphrase=[1.0, 0.0], neighborhood=[0.5, 0.5])
    assert report["score"].mean == pytest.approx(3 / (1 + 2 + 2))
    assert report["score"].low <= report["score"].mean <= report["score"].high
    assert report["score"].n == 2


def test_the_table_shows_mean_interval_and_number():
    rates = [1.0] * 9 + [0.0]
    report = table(efficacy=rates, paraphrase=rates, neighborhood=[0.5] * 10)
    low, high = wilson(9, 10)
    assert (report["efficacy"].low, report["efficacy"].high) == (low, high)
    lines = str(report).splitlines()
    head = ["metric", "mean", "95", "%", "interval", "cases", "unit"]
    assert lines[0].split() == head
    row = ["efficacy", "0.900", "[", "0.596,", "0.982]", "10", "fraction"]
    assert lines[2].split() == row
    assert lines[-1] == "given"
    assert [row.metric for row in report.summary()] == ["score", *RATES]
    assert list(report.to_frame().columns) == list(RATES)
    assert len(report) == 10
    assert repr(report) == f"Report(cases=10, score={report['score'].mean:.3f})"
    with pytest.raises(KeyError, match="No metric 'fluency' in this report"):
        report["fluency"]


def test_other_units_are_shown_and_fit_their_column():
    report = Report(
        values={
            "entropy": torch.tensor([0.0, 1.0, 1.0]),
            "nll": torch.tensor([2.5, 2.5, 2.5]),
            "perplexity": torch.tensor([120.0, 123456.0, 1e7]),
        },
        convention="given",
        units={"entropy": "bits", "nll": "nats", "perplexity": "perplexity"},
        parts=(),
    )
    assert report["entropy"].unit == "bits"
    # Bits that happen to be 0 or 1 are no yes and no: no interval of a proportion.
    assert report["entropy"].low != wilson(2, 3)[0]
    head, *lines = str(report).splitlines()[:-1]
    place = head.index("cases") + len("cases") + 2
    assert [line[place:] for line in lines] == ["bits", "nats", "perplexity"]
    assert "score" not in str(report)
    assert repr(report) == "Report(cases=3, entropy=0.667)"
    with pytest.raises(KeyError, match=r"Known: entropy, nll, perplexity\."):
        report["score"]


def test_one_case_tells_no_interval():
    report = table(efficacy=[1.0], paraphrase=[0.5], neighborhood=[0.25])
    assert (report["efficacy"].low, report["efficacy"].high) == wilson(1, 1)
    for metric in ("paraphrase", "score"):
        assert math.isnan(report[metric].low)
        assert math.isnan(report[metric].high)
        assert not math.isnan(report[metric].mean)


def test_columns_are_about_the_same_cases():
    with pytest.raises(ValueError, match="all of them on the same cases"):
        table(efficacy=[1.0], paraphrase=[0.5, 0.5], neighborhood=[0.25])
    with pytest.raises(ValueError, match="at least one metric"):
        Report(values={}, convention="")


def test_reports_stand_side_by_side():
    rates = table(efficacy=[1.0, 0.0], paraphrase=[1.0, 1.0], neighborhood=[1.0, 1.0])
    bits = Report(
        values={"entropy": torch.tensor([3.0, 4.0])},
        convention="ten words",
        units={"entropy": "bits"},
        parts=(),
        texts={"entropy": (("a",), ("b", "c"))},
    )
    both = rates.beside(bits)
    assert list(both.values) == [*RATES, "entropy"]
    assert both["score"] == rates["score"]
    assert both["entropy"] == bits["entropy"]
    assert both.convention == "given; ten words"
    assert both.texts == bits.texts
    assert bits.beside(rates).parts == RATES
    with pytest.raises(ValueError, match=r"shared: \['entropy'\]"):
        both.beside(bits)
    with pytest.raises(ValueError, match="got 2 and 4 cases"):
        rates.beside(Report.join([bits, bits]))
    assert Report.join([bits, bits]).texts["entropy"] == bits.texts["entropy"] * 2


def test_a_saved_report_is_loaded_as_it_was(taught, tmp_path):
    bare = Case(Fact("Rome", "{} is in", "Italy"))
    report = evaluate(*taught, [bare, *CASES]).beside(
        Report(
            values={"entropy": torch.tensor([0.1, float("inf"), math.pi])},
            convention="Zoë",
            units={"entropy": "bits"},
            needs={"entropy": "texts"},
            parts=(),
            texts={"entropy": ((), ("Ångström\n",), ("a", "b"))},
        )
    )
    report.save(tmp_path / "report.json")
    loaded = Report.load(tmp_path / "report.json")
    assert list(loaded.values) == list(report.values)
    for metric, values in report.values.items():
        assert torch.equal(values.isnan(), loaded.values[metric].isnan())
        known = ~values.isnan()
        assert torch.equal(values[known], loaded.values[metric][known])
    for name in ("convention", "units", "needs", "parts", "texts"):
        assert getattr(loaded, name) == getattr(report, name)
    assert str(loaded) == str(report)
    assert len(Report.join([loaded, report])) == 6


def test_what_is_no_report_is_not_loaded(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(FileNotFoundError, match=r"No report .*report\.json"):
        Report.load(path)
    table(efficacy=[1.0], paraphrase=[0.5], neighborhood=[0.25]).save(path)
    text = path.read_text(encoding="utf-8")
    for broken in (
        text[:-20],
        "[]",
        "{}",
        text.replace("report 1", "report 9"),
        text.replace('"values"', '"value"'),
        text.replace("0.25", '"much"'),
        text.replace("0.25", "0.25, 1.0"),
        text.replace("given", "given").replace('"parts": [', '"parts": 3, "x": ['),
    ):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match=r"report\.json is damaged or no report"):
            Report.load(path)


def test_success_and_magnitude_have_the_sign_of_the_lead():
    wanted, other = torch.tensor([0.6, 0.3, 0.4]).log(), torch.tensor([0.1, 0.5, 0.4])
    assert success(wanted, other.log()).tolist() == [1, 0, 0]
    assert magnitude(wanted, other.log()).tolist() == pytest.approx([0.5, -0.2, 0])


def test_the_harmonic_mean_forgives_nothing():
    assert harmonic_mean(1.0, 1.0, 0.0) == 0
    assert math.isnan(harmonic_mean(1.0, math.nan, 1.0))
    assert harmonic_mean(0.4, 0.4) == pytest.approx(0.4)


def test_wilson_intervals_cover_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    n, p = 40, 0.9
    draws = (torch.rand(4000, n, generator=generator) < p).sum(1)
    inside = sum(low <= p <= high for low, high in (wilson(int(k), n) for k in draws))
    assert 0.93 < inside / 4000 < 0.98
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1


def test_bootstrap_intervals_have_the_width_of_the_normal_ones():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 1, generator=generator)
    low, high = bootstrap(values, lambda means: means[:, 0])
    half = 1.96 * float(values.std()) / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert bootstrap(values, lambda means: means[:, 0]) == (low, high)
    other = bootstrap(values, lambda means: means[:, 0], seed=1)
    assert other != (low, high)


def test_reports_of_single_cases_join_to_the_report_of_all(taught):
    together = evaluate(*taught, CASES)
    joined = Report.join([evaluate(*taught, [case]) for case in CASES])
    for metric, values in together.values.items():
        assert torch.allclose(values, joined.values[metric], atol=1e-5, equal_nan=True)
    assert joined["score"].n == len(CASES)


def test_reports_of_different_kinds_do_not_join(taught):
    one, other = (evaluate(*taught, CASES, normalize=n) for n in (True, False))
    with pytest.raises(ValueError, match=r"needs reports of one kind; got .*joint"):
        Report.join([one, other])
    with pytest.raises(ValueError, match="got no report"):
        Report.join([])
