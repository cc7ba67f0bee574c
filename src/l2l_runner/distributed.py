"""One meta-training in several processes, which torchrun starts: what each does, and what they tell one another.

The first process composes the configuration, owns the run's folder, and alone writes, logs and draws; the others do its
job along with it, on problems of their own. Until `joined` there is one process, for which nothing here does anything.
Tensors on a GPU go by NCCL, all else by gloo.
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

_store: dist.distributed_c10d.Store | None = None  # outlives any process but torchrun's own
_leaving = False  # contact is lost, and this process ends by itself
_told = False  # the others have their job

JobMessage = tuple[dict[str, Any], Path]
"""A composed configuration, and the run's folder."""


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell of, as torchrun sets them."""
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
        # After an error NCCL might wait for others, who wait for this one elsewhere.
        if not (failed and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
            dist.destroy_process_group()
        signal.signal(signal.SIGTERM, before)
        _store = None


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM outside of a training, which torchrun also sends as soon as another process has died."""
    if not _leaving:
        raise SystemExit(128 + number)


def world_size() -> int:
    """How many processes there are."""
    return 1 if _store is None else dist.get_world_size()


def rank() -> int:
    """Number of this process, from 0."""
    return 0 if _store is None else dist.get_rank()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def broadcast_job(job: JobMessage | None) -> None:
    """Give the others the first process's job."""
    global _told
    run_on_first(lambda: job)
    _told = True


def receive_job() -> JobMessage | None:
    """The first process's job; None where it has none, after --help or an error."""
    return run_on_first(lambda: None)


def release_waiting() -> None:
    """Let the others go that still wait for a job."""
    if not _told:
        with suppress(ProcessLost):
            broadcast_job(None)


def bar_disabled() -> bool | None:
    """What a progress bar's `disable` is to be: None, which shows it on terminals, in the first process."""
    return None if is_first() else True


def shard(items: int) -> slice:
    """Those of so many items that are this process's; shares differ by one at most."""
    return slice(items * rank() // world_size(), items * (rank() + 1) // world_size())


def use_device(device: torch.device) -> None:
    """Compute on `device`, of which each process of a machine takes its own where that is a GPU.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    if world_size() == 1 or device.type != "cuda":
        return
    place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= gpus:
        raise ConfigError(
            f"Each process takes a GPU of its own, but there are {gpus} on this machine and more processes: use "
            f"--nproc-per-node={gpus}, or device=cpu."
        )
    torch.cuda.set_device(place)


def all_reduce(tensors: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Σ over processes of weight × each tensor, in one message; the tensors as they are, of one process."""
    if world_size() == 1:
        return list(tensors)
    message = torch.cat([tensor.reshape(-1) for tensor in tensors]) * weight
    with _contact():
        dist.all_reduce(message)
    parts = torch.split(message, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, [processes, *shape]."""
    if world_size() == 1:
        return tensor.unsqueeze(0)
    found = [torch.empty_like(tensor) for _ in range(world_size())]
    with _contact():
        dist.all_gather(found, tensor)
    return torch.stack(found)


def broadcast(tensor: Tensor) -> Tensor:
    """The first process's tensor, of the same shape in all of them."""
    return all_gather(tensor)[0]


def all_gather_objects(value: T) -> list[T]:
    """The values of all processes, of any kind, in order."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    with _contact():
        dist.all_gather_object(found, value)
    return found


def run_on_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all of them; so is a `UserError` that it raises."""
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
    """The largest of the processes' numbers."""
    return int(all_gather(torch.tensor(number)).max())


def sum_over_ranks(number: int) -> int:
    """The sum of the processes' numbers."""
    return int(all_gather(torch.tensor(number)).sum())


def claim_error_report() -> bool:
    """Whether nobody has said yet what went wrong: one error ends all processes, and is said once."""
    return _store is None or _store.add("errors", 1) == 1


def command() -> str:
    """The command that starts as many processes as there are, up to its first setting."""
    if world_size() == 1:
        return "python -m l2l_runner.train"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machines = f"--nnodes={world_size() // here} … " if world_size() > here else ""
    return f"torchrun {machines}--nproc-per-node={here} -m l2l_runner.train"


@contextmanager
def resume_hint(with_setting: str) -> Iterator[None]:
    """Let a `ProcessLost` say how to go on with the run, by which setting."""
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
        if interrupted():  # so are the others
            raise KeyboardInterrupt from error
        raise ProcessLost(
            f"Process {rank()} of {world_size()} lost contact with another one, which was stopped or has died "
            f"({reason(error).split('. ')[0]})."
        ) from error
