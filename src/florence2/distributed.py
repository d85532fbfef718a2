"""The rank of this process among those that `accelerate launch` or torchrun started, read from their environment."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class LauncherRank:
    """The rank of this process among all processes and among those of its machine, and how many there are."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def launcher_rank() -> LauncherRank | None:
    """Read the rank that a launcher gave to this process; None where this process runs alone."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size < 2 or "RANK" not in os.environ:
        return None
    rank = int(os.environ["RANK"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return LauncherRank(rank, int(os.environ.get("LOCAL_RANK", rank)), world_size, local_world_size)


def is_main_process() -> bool:
    """Return whether this process has rank 0, or runs alone: the one that writes files and logs."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Count the processes that the launcher started on all machines; 1 where this process runs alone."""
    rank = launcher_rank()
    return rank.world_size if rank else 1


def local_world_size() -> int:
    """Count the processes that the launcher started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
