"""The loop that trains MEND's editors: early stop, checkpoints, resume."""

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edutools.editors import Editors
from edutools.facts import Case
from edutools.mendfit import EditBatch, Training, draw_batch, edit_loss

__all__ = ["Trained", "train_editors"]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Trained:
    """Editors as they were when they did best on held-out edits.

    Attributes:
        editors: the trained editors.
        history: one entry per look at the held-out edits: step, mean losses since the
            last look, and held-out losses, in nats.

    Book: sec-mend-training
    """

    editors: Editors
    history: list[dict[str, float]]


@dataclass
class _Run:
    """Everything that a training in progress consists of."""

    editors: Editors
    adam: torch.optim.Adam
    best: dict[str, Tensor]
    step: int = 0
    least: float = math.inf
    waited: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])


def train_editors(
    editors: Editors,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Case],
    *,
    held_out: Sequence[Case],
    training: Training,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train a copy of editors until held-out edits get no better.

    Args:
        editors: what to start from; stay as they are.
        model: the model to be edited; its weights stay as they are.
        tokenizer: the model's.
        cases: edits to learn from, with paraphrases and neighborhood prompts.
        held_out: edits of other subjects that tell when to stop.
        training: settings.
        seed: of what is drawn.
        checkpoint: a folder to save the state in at every look, and to go on from if it
            holds one. The result is the same as without the interruption.
        progress: show a bar.

    Raises:
        ValueError: if there are too few cases, a subject is in both lists, or the
            checkpoint belongs to another training.
        RuntimeError: if the loss is not a number.

    Source: Mitchell et al. 2022 (MEND), algorithm 1.
    Book: sec-mend-training
    """
    _check_cases(cases, held_out, training)
    run = _begin(editors.beside(model), training)
    file = None if checkpoint is None else Path(checkpoint) / CHECKPOINT
    identity = _identity(editors, cases, held_out, training, seed)
    if file is not None and file.is_file():
        _load(run, file, identity)
    looks = _looks(tokenizer, held_out, training, seed)
    with tqdm(
        total=training.steps,
        initial=run.step,
        desc="MEND",
        disable=not progress or None,
    ) as bar:
        while run.step < training.steps and run.waited < training.patience:
            batch = draw_batch(tokenizer, cases, training, seed=f"{seed}-{run.step}")
            _step(run, model, batch, training)
            bar.update()
            if run.step % training.every == 0 or run.step == training.steps:
                bar.set_postfix(_look(run, model, looks, training))
                if file is not None:
                    _save(run, file, identity)
    run.editors.load_state_dict(run.best)
    return Trained(run.editors.requires_grad_(False), run.history)


def _check_cases(
    cases: Sequence[Case], held_out: Sequence[Case], training: Training
) -> None:
    for name, part in {"cases": cases, "held_out": held_out}.items():
        if len({case.fact.subject for case in part}) <= training.edits:
            raise ValueError(
                f"{name} has {len({c.fact.subject for c in part})} subjects; a step "
                f"draws {training.edits} edits and neighbors of other subjects. Give "
                "more cases, or lower Training.edits."
            )
    both = {c.fact.subject for c in cases} & {c.fact.subject for c in held_out}
    if both:
        raise ValueError(
            f"{sorted(both)[0]!r} and {len(both) - 1} more subjects are in `cases` and "
            "in `held_out`; held-out edits must be about other subjects."
        )


def _begin(editors: Editors, training: Training) -> _Run:
    mine = copy.deepcopy(editors).requires_grad_()
    groups = [
        {"params": list(mine.editors.parameters()), "lr": training.lr},
        {"params": [mine.alpha], "lr": training.lr_alpha},
    ]
    return _Run(mine, torch.optim.Adam(groups), _copied(mine))


def _step(
    run: _Run, model: PreTrainedModel, batch: EditBatch, training: Training
) -> None:
    parts = edit_loss(model, run.editors, batch, learn=True)
    loss = training.c_edit * parts["edit"] + parts["locality"]
    if not bool(loss.isfinite()):
        raise RuntimeError(
            f"The loss of step {run.step} is {float(loss)}. Lower Training.lr or "
            "MEND.alpha, or load the model in float32."
        )
    run.adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.editors.parameters(), training.clip)
    for group, lr in zip(
        run.adam.param_groups, (training.lr, training.lr_alpha), strict=True
    ):
        group["lr"] = lr * training.rate(run.step)
    run.adam.step()
    run.step += 1
    values = (parts["edit"].item(), parts["locality"].item())
    run.sums = [old + new for old, new in zip(run.sums, values, strict=True)]


def _looks(
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Case],
    training: Training,
    seed: int,
) -> list[EditBatch]:
    """The same held-out edits at every look: about a hundred, or all there are."""
    count = max(1, min(100, len(held_out)) // training.edits)
    return [
        draw_batch(tokenizer, held_out, training, seed=f"{seed}-held out-{i}")
        for i in range(count)
    ]


@torch.no_grad()
def _look(
    run: _Run, model: PreTrainedModel, looks: list[EditBatch], training: Training
) -> dict[str, float]:
    """Measure the held-out loss, keep the best editors, count looks without a gain."""
    found = [edit_loss(model, run.editors, batch, learn=False) for batch in looks]
    edit = sum(parts["edit"].item() for parts in found) / len(found)
    locality = sum(parts["locality"].item() for parts in found) / len(found)
    since = run.step - (run.history[-1]["step"] if run.history else 0)
    entry = {
        "step": run.step,
        "edit": run.sums[0] / since,
        "locality": run.sums[1] / since,
        "held_out_edit": edit,
        "held_out_locality": locality,
    }
    run.history.append(entry)
    run.sums = [0.0, 0.0]
    loss = training.c_edit * edit + locality
    if loss < run.least:
        run.least, run.waited, run.best = loss, 0, _copied(run.editors)
    else:
        run.waited += 1
    return {"edit": round(edit, 3), "locality": round(locality, 3)}


def _copied(editors: Editors) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in editors.state_dict().items()}


def _identity(
    editors: Editors,
    cases: Sequence[Case],
    held_out: Sequence[Case],
    training: Training,
    seed: int,
) -> str:
    """A hash of everything that decides how a training goes."""
    told = json.dumps(
        [asdict(training), seed, list(map(asdict, cases)), list(map(asdict, held_out))]
    )
    digest = hashlib.sha256(told.encode())
    for name, value in editors.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _save(run: _Run, file: Path, identity: str) -> None:
    """Write the state to a new file that takes the old one's place at once."""
    tensors = {f"now.{name}": value for name, value in run.editors.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in run.best.items()}
    for i, state in run.adam.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
    numbers = (run.step, run.least, run.waited, run.history, run.sums)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        new,
        {"identity": identity, "numbers": json.dumps(numbers)},
    )
    new.replace(file)


def _load(run: _Run, file: Path, identity: str) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            told: dict[str, Any] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"The checkpoint {str(file)!r} is damaged ({error}). Remove it to "
            "start anew."
        ) from None
    if told.get("identity") != identity:
        raise ValueError(
            f"The checkpoint {str(file)!r} belongs to a training with other cases, "
            "settings, seed or editors. Give another folder, or remove it."
        )
    run.step, run.least, run.waited, run.history, run.sums = json.loads(told["numbers"])
    run.editors.load_state_dict(_under("now.", tensors))
    run.best = _under("best.", tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("adam.", tensors).items():
        i, _, part = name.partition(".")
        state.setdefault(int(i), {})[part] = value
    groups = run.adam.state_dict()["param_groups"]
    run.adam.load_state_dict({"state": state, "param_groups": groups})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
