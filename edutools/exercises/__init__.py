"""Checks for the reader's own functions: right or not, and which mistake it looks like.

A check calls the reader's function on fresh random inputs, compares it with the
reference, and, where the two differ, looks for a known mistake that gives the same
numbers. It never shows the reference.
"""

from edutools.exercises.corners import (
    check_alphaedit_update,
    check_encore_update,
)
from edutools.exercises.distribution import check_fractions, check_leftover
from edutools.exercises.emmet import check_emmet_update, check_multipliers
from edutools.exercises.evaluation import (
    check_lead,
    check_paired_error,
    check_wilson,
)
from edutools.exercises.feedback import Feedback
from edutools.exercises.measuring import check_score
from edutools.exercises.memit import check_lam_for_share, check_memit_update
from edutools.exercises.memory import check_least_squares, check_second_moment
from edutools.exercises.mend import check_editor_block, check_gradient
from edutools.exercises.neurons import check_integrated_gradients, check_shared
from edutools.exercises.objective import check_family, check_feasible
from edutools.exercises.problem import (
    check_gradient_shift,
    check_locality,
    check_radius,
)
from edutools.exercises.rome import check_rome_update
from edutools.exercises.scaling import check_in_turn, check_seed_interval
from edutools.exercises.sharing import check_adapter_change, check_moment_bytes
from edutools.exercises.tracing import (
    check_corruption,
    check_effect,
    check_mean_effect,
)
from edutools.exercises.transformer import (
    check_block,
    check_gated_key,
    check_last_token,
)
from edutools.exercises.values import check_kl, check_mixed_cost
from edutools.exercises.world import check_bits, check_guess

__all__ = [
    "Feedback",
    "check_adapter_change",
    "check_alphaedit_update",
    "check_bits",
    "check_block",
    "check_corruption",
    "check_editor_block",
    "check_effect",
    "check_emmet_update",
    "check_encore_update",
    "check_family",
    "check_feasible",
    "check_fractions",
    "check_gated_key",
    "check_gradient",
    "check_gradient_shift",
    "check_guess",
    "check_in_turn",
    "check_integrated_gradients",
    "check_kl",
    "check_lam_for_share",
    "check_last_token",
    "check_lead",
    "check_least_squares",
    "check_leftover",
    "check_locality",
    "check_mean_effect",
    "check_memit_update",
    "check_mixed_cost",
    "check_moment_bytes",
    "check_multipliers",
    "check_paired_error",
    "check_radius",
    "check_rome_update",
    "check_score",
    "check_second_moment",
    "check_seed_interval",
    "check_shared",
    "check_wilson",
]
