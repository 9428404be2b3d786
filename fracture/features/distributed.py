"""The processes of one job that torchrun started: each does its share, the first one collects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from fracture.cli import InputError, one_line

T = TypeVar("T")


def rank() -> int:
    """This process's number in the job; 0 is the first, or the only one."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


@dataclass(frozen=True)
class Team:
    """The processes of this job; alone without torchrun."""

    size: int

    def agree(self, value: T) -> T:
        """The first process's value, in all of them."""
        values: list[Any] = [value]
        if self.size > 1:
            with _peers_alive():
                dist.broadcast_object_list(values)
        return values[0]

    def share(self, items: Sequence[T]) -> list[T]:
        """Every so many-th item, so that all are at neighbouring ones at the same time."""
        return [*items[rank() :: self.size]]

    def collect(self, results: Iterator[T], count: int) -> Iterator[T]:
        """In the first process all results in the items' order, as one process would have them.

        In the others nothing comes out, but this must run to its end. A round of results is passed
        on as soon as all processes have theirs: of a job that dies, what was passed on is kept.

        Args:
            results: of this process's share.
            count: of all items.
        """
        if self.size == 1:
            yield from results
            return
        for _ in range(-(-count // self.size)):
            everyone: list[Any] = [None] * self.size
            own: Any = next(results, None)
            with _peers_alive():
                dist.gather_object(own, everyone if rank() == 0 else None)
            yield from (result for result in everyone if result is not None)


ALONE = Team(1)


@contextmanager
def _peers_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo raises, in many words
        raise InputError(
            f"another process of this job has ended, see its message; what is finished is kept: "
            f"run again ({one_line(error)[:60]})"
        ) from error


@contextmanager
def team() -> Iterator[Team]:
    """Meet the other processes of this job.

    They talk by gloo, on GPUs too: all that they exchange are features on their way to the disk.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield Team(size)
    finally:
        dist.destroy_process_group()
