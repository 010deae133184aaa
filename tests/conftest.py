"""What several test files share."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.testing import tiny_model, tiny_tokenizer
from scripts.build_book import build

ROOT = Path(__file__).resolve().parent.parent
# The same examples in every run, however busy the machine is.
settings.register_profile("edutools", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("edutools")

Tiny = Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder of numbers recorded from the original implementations",
    )


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder of recorded numbers; `--golden` chooses another one."""
    return request.config.getoption("golden")


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Tiny models by kind, made once; a test that changes one must change it back."""

    @cache
    def made(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return tiny_model(kind), tiny_tokenizer(kind)

    return made


@pytest.fixture(scope="session")
def pages() -> Path:
    """The site, built from the outputs stored in the chapters.

    Each process of tests builds its own, so that none reads what another one writes.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    try:
        return build(ROOT / "_build" / f"tested{worker}", fresh=False)
    except SystemExit as error:
        pytest.fail(str(error), pytrace=False)
