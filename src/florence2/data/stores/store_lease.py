"""A lease on a folder or file in a store: a small file that says which process writes it, renewed while it does.

A local file is locked by the system instead, which releases the lock of a process that was killed. A store cannot do
that, so that the file of a killed process stays; it counts as left behind once it has not changed for a while.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from florence2.data.stores.store_path import StorePath
from florence2.data.stores.write_store import create_text, remove_file, write_text
from florence2.errors import DatasetError, OptionError
from florence2.files import parse_json, to_json
from florence2.log import logger

HEARTBEAT = 10.0  # seconds between two renewals
STALE_AFTER = 60.0  # seconds without a renewal, after which a process counts as dead
_POLL = 1.0


@dataclass(frozen=True)
class LeaseHolder:
    """The process that holds a lease; `beat` counts its renewals."""

    owner: str
    host: str
    pid: int
    machine: str
    started: str
    beat: int = 0

    @classmethod
    def of_this_process(cls) -> "LeaseHolder":
        """Return a new holder."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine(), started)

    @property
    def is_dead(self) -> bool:
        """Return whether the process is known to have ended: only one of this machine is."""
        import psutil  # comes with accelerate

        return self.machine == _machine() and not psutil.pid_exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


class StoreLease:
    """The right of this process to write what a file beside it stands for.

    The clocks of machines may differ, so that a lease is not judged by its time: a second process watches it, and is
    refused when it changes. It takes over after `STALE_AFTER` seconds without a change, or at once where the holder is
    a process of the same machine that has ended. A holder that was taken for dead finds out with its next renewal.
    """

    def __init__(self, path: StorePath, target: str) -> None:
        """Acquire the lease in the file `path`; `target` names what is written, in messages."""
        self._path, self._target = path, target
        self._holder = LeaseHolder.of_this_process()
        self._renewed = time.monotonic()
        self._successor: LeaseHolder | None = None
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._acquire()
        self._thread = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise an error where another process has taken over; to be called before something is written."""
        if time.monotonic() - self._renewed > STALE_AFTER / 2:
            self._renew()
        if self._successor is not None:
            raise OptionError(
                f"{self._target} is written by another process now: {self._successor}",
                f"wait until it ends; this process had not renewed its lease for {STALE_AFTER:.0f} s",
            )

    def release(self) -> None:
        """Stop renewing, and remove the file unless another process has taken over."""
        self._released.set()
        self._thread.join()
        try:
            if self._read_owner() == self._holder.owner:
                remove_file(self._path)
        except DatasetError as error:
            logger.warning(f"{self._path} cannot be removed, and delays the next run: {error.what}")

    def _acquire(self) -> None:
        watch = LeaseWatch(self._target)
        while True:
            current = read_holder(self._path)
            if current is None and create_text(self._path, self._content()):
                current = read_holder(self._path)  # a store that cannot create may have had two writers
            if current is not None:
                if current.owner == self._holder.owner:
                    return
                if watch.is_left_behind(current):
                    remove_file(self._path)
                else:
                    time.sleep(_POLL)

    def _renew_until_released(self) -> None:
        while not self._released.wait(HEARTBEAT) and self._successor is None:
            try:
                self._renew()
            except DatasetError as error:
                logger.debug(f"the lease {self._path} cannot be renewed now: {error.what}")

    def _renew(self) -> None:
        with self._lock:
            current = read_holder(self._path)
            if current is not None and current.owner != self._holder.owner:
                self._successor = current
                return
            self._holder = replace(self._holder, beat=self._holder.beat + 1)
            write_text(self._path, self._content())
            self._renewed = time.monotonic()

    def _read_owner(self) -> str | None:
        holder = read_holder(self._path)
        return None if holder is None else holder.owner

    def _content(self) -> str:
        return to_json(asdict(self._holder))


class LeaseWatch:
    """Observes the lease of another process until it is known whether that process lives."""

    def __init__(self, target: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._target, self._clock = target, clock
        self._first: LeaseHolder | None = None
        self._since = 0.0

    def is_left_behind(self, current: LeaseHolder) -> bool:
        """Return whether a lease may be taken over; raise an error where its holder has renewed it."""
        if current.is_dead:
            return True
        if self._first is None or current.owner != self._first.owner:
            self._first, self._since = current, self._clock()
            logger.info(f"{self._target} is written by {current}; watching for up to {STALE_AFTER:.0f} s whether it is")
        elif current.beat != self._first.beat:
            raise OptionError(
                f"another process writes {self._target}: {current}",
                "wait until it ends, or pass another `--output_path`",
            )
        return self._clock() - self._since > STALE_AFTER


def read_holder(path: StorePath) -> LeaseHolder | None:
    """Read who holds a lease; None where nobody does."""
    if not path.is_file():
        return None
    try:
        return LeaseHolder(**parse_json(path.read_bytes()))
    except DatasetError:  # removed in between
        if path.is_file():
            raise
        return None
    except (ValueError, TypeError):
        raise DatasetError(f"{path} is not a lease that can be read", "remove it if no process writes here") from None


def _machine() -> str:
    """Return what distinguishes machines, and containers with process ids of their own."""
    boot_id, process_ids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot_id.is_file() and process_ids.is_symlink():
        return " ".join(
            (socket.gethostname(), boot_id.read_text(encoding="ascii").strip(), str(process_ids.readlink()))
        )
    return f"{socket.gethostname()} {uuid.getnode():x}"
