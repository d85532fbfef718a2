"""The lock of an output against a second process: the system's for a local file, a lease for a file in a store."""

from pathlib import Path

from florence2.data.stores.store_lease import StoreLease
from florence2.data.stores.store_path import AnyPath, StorePath
from florence2.errors import OptionError
from florence2.files import WriteLock
from florence2.log import logger


class OutputLock:
    """A lock that one process has while it writes; `path` is the file whose writing it stands for.

    A local lock file lies hidden beside `path`; in a store the lease is `path` with `.lease`. A repository on the hub
    has no lease, because each renewal would be a commit.
    """

    def __init__(self, path: AnyPath, target: str) -> None:
        """Acquire the lock, or raise an error that names `target`."""
        self._lease: StoreLease | None = None
        self._file_lock: WriteLock | None = None
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file_lock = WriteLock(path)
            if self._file_lock.is_acquired is False:
                raise OptionError(f"another process writes {target}", "wait until it ends")
        elif path.address.startswith("hf://"):
            logger.warning(f"{target} cannot be locked: do not start a second run that writes it")
        else:
            self._lease = StoreLease(StorePath(f"{path.address}.lease"), target)

    def check(self) -> None:
        """Raise an error where another process has taken over the lease."""
        if self._lease is not None:
            self._lease.check()

    def release(self) -> None:
        """Release the lock."""
        if self._lease is not None:
            self._lease.release()
        if self._file_lock is not None:
            self._file_lock.release()
