"""One meta-training in several processes that torchrun starts: their roles and their communication.

The first process (rank 0) composes the configuration, owns the run's folder, and alone writes, logs and draws. The
others run its job along with it, on problems of their own. Outside of `joined` there is one process, for which nothing
here communicates. Tensors on a GPU travel by NCCL, everything else by gloo.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from l2l_runner.errors import ConfigError, ProcessLost, UserError, reason
from l2l_runner.stopping import interrupted

T = TypeVar("T")

_store: dist.distributed_c10d.Store | None = None  # outlives every process but that of torchrun
_leaving = False  # contact is lost, and this process is about to exit
_told = False  # the others have received their job

JobMessage = tuple[dict[str, Any], Path]
"""A composed configuration, and the run's folder."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe, as torchrun sets them."""
    global _store, _told, _leaving
    _told = _leaving = False
    _store, own, size = next(rendezvous("env://"))
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=_store, rank=own, world_size=size)
    before = signal.signal(signal.SIGTERM, _terminate)
    failed = True
    try:
        yield
        failed = False
    finally:
        # After an error NCCL might wait for other processes that wait for this one elsewhere.
        if not (failed and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
            dist.destroy_process_group()
        signal.signal(signal.SIGTERM, before)
        _store = None


def _terminate(number: int, frame: FrameType | None) -> None:
    """Exit on SIGTERM outside of a training; torchrun also sends it as soon as another process has died."""
    if not _leaving:
        raise SystemExit(128 + number)


def world_size() -> int:
    """Return the number of processes."""
    return 1 if _store is None else dist.get_world_size()


def rank() -> int:
    """Return the rank of this process, from 0."""
    return 0 if _store is None else dist.get_rank()


def is_first() -> bool:
    """Tell whether this is rank 0, the process that writes."""
    return rank() == 0


def broadcast_job(job: JobMessage | None) -> None:
    """Send the job of the first process to the others."""
    global _told
    run_on_first(lambda: job)
    _told = True


def receive_job() -> JobMessage | None:
    """Receive the job of the first process; None if it has none, as after --help or an error."""
    return run_on_first(lambda: None)


def release_waiting() -> None:
    """Release the processes that still wait for a job."""
    if not _told:
        with suppress(ProcessLost):
            broadcast_job(None)


def bar_disabled() -> bool | None:
    """Return tqdm's `disable`: None (show the bar on terminals) in the first process, else True."""
    return None if is_first() else True


def shard(items: int) -> slice:
    """Slice this process's share out of so many items; the sizes of the shares differ by one at most."""
    return slice(items * rank() // world_size(), items * (rank() + 1) // world_size())


def use_device(device: torch.device) -> None:
    """Select this process's GPU, one per process of a machine, if `device` is a GPU.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    if world_size() == 1 or device.type != "cuda":
        return
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= gpus:
        raise ConfigError(
            f"Each process needs its own GPU, but this machine has more processes than its {gpus} GPUs: use "
            f"--nproc-per-node={gpus}, or device=cpu."
        )
    torch.cuda.set_device(local_rank)


def all_reduce(tensors: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Sum weight × tensor over processes, for each tensor, in one message; a single process returns them unchanged."""
    if world_size() == 1:
        return list(tensors)
    message = torch.cat([tensor.reshape(-1) for tensor in tensors]) * weight
    with _contact():
        dist.all_reduce(message)
    parts = torch.split(message, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def all_gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, [processes, *shape]."""
    if world_size() == 1:
        return tensor.unsqueeze(0)
    found = [torch.empty_like(tensor) for _ in range(world_size())]
    with _contact():
        dist.all_gather(found, tensor)
    return torch.stack(found)


def broadcast(tensor: Tensor) -> Tensor:
    """Return the tensor of the first process; its shape is the same in all processes."""
    return all_gather(tensor)[0]


def all_gather_objects(value: T) -> list[T]:
    """Return the values (any picklable objects) of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    with _contact():
        dist.all_gather_object(found, value)
    return found


def run_on_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process only; return its result, or raise its `UserError`, in all processes."""
    if world_size() == 1:
        return make()
    told: list[T | UserError | None] = [None]
    if is_first():
        try:
            told = [make()]
        except UserError as error:
            told = [error]
    with _contact():
        dist.broadcast_object_list(told)
    if isinstance(told[0], UserError):
        raise told[0]
    return told[0]  # type: ignore[return-value]


def max_over_ranks(number: int) -> int:
    """Return the maximum of a number over processes."""
    return int(all_gather(torch.tensor(number)).max())


def sum_over_ranks(number: int) -> int:
    """Return the sum of a number over processes."""
    return int(all_gather(torch.tensor(number)).sum())


def claim_error_report() -> bool:
    """Claim the report of an error; True in one process only, because one error ends them all."""
    return _store is None or _store.add("errors", 1) == 1


def command() -> str:
    """Return the command that starts this many processes, up to its first override."""
    if world_size() == 1:
        return "python -m l2l_runner.train"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machines = f"--nnodes={world_size() // here} … " if world_size() > here else ""
    return f"torchrun {machines}--nproc-per-node={here} -m l2l_runner.train"


@contextmanager
def resume_hint(with_setting: str) -> Iterator[None]:
    """Add the command that resumes the run, with this override, to a `ProcessLost`."""
    try:
        yield
    except ProcessLost as error:
        raise ProcessLost(f"{error} To resume from the last checkpoint:\n  {command()} {with_setting}") from error


@contextmanager
def _contact() -> Iterator[None]:
    global _leaving
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _leaving = True
        if interrupted():  # and so were the others
            raise KeyboardInterrupt from error
        raise ProcessLost(
            f"Process {rank()} of {world_size()} lost contact with another one, which was stopped or has died "
            f"({reason(error).split('. ')[0]})."
        ) from error
