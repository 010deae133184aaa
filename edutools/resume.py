"""Run the upper part of a model again, from a hidden state on.

What happens below a changed layer does not depend on the change, so it needs to be
computed once only. A whole pass shows how the model calls its blocks; the upper ones
are then called one after the other in the same way.

Axes: rows of the recorded pass · batch rows of a later run · tokens · d_model.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from edutools.arch import architecture_of, check_layer, n_layers, submodule
from edutools.hooks import first_input, first_output

__all__ = ["Above", "Taken", "record", "recording"]

Hidden = Float[Tensor, "batch tokens d_model"]
Call = tuple[dict[int | str, Any], int | str]  # what was given, where the state stood

AS_IS = torch.device("meta")  # weights live elsewhere, and their own hooks move inputs


class Above:
    """The blocks from one layer on, and how the last forward pass has called them.

    Attributes:
        layer: the lowest of them.
        states: by layer, the hidden state that a block received: of the lowest block,
            or of every one (see `record`), each where its block is.
        blocks: all blocks of the model.
        calls: by layer, what else the block was called with, and where the state stood.

    Book: sec-hooks
    """

    def __init__(self, model: PreTrainedModel, layer: int, *, every: bool):
        place = architecture_of(model)
        self.layer = check_layer(model, layer)
        self.states: dict[int, Float[Tensor, "rows tokens d_model"]] = {}
        self._every = every
        self._names = [place.block(depth) for depth in range(n_layers(model))]
        self.blocks = [submodule(model, name) for name in self._names]
        self.calls: dict[int, Call] = {}
        self._rows = 0
        self._left: Tensor | None = None  # what the block below has returned

    def run(
        self,
        hidden: Hidden,
        layer: int,
        *,
        rows: Int[Tensor, " batch"] | None = None,
        end: int | None = None,
    ) -> Hidden:
        """Send hidden states through the blocks from a layer on.

        The blocks are called as modules, so that patches and hooks on them and inside
        them act. Gradients flow if they are on.

        Args:
            hidden: what the block of that layer shall receive.
            layer: where to start; one above the last layer gives the states back.
            rows: which row of the recorded pass each one stands for, for masks and
                positions. None: the same rows in the same order.
            end: one above the last layer to run. None: run to the last block.

        Returns:
            States after the last of these blocks, equal to those of a whole pass.

        Raises:
            ValueError: if the layer lies below the recorded ones.
            RuntimeError: if no pass has reached the last block yet.
        """
        depths = range(layer, len(self.blocks) if end is None else end)
        if layer < self.layer:
            raise ValueError(
                f"Layer {layer} lies below layer {self.layer}, where the recording "
                f"begins. Record from layer {layer} on."
            )
        if not all(depth in self.calls for depth in depths):
            raise RuntimeError(
                "No forward pass has reached the last block yet. Run the model inside "
                "`with record(...)`, to the end, before a part of it."
            )
        taken = self._taken(rows)
        for depth in depths:
            block, (given, first) = self.blocks[depth], self.calls[depth]
            device = next(block.parameters()).device
            now = taken.call(depth, given, device)
            now[first] = _moved(hidden, device)
            args = [now.pop(key) for key in given if isinstance(key, int)]
            named = {str(key): value for key, value in now.items()}
            hidden = first_output(self._names[depth], block(*args, **named))
        return hidden

    def _taken(self, rows: Int[Tensor, " batch"] | None) -> "Taken":
        return Taken(rows, self._rows)

    def _enter(self, depth: int) -> Callable[..., Any]:
        def hook(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given, first = first_input(self._names[depth], args, kwargs)
            if depth == self.layer:
                self.states, self.calls = {}, {}
                self._rows = len(given[first])
            else:
                self._check_next(depth, given[first])
            if self._every or depth == self.layer:
                self.states[depth] = given[first]
            self.calls[depth] = given | {first: None}, first

        return hook

    def _leave(self, depth: int) -> Callable[..., None]:
        def hook(_block: Any, _args: Any, output: Any) -> None:
            self._left = first_output(self._names[depth], output)

        return hook

    def _check_next(self, depth: int, entered: Tensor) -> None:
        """Nothing but the blocks may act between the blocks."""
        left, self._left = self._left, None
        if left is entered or (
            left is not None and torch.equal(left.to(entered.device), entered)
        ):
            return
        raise RuntimeError(
            f"{self._names[depth]!r} does not receive what {self._names[depth - 1]!r} "
            "returns, so these blocks cannot be run alone. Remove what stands between "
            "them, or name all blocks in model.architecture."
        )


@contextmanager
def record(
    model: PreTrainedModel, layer: int, *, every: bool = False
) -> Iterator[Above]:
    """Record how a forward pass calls the blocks from a layer on, to run them again.

    The pass must not use a cache of keys and values (`use_cache=False`). States are
    not copied and not detached. What a patch changes is not recorded: it acts again,
    if it is still there, when the blocks run again.

    Args:
        model: a causal language model.
        layer: the lowest block of interest.
        every: keep the state in front of every block, rather than of the lowest only.

    Yields:
        The blocks above, filled by each forward pass.

    Raises:
        ValueError: if the layer does not exist.
        RuntimeError: during the pass, if something else acts between two blocks.

    Book: sec-hooks
    """
    above = Above(model, layer, every=every)
    with recording(above):
        yield above


@contextmanager
def recording(above: Above) -> Iterator[None]:
    """Let forward passes fill a record of how they call the blocks; see `record`.

    Book: sec-hooks
    """
    with ExitStack() as hooks:
        for depth in range(above.layer, len(above.blocks)):
            block = above.blocks[depth]
            enter = block.register_forward_pre_hook(
                above._enter(depth), prepend=True, with_kwargs=True
            )
            hooks.callback(enter.remove)
            leave = block.register_forward_hook(above._leave(depth))
            hooks.callback(leave.remove)
        yield


class Taken:
    """Rows of what blocks were called with, taken once for all blocks that share it.

    Args:
        rows: which rows of the recorded pass; None: all, as they are.
        recorded: how many rows that pass had.

    Book: sec-hooks
    """

    def __init__(self, rows: Int[Tensor, " batch"] | None, recorded: int):
        self._rows, self._recorded = rows, recorded
        self._done: dict[tuple[int, torch.device], Tensor] = {}

    def call(
        self, depth: int, given: dict[int | str, Any], device: torch.device
    ) -> dict[int | str, Any]:
        """What the block of that depth is called with for these rows, on a device."""
        return {key: self.at(device, value) for key, value in given.items()}

    def at(self, device: torch.device, value: Any) -> Any:
        """The value for the rows, on a device."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.at(device, part) for part in value)
        if not isinstance(value, Tensor):
            return value
        key = id(value), device
        if key not in self._done:
            self._done[key] = _moved(self._pick(value), device)
        return self._done[key]

    def _pick(self, value: Tensor) -> Tensor:
        """Masks and positions have a row each, or one that serves all."""
        if self._rows is None or value.ndim < 2 or len(value) != self._recorded:
            return value
        return value[self._rows.to(value.device)]


def _moved(value: Tensor, device: torch.device) -> Tensor:
    return value if device == AS_IS else value.to(device)
