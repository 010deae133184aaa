"""Locate and edit facts in language models.

Import the package as ``import edutools as edu``.
"""

from importlib.metadata import version as _version

from edutools.batch import EMMET, MEMIT
from edutools.change import Edit
from edutools.effects import Trace, average_effect
from edutools.evaluate import Report, accuracy, evaluate
from edutools.facts import Case, Fact
from edutools.finetune import FineTune
from edutools.generation import Generation, generate
from edutools.hooks import capture, patch
from edutools.mend import MEND
from edutools.merge import MEMITMerge
from edutools.methods import edit, edit_each
from edutools.moments import SecondMoment, second_moment
from edutools.pocket import load, pocket
from edutools.questions import evaluate_zsre
from edutools.records import load_cases, load_facts, load_zsre
from edutools.rome import ROME
from edutools.sequential import ENCORE, AlphaEdit, remember
from edutools.solve import emmet_update, memit_update, rome_update
from edutools.tracing import causal_trace, causal_traces

__version__ = _version("edutools")

__all__ = [
    "EMMET",
    "ENCORE",
    "MEMIT",
    "MEND",
    "ROME",
    "AlphaEdit",
    "Case",
    "Edit",
    "Fact",
    "FineTune",
    "Generation",
    "MEMITMerge",
    "Report",
    "SecondMoment",
    "Trace",
    "accuracy",
    "average_effect",
    "capture",
    "causal_trace",
    "causal_traces",
    "edit",
    "edit_each",
    "emmet_update",
    "evaluate",
    "evaluate_zsre",
    "generate",
    "load",
    "load_cases",
    "load_facts",
    "load_zsre",
    "memit_update",
    "patch",
    "pocket",
    "remember",
    "rome_update",
    "second_moment",
]
