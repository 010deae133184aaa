"""Locate and edit facts in language models.

Import the package as ``import edutools as edu``.
"""

from importlib.metadata import version as _version

__version__ = _version("edutools")
