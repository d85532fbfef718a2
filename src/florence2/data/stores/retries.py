"""Retries: a call to a store is repeated with growing pauses while its error is one that passes."""

import errno
import logging
import random
import re
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from florence2.errors import DatasetError, UserError
from florence2.log import logger

ATTEMPTS = 7
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0  # seconds

Result = TypeVar("Result")

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError, UserError)
_TRANSIENT_ERRNOS = {
    None,
    errno.EIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.EINTR,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    socket.EAI_AGAIN,
}
_TRANSIENT_STATUSES = {408, 425, 429, *range(500, 600)}
_BOTOCORE_TRANSIENT = {"HTTPClientError", "ConnectionError", "IncompleteReadError"}
_CREDENTIALS = re.compile("Credential|Profile|Token|SSO|Login")  # in names of errors
_NETWORK_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "httpcore", "httpx", "requests", "urllib3"}


def retry(call: Callable[[], Result], where: str, verb: str = "read") -> Result:
    """Call until it succeeds; `where` and `verb` name what is done in the DatasetError of the last attempt."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, UserError):
                raise
            if not is_transient(error) or attempt == ATTEMPTS - 1:
                raise _store_error(error, where, verb, attempt + 1) from error
            pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)
            level = logging.INFO if attempt and _NOTICES.may_log() else logging.DEBUG
            logger.log(
                level, f"{where} cannot be {verb} now ({_one_line(error)}); attempt {attempt + 2} in {pause:.1f} s"
            )
            time.sleep(pause)
    raise AssertionError


class NoticeLimit:
    """Limits the notices of all threads to one in `INTERVAL` seconds."""

    INTERVAL = 10.0

    def __init__(self) -> None:
        self._next = 0.0

    def may_log(self) -> bool:
        """Return whether a notice may be logged, and count it."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.INTERVAL
        return True


_NOTICES = NoticeLimit()


def is_transient(error: BaseException) -> bool:
    """Return whether a later attempt may succeed: after a reset, a timeout, status 429 or 5xx."""
    if isinstance(error, _PERMANENT):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUSES
    if isinstance(error, OSError):  # of which connection and timeout errors are subclasses
        return error.errno in _TRANSIENT_ERRNOS
    classes = type(error).__mro__
    if any(cls.__module__ == "botocore.exceptions" for cls in classes):  # all others are about settings
        return not _BOTOCORE_TRANSIENT.isdisjoint(cls.__name__ for cls in classes)
    return not _NETWORK_LIBRARIES.isdisjoint(cls.__module__.split(".")[0] for cls in classes)


def status_of(error: Any) -> int | None:
    """Return the HTTP status of an error, which libraries store in different places."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    values = (getattr(error, "status", None), getattr(response, "status_code", response), getattr(error, "code", None))
    numbers = (str(value) for value in values)
    return next((int(number) for number in numbers if number.isdigit()), None)


def _store_error(error: Exception, where: str, verb: str, attempts: int) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        if verb == "written":
            return DatasetError(f"{where} cannot be written: its bucket does not exist", "create the bucket first")
        return DatasetError(f"{where} does not exist", "check the address")
    if isinstance(error, PermissionError) or _CREDENTIALS.search(type(error).__name__):
        return DatasetError(
            f"{where} cannot be {verb}: permission denied ({_one_line(error)})",
            "set the credentials as its library reads them, such as AWS_ACCESS_KEY_ID or a profile for s3://",
        )
    times = f" after {attempts} attempts" if attempts > 1 else ""
    return DatasetError(f"{where} cannot be {verb}{times}: {_one_line(error)}", "check the address and the network")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
