"""The server that the tests of a module have in common."""

from collections.abc import Iterator

import pytest

from tests.apps.serve.live_server import LiveServer, live_server


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server() as live:
        yield live
        live.wait_until_idle()
