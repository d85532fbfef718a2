"""Images whose decoder crashes, hangs, waits, grows or writes to stderr; see `hostile_formats/`."""

import os
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "hostile_formats"


def hostile_bytes(fault: str) -> bytes:
    """Make an image with a fault: crash, hang, wait, grow or chatter."""
    return b"HOSTILE " + fault.encode().ljust(8) + bytes(100)


def hostile_environment() -> dict[str, str]:
    """Return an environment whose Python processes have the decoders."""
    paths = [str(PLUGIN), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture
def hostile_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the decoders in the processes that this one starts."""
    monkeypatch.setenv("PYTHONPATH", hostile_environment()["PYTHONPATH"])
