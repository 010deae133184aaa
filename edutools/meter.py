"""Count the bytes that tensors take and the operations that products cost.

Works on the meta device, too, where tensors have sizes and no values: a calculation
can be rehearsed there before there is memory for it.
"""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Meter"]


class Meter(TorchDispatchMode):
    """Watches every tensor that is made inside a `with` block.

    What was there before counts for nothing. Memory is counted by storage, so a view
    costs nothing and a tensor counts until its storage is let go. What a kernel takes
    for itself and gives back is not seen.

    Attributes:
        live: bytes of the tensors made inside that are still there.
        peak: the most that `live` has been.
        flops: operations of matrix products, a multiplication and an addition as two.

    Book: sec-planning

    >>> import torch
    >>> with Meter() as meter:
    ...     x = torch.ones(1000, 8, device="meta")
    ...     y = (x @ x.T).sum()
    >>> meter.peak - 4 * (8_000 + 1_000_000), meter.flops
    (4, 16000000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and take note of what comes out."""
        kwargs = kwargs or {}
        for tensor in _tensors([args, kwargs]):
            self._note(tensor, new=False)
        found = func(*args, **kwargs)
        for tensor in _tensors(found):
            self._note(tensor, new=True)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=found)
        return found

    def _note(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        mark, size = storage._cdata, storage.nbytes() if new else 0
        if mark in self._known:
            return
        self._known.add(mark)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, mark, size).atexit = False

    def _forget(self, mark: int, size: int) -> None:
        self._known.discard(mark)
        self.live -= size


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from _tensors(list(found.values()))
    elif isinstance(found, (tuple, list)):
        for item in found:
            yield from _tensors(item)
