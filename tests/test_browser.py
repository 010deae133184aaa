"""The built book in a real browser: math, sliders, slides, widths, light and dark."""

import functools
import gzip
import http.server
import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from edutools.frames import frames
from scripts import check_site

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Where the tests run on their own, a missing browser is a failure (see `browser`).
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true",
    reason="no Chromium here; Debian, Ubuntu: sudo apt install chromium",
)

SOURCES = sorted(check_site.listed())
ADDRESSES = [
    path.relative_to(check_site.ROOT).with_suffix(".html").as_posix()
    for path in SOURCES
]
DECKS = [
    address.replace(".html", ".slides.html")
    for path, address in zip(SOURCES, ADDRESSES, strict=True)
    if path.suffix == ".ipynb"
]
VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        """Say nothing."""


class Host:
    """Serves a folder on this machine."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return self.address

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "No Chromium was found. Debian, Ubuntu: sudo apt install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def book(pages):
    with Host(pages) as address:
        yield address


class Visit:
    """An open page, and what went wrong while it was used."""

    def __init__(self, browser: Browser, home: str, width=1280, scheme="light"):
        self.home = home
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.wrong: list[str] = []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("response", self.answered)
        self.page.route("**/*", self.ask)

    def hear(self, message):
        if message.type == "error":
            self.wrong.append(f"console: {message.text}")

    def answered(self, response):
        if response.status >= 400:
            self.wrong.append(f"{response.status}: {response.url}")

    def ask(self, route):
        if route.request.url.startswith((self.home, "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"asks for {route.request.url}")
            route.abort()

    def go(self, address: str) -> Page:
        self.page.goto(self.home + address, wait_until="networkidle")
        return self.page

    def close(self):
        self.page.close()
        assert self.wrong == []


def settle(page: Page) -> None:
    """Wait until theme and formulas are there: long pages take their time.

    Goes on after a minute all the same, so that the test says what is missing.
    """
    ready = """() => document.documentElement.dataset.theme !== "auto"
        && [...document.querySelectorAll("article .math")].every(
            formula => formula.querySelector("mjx-container"))"""
    with suppress(TimeoutError):
        page.wait_for_function(ready, timeout=60_000)


def visible(page: Page, box) -> list[int]:
    """Numbers of the pictures of a figure with sliders that can be seen."""
    return box.locator("img").evaluate_all(
        "images => images.flatMap((image, i) => image.offsetParent ? [i] : [])"
    )


def keep(page: Page, name: str) -> None:
    """Keep a picture of the page in the folder SCREENSHOTS, if there is one."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        size = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        page.screenshot(
            path=Path(folder, name.replace("/", "-") + ".jpg"),
            type="jpeg",
            quality=60,
            full_page=True,
            clip={"x": 0, "y": 0, "width": size[0], "height": min(size[1], 12_000)},
        )


def use_sliders(page: Page) -> int:
    """Use every figure with sliders by its keys; return how many there are."""
    boxes = page.locator(".edu-frames").all()
    for box in boxes:
        before = visible(page, box)
        assert len(before) == 1
        slider = box.locator("input").last
        value = int(slider.input_value())
        word = box.locator("output").last.text_content()
        key, back = ("ArrowRight", "ArrowLeft")
        if value == int(slider.get_attribute("max")):
            key, back = back, key
        slider.focus()
        page.keyboard.press(key)
        after = visible(page, box)
        assert len(after) == 1
        assert after != before
        assert box.locator("output").last.text_content() != word
        page.keyboard.press(back)
        assert visible(page, box) == before
    return len(boxes)


MOST = 1_500_000  # bytes of a page, without the pictures of figures with sliders
PACKED = ("text/", "javascript", "json", "svg")  # what hosts of pages compress


def weight(response) -> int:
    """Bytes that travel for an answer, from a host that compresses texts."""
    body, kind = response.body(), response.headers.get("content-type", "")
    if "html" in kind:
        body = re.sub(rb"data:image/[^\"']+", b"", body)
    return len(gzip.compress(body)) if any(x in kind for x in PACKED) else len(body)


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("address", ADDRESSES)
def test_page(browser, book, address, width, scheme):
    visit, answers = Visit(browser, book, width, scheme), []
    visit.page.on("response", lambda answer: answers.append(answer))
    page = visit.go(address)
    settle(page)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    keep(page, f"{address.removesuffix('.html')}-{width}-{scheme}")
    formulas = page.locator("article .math")
    assert page.locator("article .math mjx-container").count() == formulas.count()
    assert page.locator("mjx-merror").count() == 0
    use_sliders(page)
    if (width, scheme) == VIEWS[0]:
        own = [a for a in answers if a.ok and a.url.startswith(book)]
        heavy = {answer.url.removeprefix(book): weight(answer) for answer in own}
        assert sum(heavy.values()) <= MOST, heavy
    visit.close()


# Formulas of which a part lies behind an edge that does not scroll.
FORMULAS = '[...document.querySelectorAll("article mjx-container")]'
CUT_OFF = (
    f"() => {FORMULAS}"
    """.flatMap((box) => {
  if (!box.getBoundingClientRect().width) return [];
  const end = box.querySelector("mjx-math").getBoundingClientRect().right;
  for (let at = box; at.tagName !== "ARTICLE"; at = at.parentElement) {
    const [style, edge] = [getComputedStyle(at), at.getBoundingClientRect().right];
    if (["auto", "scroll"].includes(style.overflowX)) return [];
    if (style.overflowX !== "visible" && end > edge + 2)
      return [`${end} behind ${edge}: ${box.textContent.slice(0, 60)}`];
  }
  return [];
})"""
)
UNFOLD = """async () => {
  for (const fold of document.querySelectorAll("article details")) fold.open = true;
  for (const fold of document.querySelectorAll(".toggle-hidden .toggle-button"))
    fold.click();
  await new Promise((done) => setTimeout(done, 500));
}"""


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_formula_is_cut_off_on_a_telephone(browser, book, address):
    visit = Visit(browser, book, 390)
    page = visit.go(address)
    settle(page)
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(CUT_OFF) == []
    visit.close()


def test_a_formula_wider_than_the_page_fades_until_its_end(browser, book):
    visit = Visit(browser, book, 390)
    page = visit.go("book/objective/rome.html")
    settle(page)
    wide = page.locator("div.math .edu-wide").first
    wide.wait_for()
    faded = "(box) => getComputedStyle(box).maskImage !== 'none'"
    assert wide.evaluate(faded)
    wide.evaluate("(box) => box.scrollTo(box.scrollWidth, 0)")
    page.wait_for_function("document.querySelector('div.math .edu-wide.edu-end')")
    assert not wide.evaluate(faded)
    visit.close()


def test_every_chapter_has_a_figure_that_answers(browser, book):
    for address in (deck.replace(".slides", "") for deck in DECKS):
        visit = Visit(browser, book)
        assert use_sliders(visit.go(address)) > 0, address
        visit.close()


AXE = Path(__file__).parent / "assets" / "axe.min.js"
SEEN = [
    "book/intro.html",
    "book/start/rewriting-one-fact.html",
    "book/reference/lecturers.html",
]


def barriers(page: Page) -> list[str]:
    """What keeps people out, as axe names it, if it is serious or critical."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    # Formulas are drawn by MathJax, which gives each a text of its own.
    part = {"include": [["html"]], "exclude": [["mjx-container"]]}
    found = page.evaluate("(part) => axe.run(part)", part)["violations"]
    return [
        f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", SEEN)
def test_nobody_is_kept_out(browser, book, address, scheme):
    visit = Visit(browser, book, scheme=scheme)
    page = visit.go(address)
    settle(page)
    assert barriers(page) == []
    visit.close()


def test_barriers_are_noticed(browser, tmp_path):
    (tmp_path / "bad.html").write_text(
        '<html lang="en"><link rel="icon" href="data:,"><title>Bad</title><main>'
        '<h1>Bad</h1><p style="color: #ccc; background: #fff">pale</p>'
        '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></main></html>'
    )
    with Host(tmp_path) as address:
        visit = Visit(browser, address)
        found = " ".join(barriers(visit.go("bad.html")))
        visit.page.close()
    assert "color-contrast" in found
    assert "image-alt" in found


def test_slides_advance(browser, book):
    for address in DECKS:
        visit = Visit(browser, book)
        page = visit.go(address)
        seen = []
        for _ in range(page.evaluate("Reveal.getTotalSlides()")):
            seen.append(page.evaluate("JSON.stringify(Reveal.getIndices())"))
            page.keyboard.press("Space")
        assert len(set(seen)) > 3
        assert page.evaluate("Reveal.isLastSlide()")
        assert page.locator("mjx-merror").count() == 0
        visit.close()


def test_search_finds(browser, book):
    visit = Visit(browser, book)
    page = visit.go("search.html?q=fact")
    page.locator("#search-results li a").first.wait_for()
    visit.close()


DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="{}0" height="9"/>'


@pytest.fixture
def figure(tmp_path):
    """A page of our own with a figure that has two sliders."""
    made = frames(
        [DOT.format(i) for i in range(1, 7)],
        {"layer": range(3), "kind": ["mlp", "attention"]},
        title="Dots",
        alt="A dot",
        start=2,
    )
    icon = '<link rel="icon" href="data:,">'
    (tmp_path / "index.html").write_text(icon + made._repr_html_() * 2)
    with Host(tmp_path) as address:
        yield address


def test_frames_answer_to_keys(browser, figure):
    visit = Visit(browser, figure)
    page = visit.go("index.html")
    assert use_sliders(page) == 2
    box = page.locator(".edu-frames").first
    layer, kind = box.locator("input").all()
    layer.focus()
    page.keyboard.press("End")
    kind.focus()
    page.keyboard.press("End")
    assert visible(page, box) == [5]
    assert layer.get_attribute("aria-valuetext") == "2"
    assert kind.get_attribute("aria-valuetext") == "attention"
    assert visible(page, page.locator(".edu-frames").last) == [2]
    visit.close()


def test_frames_answer_to_the_mouse(browser, figure):
    visit = Visit(browser, figure)
    page = visit.go("index.html")
    box = page.locator(".edu-frames").first
    slider = box.locator("input").first
    slider.click(position={"x": slider.bounding_box()["width"] - 3, "y": 5})
    assert visible(page, box) == [4]
    visit.close()


def test_what_goes_wrong_on_a_page_is_noticed(browser, tmp_path):
    (tmp_path / "bad.html").write_text(
        '<link rel="icon" href="data:,"><script src="https://cdn.example/x.js"></script>'
        '<img src="gone.png"><script>console.error("oops"); undefined_name()</script>'
    )
    with Host(tmp_path) as address:
        visit = Visit(browser, address)
        visit.go("bad.html")
        heard = " ".join(visit.wrong)
        visit.page.close()
    for words in ("asks for https://cdn.example", "404", "oops", "undefined_name"):
        assert words in heard
