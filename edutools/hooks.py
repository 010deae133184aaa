"""See and change what flows through a model, by module name.

Both context managers leave the model as they found it, also when an exception flies.
Gradients pass through.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from edutools.arch import submodule
from edutools.checks import several, shown

__all__ = [
    "Seen",
    "capture",
    "evaluating",
    "first_input",
    "first_output",
    "frozen",
    "patch",
]

AnyTensor = Shaped[Tensor, "..."]


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass once everything asked for has been seen."""


class Seen(dict[str, AnyTensor]):
    """What `capture` saw in the last forward pass: module name -> tensor.

    Book: sec-hooks
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._model = model

    def run(self, **inputs: Any) -> Any:
        """Call the model; return its output, or None if the pass was cut short.

        Forgets what an earlier pass has shown.
        """
        self.clear()
        try:
            return self._model(**inputs)
        except _Stop:
            return None


@contextmanager
def capture(
    model: nn.Module,
    names: str | Iterable[str],
    *,
    inputs: bool = False,
    stop: bool = False,
) -> Iterator[Seen]:
    """Record the outputs of named modules during forward passes.

    Patches on the same modules come first, so what is seen is what flows on. The
    tensors are not copied and not detached.

    Args:
        model: any module.
        names: dotted module names, as in `model.named_modules()`.
        inputs: record the modules' (first) inputs rather than their outputs.
        stop: end the pass as soon as every named module has been seen; the layers
            above cost nothing then. Run the model by `seen.run(...)` in this case.

    Yields:
        A dict from module name to tensor, filled by each forward pass. A module that
        returns several values is represented by its first one, the hidden state.

    Raises:
        LookupError: if the model has no module of that name.
        RuntimeError: if `stop` is set and the model is called other than by `seen.run`.

    Book: sec-hooks

    >>> net = nn.Sequential(nn.Identity(), nn.Flatten())
    >>> with capture(net, "1", inputs=True) as seen:
    ...     _ = net(torch.zeros(2, 3, 4))
    >>> seen["1"].shape
    torch.Size([2, 3, 4])
    """
    wanted = [names] if isinstance(names, str) else several("names", names, str)
    seen = Seen(model)

    def record(name: str, value: AnyTensor) -> None:
        seen[name] = value
        if stop and len(seen) == len(set(wanted)):
            raise _Stop

    with ExitStack() as hooks:
        for name in wanted:
            module = submodule(model, name)
            handle = _watch_input if inputs else _watch_output
            hooks.callback(handle(module, name, record).remove)
        try:
            yield seen
        except _Stop:
            raise RuntimeError(
                "capture(..., stop=True) has cut a forward pass short. Call "
                "seen.run(**inputs) inside the with block, not model(**inputs)."
            ) from None


@contextmanager
def patch(
    model: nn.Module,
    changes: Mapping[str, Callable[[AnyTensor], AnyTensor]],
    *,
    inputs: bool = False,
) -> Iterator[None]:
    """Change the outputs (or inputs) of named modules during forward passes.

    Each function receives the module's output (of several values the first, the
    hidden state) and returns what shall flow on in its place, of the same shape. The
    result is cast to the dtype of the output. If patches of one module are nested,
    the inner one acts first.

    Args:
        model: any module.
        changes: dotted module name -> function of the output.
        inputs: change the modules' (first) inputs rather than their outputs. Only
            what the module itself reads changes, not what others read.

    Raises:
        LookupError: if the model has no module of that name.
        TypeError, ValueError: during the pass, if a function returns no tensor, or
            one of another shape.

    Book: sec-hooks

    >>> net = nn.Sequential(nn.Identity(), nn.Identity())
    >>> with patch(net, {"0": lambda h: h + 1}):
    ...     net(torch.zeros(2))
    tensor([1., 1.])
    """
    if not isinstance(changes, Mapping) or not all(map(callable, changes.values())):
        raise TypeError(
            "changes must hold a function for each module name, as {'lm_head': "
            f"torch.relu}}; got {shown(changes)}."
        )
    # Hooks that transformers leaves behind record outputs: we must come first.
    with ExitStack() as hooks:
        for name, change in changes.items():
            module = submodule(model, name)
            if inputs:
                handle = module.register_forward_pre_hook(
                    _input_changer(name, change), prepend=True, with_kwargs=True
                )
            else:
                handle = module.register_forward_hook(
                    _changer(name, change), prepend=True
                )
            hooks.callback(handle.remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every module its own mode back afterwards.

    Book: sec-hooks
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep gradients out of the weights; give each its own setting back afterwards.

    Inside, gradients are on and flow through the model to whatever asks for them.

    Book: sec-hooks
    """
    # By name: accelerate replaces the parameters that it fetches during a pass.
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    try:
        for name in learning:
            model.get_parameter(name).requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for name in learning:
            model.get_parameter(name).requires_grad_(True)


def first_input(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[int | str, Any], int | str]:
    """What a module was called with, by place or name, and which is the first tensor.

    Raises:
        TypeError: if there is no tensor.

    Book: sec-hooks
    """
    given = {**dict(enumerate(args)), **kwargs}
    for key, value in given.items():
        if isinstance(value, Tensor):
            return given, key
    raise TypeError(f"Module {name!r} was called without a tensor in its inputs.")


def first_output(name: str, output: Any) -> AnyTensor:
    """The hidden state in what a module returns: the tensor, or the first of several.

    Raises:
        TypeError: if the output does not begin with a tensor.

    Book: sec-hooks
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(
        f"Module {name!r} returns a {type(output).__name__}, not a tensor or a tuple "
        "that begins with one. Name a block, an attention, an MLP or a linear map."
    )


def _watch_output(
    module: nn.Module, name: str, record: Callable[[str, AnyTensor], None]
) -> torch.utils.hooks.RemovableHandle:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        record(name, first_output(name, output))

    return module.register_forward_hook(hook)


def _watch_input(
    module: nn.Module, name: str, record: Callable[[str, AnyTensor], None]
) -> torch.utils.hooks.RemovableHandle:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given, first = first_input(name, args, kwargs)
        record(name, given[first])

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _changer(name: str, change: Callable[[AnyTensor], AnyTensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        new = _changed(name, "output", change, first_output(name, output))
        return new if isinstance(output, Tensor) else (new, *output[1:])

    return hook


def _input_changer(
    name: str, change: Callable[[AnyTensor], AnyTensor]
) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, first = first_input(name, args, kwargs)
        given[first] = _changed(name, "input", change, given[first])
        return tuple(given[i] for i in range(len(args))), {k: given[k] for k in kwargs}

    return hook


def _changed(
    name: str, what: str, change: Callable[[AnyTensor], AnyTensor], old: AnyTensor
) -> AnyTensor:
    new = change(old)
    if not isinstance(new, Tensor):
        raise TypeError(f"The patch of {name!r} must return a tensor; got {new!r}.")
    if new.shape != old.shape:
        raise ValueError(
            f"The patch of {name!r} returned shape {tuple(new.shape)}; the "
            f"module's {what} has {tuple(old.shape)}. Return one of that shape."
        )
    return new.to(old.dtype)
