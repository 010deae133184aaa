"""Keep the built pages from asking any foreign host for anything.

Drops the scripts that the theme's tools would load from elsewhere, and warns,
which fails the build, of whatever else a page would fetch from another host.
"""

import re

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?
        \b(?:src|data)\s*=\s*["'](?:https?:)?//[^"']+["']""",
    re.VERBOSE | re.IGNORECASE,
)


def is_foreign(name: object) -> bool:
    """Tell whether a script or style sheet would come from another host."""
    return bool(re.match(r"(https?:)?//", str(name)))


def keep_local(
    app: Sphinx, page: str, template: str, context: dict, tree
) -> None:
    """Drop the scripts of live cells (thebe); warn of what is not local."""
    scripts = context.get("script_files", [])
    # In place: the page adds further files to this very list.
    scripts[:] = [script for script in scripts if not _is_thebe(script)]
    files = [*scripts, *context.get("css_files", [])]
    names = [getattr(file, "filename", file) for file in files]
    foreign = [str(name) for name in names if is_foreign(name)]
    foreign += FOREIGN.findall(context.get("body", ""))
    for name in foreign:
        logger.warning("%s is fetched from another host", name, location=page)


def _is_thebe(script: object) -> bool:
    name = str(getattr(script, "filename", script) or "")
    body = str(getattr(script, "attributes", {}).get("body") or "")
    return "thebe" in name.lower() or "thebe" in body.lower()


def setup(app: Sphinx) -> dict:
    """Register the check, after all else has had its turn on a page."""
    app.connect("html-page-context", keep_local, priority=900)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
