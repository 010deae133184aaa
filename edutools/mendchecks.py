"""Checks of what MEND is given: cases to learn from, and networks for a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.arch import oriented, submodule
from edutools.checks import of_kind, several
from edutools.editors import Editors, mlp_maps
from edutools.facts import Case
from edutools.loaded import in_memory, tokenizes
from edutools.mendfit import Training
from edutools.places import a_path, no_file
from edutools.prompts import fill
from edutools.rows import locate

__all__ = ["check_editors", "checked_cases", "checked_place", "checked_training"]


def checked_training(training: Any) -> Training:
    """The settings of a training; the usual ones for None.

    Raises:
        TypeError: if they are something else.

    Book: sec-mend-training
    """
    if training is None:
        return Training()
    of_kind("training", training, Training, "Training(steps=1000)")
    return training


def checked_cases(
    tokenizer: PreTrainedTokenizerBase, cases: Any, held_out: Any
) -> tuple[list[Case], list[Case]]:
    """Cases to learn from and held-out ones, as lists.

    Raises:
        TypeError: if they are something else, or the tokenizer is none.
        SubjectNotFound: if a subject is lost in tokenization.

    Book: sec-mend-training
    """
    tokenizes(tokenizer)
    parts = several("cases", cases, Case), several("held_out", held_out, Case)
    for part in parts:
        locate(tokenizer, [fill(case.fact) for case in part])
    return parts


def checked_place(checkpoint: Any) -> Path | None:
    """The folder for checkpoints, if one is wanted; it is not made yet.

    Raises:
        TypeError: if it is no path.
        FileExistsError: if it is a file, or below one.

    Book: sec-mend-training
    """
    return None if checkpoint is None else no_file(a_path("checkpoint", checkpoint))


def check_editors(
    model: PreTrainedModel, editors: Editors, layers: Sequence[int]
) -> None:
    """Refuse networks for other weights than those of these layers of the model.

    Raises:
        ValueError: if there is such a weight, or one without values.

    Book: sec-mend-training
    """
    names = [name for layer in layers for name in mlp_maps(model, layer)]
    if names != editors.names:
        other = min({*editors.names} ^ {*names}, default="another order")
        raise ValueError(
            f"MEND.layers is {list(layers)}, but the networks do not belong to the "
            f"MLPs of these layers of the model ({other}). Train new ones with fit."
        )
    for name, shape in editors.shapes.items():
        weight = oriented(submodule(model, name))
        in_memory(name, weight)
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"The network for {name} changes weights of shape {shape}; that of the "
                f"model has {tuple(weight.shape)}. Train one for this model with fit."
            )
