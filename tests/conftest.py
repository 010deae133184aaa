"""What several test files share."""

from pathlib import Path

import pytest

from scripts.build_book import build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def pages() -> Path:
    """The site, built from the outputs stored in the chapters; warnings fail."""
    return build(ROOT / "_build" / "tested", fresh=False)
