"""Explorers: what is put into the page, and whether its script solves what we solve."""

import json
import re

import pytest
import torch
from playwright.sync_api import sync_playwright
from test_browser import CHROMIUM, FLAGS, Host, Visit

from edutools.explorers import LAMS, explore_update
from edutools.solve import memit_update, rome_update

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def plane(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    stretch = torch.tensor([[1.5, 0.0], [0.9, 0.5]], dtype=torch.float64)
    return normal(2, 2), stretch @ normal(2, 30), normal(2), normal(2)


def numbers(W, K0, k, v, lam, *, plain=False):
    """q, error and disturbance by the package's closed forms."""
    C = K0 @ K0.T / K0.shape[1]
    used = torch.eye(2, dtype=torch.float64) if plain else C
    if lam:
        delta = memit_update(W, k[:, None], v[:, None], used, lam).dense()
    else:
        delta = rome_update(W, k, v, used).dense()
    q = k @ torch.linalg.solve(C, k)
    error = ((W + delta) @ k - v).norm()
    return [float(x) for x in (q, error, torch.trace(delta @ C @ delta.T))]


@pytest.mark.parametrize("lam", LAMS)
def test_readout_is_that_of_the_closed_forms(lam):
    W, K0, k, v = plane()
    figure = explore_update(W, K0, k, v, lam=lam)
    assert list(figure.readout().values()) == pytest.approx(numbers(W, K0, k, v, lam))


def test_repr_and_page_are_the_same_in_every_run():
    first, second = (explore_update(*plane(), title="Move") for _ in range(2))
    assert first._repr_html_() == second._repr_html_()
    assert repr(first) == repr(second)
    assert re.fullmatch(
        r"UpdateExplorer\('Move', key \(.+\), value \(.+\), λ 0: q \S+, error 0, "
        r"disturbance \S+\)",
        repr(first),
    )


def test_the_page_is_given_the_points_and_nothing_foreign():
    W, K0, k, v = plane()
    text = explore_update(W, K0, k, v)._repr_html_()
    given = json.loads(re.search('data-given="(.*?)"', text)[1].replace("&quot;", '"'))
    assert given["k"] == pytest.approx(k.tolist(), abs=1e-5)
    assert torch.tensor(given["K0"]).shape == (30, 2)
    assert "EDGE" not in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {
        "http://www.w3.org/2000/svg"
    }


def test_words_cannot_break_out_of_the_page():
    text = explore_update(*plane(), title='"><script>alert(1)</script>')._repr_html_()
    assert text.count("<script>") == 1


def test_refuses():
    W, K0, k, v = plane()
    with pytest.raises(ValueError, match=r"lam=0\.2 is no position .* take 0, 0\.1"):
        explore_update(W, K0, k, v, lam=0.2)
    with pytest.raises(ValueError, match="positive definite"):
        explore_update(W, torch.outer(k, torch.ones(3).double()), k, v)
    with pytest.raises(ValueError, match="zero"):
        explore_update(W, K0, 0 * k, v)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    icon = '<meta charset="utf-8"><link rel="icon" href="data:,">'
    page = icon + explore_update(*plane())._repr_html_() * 2
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    with Host(tmp_path) as address:
        visit = Visit(browser, address)
        yield visit
        visit.close()


def shown(box) -> list[float]:
    return [
        float(x) for x in re.findall(r"\d+\.\d\d", box.locator(".readout").inner_text())
    ]


def place(box, name) -> torch.Tensor:
    text = box.locator(f".handle.{name}").get_attribute("aria-valuetext")
    return torch.tensor([float(x) for x in re.findall(r"-?\d+\.\d\d", text)]).double()


@needs_browser
def test_the_script_solves_what_the_package_solves(visit):
    page = visit.go("index.html")
    box = page.locator(".edu-explorer").first
    W, K0, k, v = plane()
    assert shown(box) == pytest.approx(numbers(W, K0, k, v, 0.0), abs=0.006)
    for index, lam in enumerate(LAMS):
        box.locator(".lam").fill(str(index))
        assert box.locator("output").inner_text() == f"{lam:g}"
        assert shown(box) == pytest.approx(numbers(W, K0, k, v, lam), abs=0.006)
    box.locator(".plain").check()
    wanted = numbers(W, K0, k, v, LAMS[-1], plain=True)
    assert shown(box) == pytest.approx(wanted, abs=0.006)
    box.locator("button").click()
    assert shown(box) == pytest.approx(numbers(W, K0, k, v, 0.0), abs=0.006)


@needs_browser
def test_points_answer_to_keys(visit):
    page = visit.go("index.html")
    box, other = page.locator(".edu-explorer").all()
    W, K0, k, v = plane()
    before = shown(other)
    box.locator(".handle.key").focus()
    for key in ("ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    now = place(box, "key")
    assert bool((now > k).all())
    assert shown(box) == pytest.approx(numbers(W, K0, now, v, 0.0), rel=0.03, abs=0.02)
    box.locator(".handle.value").focus()
    for _ in range(99):
        page.keyboard.press("Shift+ArrowLeft")
    reach = json.loads(box.get_attribute("data-given"))["reach"][1]
    assert place(box, "value")[0] == pytest.approx(-reach, abs=0.006)
    assert shown(other) == before


@needs_browser
def test_points_answer_to_the_mouse_and_the_key_stays_off_zero(visit):
    page = visit.go("index.html")
    box = page.locator(".edu-explorer").first
    panel = box.locator("svg.keys").bounding_box()
    middle = (panel["x"] + panel["width"] / 2, panel["y"] + panel["height"] / 2)
    box.locator(".handle.key circle").last.hover()
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1])
    page.mouse.move(*middle)
    page.mouse.up()
    x, y = place(box, "key")
    assert x > 0.5
    assert abs(y) < 0.05
    page.mouse.move(middle[0], middle[1] - 40)
    assert place(box, "key").tolist() == [x, y]
