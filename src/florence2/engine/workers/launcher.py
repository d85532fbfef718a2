"""The connections between the processes that `accelerate launch` or torchrun started.

torch.distributed broadcasts one message: where the first process listens. From then on the other processes are workers
like those that the first process starts itself.
"""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from torch import distributed

from florence2.distributed import LauncherRank

CONNECT_TIMEOUT_S = timedelta(minutes=10)  # for processes that start late


def accept_workers(rank: LauncherRank) -> list[Connection]:
    """Let the other processes connect to this one, the first."""
    key = secrets.token_bytes(32)
    with Listener(
        (_host(rank) if rank.local_world_size == rank.world_size else "", 0), backlog=rank.world_size, authkey=key
    ) as listener:
        _broadcast(rank, (listener.address[1], key))
        return [listener.accept() for _ in range(rank.world_size - 1)]


def connect_to_leader(rank: LauncherRank) -> Connection:
    """Connect to the first process."""
    port, key = _broadcast(rank, None)
    return Client((_host(rank), port), authkey=key)


def _host(rank: LauncherRank) -> str:
    return "127.0.0.1" if rank.local_world_size == rank.world_size else os.environ["MASTER_ADDR"]


def _broadcast(rank: LauncherRank, message: Any) -> Any:
    """Send a message of the first process to all processes, and return it."""
    distributed.init_process_group("gloo", rank=rank.rank, world_size=rank.world_size, timeout=CONNECT_TIMEOUT_S)
    messages = [message]
    distributed.broadcast_object_list(messages, src=0)
    distributed.destroy_process_group()
    return messages[0]
