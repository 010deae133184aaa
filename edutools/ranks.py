"""Several processes at one task, as torchrun starts them: which one is this?

What they exchange is small and comes once or twice in a task, so it travels between
CPUs by gloo, whatever the models run on. It travels as bytes of safetensors or as text;
nothing is pickled.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["Elsewhere", "Ranks", "gpus", "here", "joined"]

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one process may work while the others wait
FAILED = "edutools/failed"  # how many processes have


class Elsewhere(RuntimeError):  # noqa: N818
    """Another process has failed first, and has told why.

    Book: sec-scale-processes
    """


@dataclass(frozen=True)
class Ranks:
    """The processes of a task, counted from 0. Alone, nothing is exchanged.

    All of them call `gather`, `gather_texts` and `total` in the same order.

    Attributes:
        rank: which of them this one is.
        size: how many there are.

    Book: sec-scale-processes

    >>> [Ranks(rank, 3).share("abcdefg") for rank in range(3)]
    [['a', 'b', 'c'], ['d', 'e'], ['f', 'g']]
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is this process that prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part; those of all, in the order of ranks, are the items."""
        each, more = divmod(len(items), self.size)
        ends = [rank * each + min(rank, more) for rank in (self.rank, self.rank + 1)]
        return list(items[ends[0] : ends[1]])

    def gather(
        self, tensors: Mapping[str, Shaped[Tensor, "..."]]
    ) -> list[dict[str, Shaped[Tensor, "..."]]]:
        """The tensors of every process, by rank; on the CPU. Shapes may differ."""
        if self.size == 1:
            return [dict(tensors)]
        sent = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        return [load(part) for part in _exchanged(save(sent))]

    def gather_texts(self, text: str) -> list[str]:
        """The text of every process, by rank."""
        if self.size == 1:
            return [text]
        return [part.decode() for part in _exchanged(text.encode())]

    def total(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum of the tensors of all processes, which have one shape; on the CPU."""
        if self.size == 1:
            return tensor
        from torch import distributed

        sum_ = tensor.detach().cpu().clone()
        distributed.all_reduce(sum_)
        return sum_


def here() -> Ranks:
    """This process's place, if it belongs to a group; else it is alone.

    Book: sec-scale-processes
    """
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def joined(*, calm: tuple[type[Exception], ...] = ()) -> Iterator[Ranks]:
    """Belong to the group of processes that torchrun has started, if it has.

    It has if RANK and WORLD_SIZE are set. The first process that fails raises its own
    error, all others `Elsewhere`. A group that exists already is used and left alone.

    Args:
        calm: exceptions that are no failures.

    Raises:
        Elsewhere: if another process has failed first.

    Book: sec-scale-processes
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if here().size > 1 or size == 1 or "RANK" not in os.environ:
        yield here()
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        yield Ranks(rank, size)
        distributed.barrier()  # nobody leaves while another one may fail
    except calm:
        raise
    except Exception as error:
        if not _is_first(store):
            raise Elsewhere(
                "Another process of this task has failed; its message says why."
            ) from error
        raise
    finally:
        distributed.destroy_process_group()


def gpus() -> dict[str, Any]:
    """Options of `from_pretrained` that give each process of a machine its own GPUs.

    Processes share the GPUs of their machine evenly; with more processes than GPUs
    some share one. Nothing for a process that is alone, or where there is no GPU.

    Book: sec-scale-processes
    """
    found = torch.cuda.device_count()
    if here().size == 1 or not found:
        return {}
    local, beside = (
        int(os.environ.get(name, default))
        for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    each = max(1, found // beside)
    mine = [(local * each + i) % found for i in range(each)]
    if each == 1:
        return {"device_map": {"": mine[0]}}
    free = {i: torch.cuda.mem_get_info(i)[0] for i in mine}
    return {"device_map": "auto", "max_memory": free}


def _exchanged(data: bytes) -> list[bytes]:
    """The bytes of every process, by rank."""
    from torch import distributed

    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    size = distributed.get_world_size()
    lengths = [torch.zeros(1, dtype=torch.long) for _ in range(size)]
    distributed.all_gather(lengths, torch.tensor([len(mine)]))
    longest = int(max(lengths))
    room = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
    padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
    distributed.all_gather(room, padded)
    return [
        part[: int(length)].numpy().tobytes()
        for part, length in zip(room, lengths, strict=True)
    ]


def _is_first(store: Any) -> bool:
    """Whether no other process has failed before; true if nobody can be asked."""
    try:
        return store.add(FAILED, 1) == 1
    except RuntimeError:
        return True
