"""Processes of one run. Every function also works where no process group exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sslsv.errors import UserError

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def default_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


@contextmanager
def session() -> Iterator[None]:
    """Join the process group that ``torchrun`` describes in the environment, if it does.

    NCCL with GPUs, gloo without. A process started by hand (no ``WORLD_SIZE``) stays alone. Where a
    process is lost the others end with a UserError, at the latest after ``SSLSV_TIMEOUT_MINUTES``
    (30) in which nothing was heard.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        yield
        return
    device = default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    minutes = float(os.environ.get("SSLSV_TIMEOUT_MINUTES", 30))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        raise UserError(
            f"process {rank()} has lost another process of this training, whose own message says "
            f"why ({str(error).strip().splitlines()[0][:200]})"
        ) from None
    finally:
        dist.destroy_process_group()


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective operation failed since another process has gone or is silent."""
    if isinstance(error, dist.DistError):
        return True
    return any(
        words in str(error) for words in ("Connection closed by peer", "gloo", "Connection reset")
    )


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every process sends back to a row's owner."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in rank order, with gradients: (N, …) -> (W·N, …).

    With a loss that is a mean over each process's own rows, DistributedDataParallel's average of
    gradients then equals the gradient of the mean over all rows.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def reduce_max(x: Tensor) -> Tensor:
    """Largest value over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def reduce_mean(x: Tensor) -> Tensor:
    """Mean over processes, in place."""
    return reduce_sum(x).div_(world_size())


def mean_over_processes(x: Tensor) -> Tensor:
    """Mean over processes of a statistic of each one's rows, with gradients.

    Where every process computes the same loss from it, DistributedDataParallel's average of
    gradients is the gradient of that loss: each process's own is passed on as it is.
    """
    if world_size() == 1:
        return x
    return x - x.detach() + reduce_mean(x.detach().clone())


def broadcast_(x: Tensor) -> Tensor:
    """The main process's tensor on every process, in place."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


def broadcast(value: Any) -> Any:
    """The main process's ``value`` (any picklable object) on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` gives on the main process, which alone calls it, on every process; a UserError
    there is one on every process."""
    found: T | UserError | None = None
    if is_main():
        try:
            found = make()
        except UserError as error:
            found = error
    found = broadcast(found)
    if isinstance(found, UserError):
        raise found
    return found


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """One picklable object of each process, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
