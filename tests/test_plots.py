"""Figures show the numbers that they are given."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from edutools import plots
from edutools.effects import ROLES, Trace, average_effect
from edutools.evaluate import RATES, Report
from edutools.facts import Fact
from edutools.search import TargetStates

FACT = Fact("Anna", "{} lives in", "Rome", "Moscow")


@pytest.fixture(autouse=True)
def no_window():
    with mpl.rc_context({"backend": "agg"}):
        plt.switch_backend("agg")
        yield
        plt.close("all")


def trace(shift=0.0, kind="hidden"):
    table = torch.arange(10.0).view(5, 2) / 10 + shift
    tokens = ("An", "na", " lives", " in", "\n")
    return Trace(FACT, tokens, (0, 2), " Moscow", kind, 1, 0.95, 0.05, table, 3, 0.1)


def test_the_heatmap_shows_the_trace():
    ax = plots.trace_heatmap(trace())
    (image,) = ax.get_images()
    np.testing.assert_allclose(image.get_array(), trace().p_restored)
    assert image.get_clim() == (0.05, pytest.approx(0.95))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["An*", "na*", " lives", " in", "\\n"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
    assert ax.figure.axes[1].get_ylabel() == "P(Moscow)"


def test_every_figure_draws_on_the_axes_it_is_given():
    mean = average_effect([trace(), trace(0.1)])
    _, ax = plt.subplots()
    calls = [
        lambda: plots.trace_heatmap(trace(kind="mlp"), ax=ax),
        lambda: plots.mean_effect_heatmap(mean, ax=ax),
        lambda: plots.mean_effect_lines(mean, ax=ax),
        lambda: plots.kind_lines([mean], ax=ax),
        lambda: plots.probability_bars({"a": 0.1}, {"a": 0.9}, ax=ax),
    ]
    for call in calls:
        assert call() is ax
        ax.clear()


def test_lines_carry_the_means_and_their_intervals():
    mean = average_effect([trace(), trace(0.1)])
    ax = plots.mean_effect_lines(mean)
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    shown = [role for role, n in zip(ROLES, mean.facts, strict=True) if n]
    assert [name for name in drawn if name in ROLES] == shown
    for role in shown:
        np.testing.assert_allclose(drawn[role], mean.at(role))
    assert len(ax.collections) == len(shown)
    colors = {line.get_color() for line in ax.get_lines() if line.get_label() in ROLES}
    assert len(colors) == len(shown)


def test_kinds_are_compared_at_one_role():
    means = [
        average_effect([trace(shift, kind) for shift in (0.0, 0.1)])
        for kind in ("hidden", "mlp", "attention")
    ]
    ax = plots.kind_lines(means)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["state", "MLP output", "attention output"]
    assert ax.get_title() == "last subject token"
    ax = plots.mean_effect_heatmap(means[1])
    (image,) = ax.get_images()
    np.testing.assert_allclose(image.get_array(), means[1].mean)


def test_bars_stand_for_before_and_after():
    ax = plots.probability_bars(
        {" Rome": 0.1, " Paris": 0.8}, {" Rome": 0.9, " Paris": 0.0}
    )
    assert [bar.get_width() for bar in ax.patches] == [0.1, 0.8, 0.9, 0.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Rome", "Paris"]
    with pytest.raises(ValueError, match="give the same answers in the same order"):
        plots.probability_bars({"a": 0.1}, {"b": 0.1})


def test_reports_show_their_intervals():
    values = {name: torch.tensor([1.0, 0.0, 1.0, 1.0]) for name in RATES}
    report = Report(values=values, convention="")
    ax = plots.report_bars({"before": report, "after": report})
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.75] * 8)
    segments = ax.collections[0].get_segments()
    row = report["efficacy"]
    assert segments[0][:, 1].tolist() == pytest.approx([row.low, row.high])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["before (n=4)", "after (n=4)"]


def test_the_search_is_drawn_up_to_its_end():
    history = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.99, float("nan")]])
    found = TargetStates(
        values=torch.zeros(4, 2, dtype=torch.float64),
        initial=torch.zeros(4, 2, dtype=torch.float64),
        history={"probability": history, "loss": -history.log()},
    )
    ax = plots.search_lines(found)
    ends = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.get_lines()[1::2]]
    assert ends == [(2, pytest.approx(0.9)), (1, pytest.approx(0.99))]


def luminance(color):
    r, g, b = to_rgb(color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_the_two_main_colours_differ_for_every_reader():
    """They differ in blue, which red-green blindness leaves alone."""
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) == len(plots.MARKERS)
    first, second = (to_rgb(color) for color in plots.PALETTE[:2])
    assert abs(first[2] - second[2]) > 0.5
    assert all(luminance(color) < 0.75 for color in plots.PALETTE)
