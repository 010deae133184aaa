"""Ask every address that the built book names on other sites whether it answers.

    python -m scripts.check_links [_build/html]

Needs the network, so no test of the project runs it; a workflow does, weekly. An
address that refuses programs (401, 403, 429) counts as there.
"""

import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bs4 import BeautifulSoup

from scripts.check_site import ROOT

REFUSALS = {401, 403, 405, 429}
SECONDS = 30
TRIES = 3
AGENT = {"User-Agent": "Mozilla/5.0 (link check of a book)"}


def addresses(pages: Iterable[Path]) -> dict[str, str]:
    """Map each foreign address, without its anchor, to a page that names it."""
    found = {}
    for path in pages:
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for link in page.find_all("a", href=True):
            if link["href"].startswith(("http://", "https://")):
                found.setdefault(link["href"].partition("#")[0], path.name)
    return found


def complaint(address: str) -> str:
    """Say what is wrong with an address; nothing if it answers.

    Asks up to three times: a site may be busy.
    """
    wrong = ""
    for _ in range(TRIES):
        try:
            request = urllib.request.Request(address, headers=AGENT)
            with urllib.request.urlopen(request, timeout=SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in REFUSALS:
                return ""
            wrong = str(error.code)
            if error.code in (404, 410):
                break
        except OSError as error:
            wrong = str(error)
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Print the addresses that do not answer; exit code 1 if there are any."""
    given = sys.argv[1:] if arguments is None else arguments
    pages = Path(given[0]) if given else ROOT / "_build" / "html"
    named = addresses(sorted(pages.rglob("*.html")))
    if not named:
        print(f"No page in {pages} names a foreign address. Run `make book` first.")
        return 1
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(complaint, named))
    wrong = [(at, why) for at, why in zip(named, answers, strict=True) if why]
    for address, why in wrong:
        print(f"{named[address]}: {address}: {why}")
    print(f"{len(named)} addresses, {len(wrong)} do not answer")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
