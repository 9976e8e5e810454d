"""The processes of a run, one or those that `torchrun` starts: memory they keep, and Ctrl-C."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Group:
    """This process among all: its number, the number of processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def parallelize(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over the processes."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def average_gradients(self, model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """A context in which a backward pass averages gradients only if it is the last one."""
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def broadcast(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(tensor, 0)
        return float(tensor.item())


def single_process() -> Group:
    """A single process, on the GPU if there is one."""
    return Group(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def process_group() -> Iterator[Group]:
    """The process group that `torchrun` started, if it did: NCCL on GPUs, Gloo on CPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield single_process()
        return
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Group(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()


def keep_freed_memory() -> None:
    """Tells glibc to keep memory that an update frees, because the next update needs it again.

    To get it from the system again, page by page, would take several hundredths of an update.
    Blocks larger than 32 MiB are still returned.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD in malloc.h
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no update is interrupted.

    A second Ctrl-C acts as usual.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
