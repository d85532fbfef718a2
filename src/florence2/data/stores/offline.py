"""Commands with `--offline`: while one runs, nothing is read from or written to a store beyond this machine."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from florence2.errors import DatasetError
from florence2.settings_io import settings_to_dict

Result = TypeVar("Result")
_VARIABLE = "FLORENCE2_OFFLINE"  # of the environment, so that the processes of a run have it, too
LOCAL_SCHEMES = ("file", "local", "memory")


def respects_offline(run: Callable[[Any], Result]) -> Callable[[Any], Result]:
    """Wrap the recipe of a command, so that its `--offline` holds for addresses, those in tables included."""

    @functools.wraps(run)
    def run_offline(settings: Any) -> Result:
        with _without_stores() if settings_to_dict(settings).get("offline") else nullcontext():
            return run(settings)

    return run_offline


def refuse_offline(address: str, scheme: str) -> None:
    """Raise a DatasetError for an address beyond this machine while a command with `--offline` runs."""
    if os.environ.get(_VARIABLE) and scheme not in LOCAL_SCHEMES:
        raise DatasetError(f"{address} is not on this machine", "remove `--offline`, or copy it to this machine")


@contextmanager
def _without_stores() -> Iterator[None]:
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
