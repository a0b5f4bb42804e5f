"""The processes of a run: one, or several that `accelerate launch` or `torchrun` has started.

All of them run the same code with the same seeds. What they must agree on and cannot compute alike is made by the main
process (`from_main`) or reduced. With one process everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tas.errors import TasError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def join() -> torch.device:
    """Join the other processes, where there are any, and give the device of this one.

    Nothing that an `Accelerator` of the user's holds is touched.
    """
    import torch
    from accelerate import PartialState

    # the others wait while the main process measures, however long; the launcher ends them if it fails
    device = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7)).device
    assert device is not None
    return device


@contextmanager
def launched() -> Iterator[None]:
    """Join the processes that a launcher has started, if it has, for the block; there, only the main one prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch.distributed as dist

    join()
    if is_main_process():
        yield
    else:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    dist.barrier()  # or the first to leave takes down what the others still use
    dist.destroy_process_group()  # not after an error: the others may be waiting, and the launcher ends them


def num_processes() -> int:
    """How many processes have joined."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Which of them this one is, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if num_processes() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks."""
    return process_index() == 0


def usable_cores() -> int:
    """Cores that this process may use: a container may own fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def from_main(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The same function, run by the main process alone; every process gets its result, or its error of ours.

    All processes must call it. The others wait until the main process is done.
    """

    @wraps(function)
    def shared(*args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        """What the main process got, or the error it met."""
        if num_processes() == 1:
            return function(*args, **options)
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None, None]
        if is_main_process():
            try:
                found[0] = function(*args, **options)
            except TasError as error:
                found[1] = error
        result, error = broadcast_object_list(found)
        if error is not None:
            raise error
        return result

    return shared


def copy_from_main(*modules: nn.Module | None) -> None:
    """Give all processes the main process's parameters and buffers, in place."""
    if num_processes() > 1:
        from accelerate.utils import broadcast

        for module in filter(None, modules):
            broadcast([tensor.detach() for tensor in (*module.parameters(), *module.buffers())])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the processes; the same parameters must have one everywhere."""
    average([parameter.grad for parameter in parameters if parameter.grad is not None])


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over the processes, all in one message."""
    if num_processes() == 1 or not tensors:
        return
    import torch
    from accelerate.utils import reduce

    with torch.no_grad():
        flat: Any = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def summed(numbers: Sequence[float]) -> list[float]:
    """Sums of numbers over the processes, the same on all of them."""
    if num_processes() == 1:
        return list(numbers)
    import torch
    from accelerate import PartialState
    from accelerate.utils import reduce

    total: Any = reduce(torch.tensor(numbers, dtype=torch.float64, device=PartialState().device), "sum")
    return total.tolist()
