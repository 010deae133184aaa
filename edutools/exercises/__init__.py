"""Checks for the reader's own functions: right or not, and which mistake it looks like.

A check calls the reader's function on fresh random inputs, compares it with the
reference, and, where the two differ, looks for a known mistake that gives the same
numbers. It never shows the reference.
"""

from edutools.exercises.feedback import Feedback
from edutools.exercises.measuring import check_score
from edutools.exercises.rome import check_rome_update

__all__ = ["Feedback", "check_rome_update", "check_score"]
