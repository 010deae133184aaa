"""Checks for the reader's own functions: right or not, and which mistake it looks like.

A check calls the reader's function on fresh random inputs, compares it with the
reference, and, where the two differ, looks for a known mistake that gives the same
numbers. It never shows the reference.
"""

from edutools.exercises.emmet import check_emmet_update, check_multipliers
from edutools.exercises.feedback import Feedback
from edutools.exercises.measuring import check_score
from edutools.exercises.memit import check_lam_for_share, check_memit_update
from edutools.exercises.memory import check_least_squares, check_second_moment
from edutools.exercises.objective import check_family, check_feasible
from edutools.exercises.rome import check_rome_update

__all__ = [
    "Feedback",
    "check_emmet_update",
    "check_family",
    "check_feasible",
    "check_lam_for_share",
    "check_least_squares",
    "check_memit_update",
    "check_multipliers",
    "check_rome_update",
    "check_score",
    "check_second_moment",
]
