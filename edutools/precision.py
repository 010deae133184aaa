"""In which precision a device solves: float64, or float32 that is refined.

Closed forms need float64, because second moments are ill-conditioned. Processors and
data-centre GPUs compute it at half the rate of float32. Other GPUs do so at a 32nd or
64th of the rate, and some devices not at all: there C is factorised in float32, and
each solution is refined by residuals in float64 until it is as good.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.checks import shown

__all__ = ["PRECISIONS", "chosen_precision", "double", "home"]

PRECISIONS = ("auto", "float64", "refined")
# Compute capabilities with float64 at half the rate of float32: P100, V100, A100,
# H100 and H200, B200. Source: CUDA C++ Programming Guide, arithmetic instructions.
HALF_RATE = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
NO_FLOAT64 = {"mps", "xpu"}


def chosen_precision(device: torch.device | str, precision: str = "auto") -> str:
    """Resolve 'auto': 'float64' where the device is good at it, otherwise 'refined'.

    Decided by the kind of device, never by timing, so that a machine always gives the
    same numbers.

    Args:
        device: where C is to be factorised.
        precision: 'auto', or one of the two, which is returned as it is.

    Raises:
        ValueError: if the precision is unknown.

    Book: sec-rome-update

    >>> chosen_precision("cpu"), chosen_precision("mps")
    ('float64', 'refined')
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {shown(precision)}; choose one of "
            f"{', '.join(map(repr, PRECISIONS))}."
        )
    if precision != "auto":
        return precision
    device = torch.device(device)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        # AMD's data-centre GPUs (gfx9) are good at float64, too.
        good = capability in HALF_RATE or bool(torch.version.hip and capability[0] == 9)
        return "float64" if good else "refined"
    return "refined" if device.type in NO_FLOAT64 else "float64"


def home(device: torch.device | str) -> torch.device:
    """Where float64 numbers of this device are kept: there, or on the CPU.

    Book: sec-rome-update

    >>> home("mps")
    device(type='cpu')
    """
    device = torch.device(device)
    return torch.device("cpu") if device.type in NO_FLOAT64 else device


def double(tensor: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
    """Return the tensor in float64, on the CPU if its device has none.

    Raises:
        ValueError: if it holds a NaN or an infinity.

    Book: sec-rome-update
    """
    tensor = tensor.to(home(tensor.device)).double()
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds a NaN or an infinity. Look where it was made.")
    return tensor
