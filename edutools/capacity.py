"""How many facts of a value search fit into memory at once."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edutools.objective import Objective
from edutools.rows import SearchRows
from edutools.suffix import Tail

__all__ = ["facts_per_pass", "free_bytes", "kept_bytes", "on_gpu"]

TOKENS = 2048  # in one pass without a GPU, where more of them gain nothing
SHARE = 0.5  # of the free memory: the backward pass needs some, too


def facts_per_pass(objective: Objective, rows: SearchRows) -> int:
    """How many facts like this one go through the model together.

    On GPUs as many as half of the free memory holds, after a look at what one needs;
    rounded down to a power of two, so that a little more or less memory gives the same
    batches and so the same numbers. Elsewhere as many as have 2048 tokens together,
    not counting those before the subject's last one, which are run only once.

    Args:
        objective: the loss whose gradient is wanted.
        rows: of one fact, the longest.

    Book: sec-rome-value
    """
    if not on_gpu(objective.model):
        changed, mask = rows.subject.flatten(), rows.mask.flatten(0, 1)
        tail = Tail(objective.model, objective.layer + 1, changed, mask)
        return max(1, TOKENS // (len(changed) * tail.width))
    need = kept_bytes(objective, rows)
    fits = [
        SHARE * free_bytes(device) / size
        for device, size in need.items()
        if device.type == "cuda"
    ]
    return 2 ** (max(1, int(min(fits, default=1))).bit_length() - 1)


def on_gpu(model: PreTrainedModel) -> bool:
    """Whether any of the model's weights is on a GPU.

    Book: sec-rome-value
    """
    return any(weight.is_cuda for weight in model.parameters())


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing occupies, with what torch has put by.

    Book: sec-rome-value
    """
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def kept_bytes(objective: Objective, rows: SearchRows) -> dict[torch.device, int]:
    """What the losses of these facts keep for their gradients, in bytes by device.

    With the keys and values of the tokens that are not run again. Weights are not
    counted, they are there anyway.

    Book: sec-rome-value
    """
    weights = {
        weight.untyped_storage().data_ptr() for weight in objective.model.parameters()
    }
    kept: dict[tuple[torch.device, int], int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[value.device, storage.data_ptr()] = storage.nbytes()
        return value.detach()  # alive, so that no other one gets its place

    start = objective.start(rows)
    delta_h = torch.zeros_like(start.initial, requires_grad=True)  # (n, d_out)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        _losses = objective.losses(rows, start, delta_h)
    for value in start.above.kept():
        note(value)
    total: dict[torch.device, int] = {}
    for (device, _), size in kept.items():
        total[device] = total.get(device, 0) + size
    return total
