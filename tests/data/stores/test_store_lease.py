"""Two processes that write to one place in a store: the second is refused, and takes over from one that is dead."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest

from florence2.data.stores import store_lease
from florence2.data.stores.store_lease import LeaseHolder, StoreLease, read_holder
from florence2.data.stores.store_path import StorePath
from florence2.data.stores.write_store import create_text, remove_file, write_text
from florence2.errors import DatasetError, OptionError
from tests.ray_nodes import wait_until
from tests.s3 import s3_server, use_server

BEAT, STALE = 0.1, 0.6

HOLD = f"""
import sys, time
from florence2.data.stores import store_lease
from florence2.data.stores.store_path import StorePath
from florence2.errors import OptionError
store_lease.HEARTBEAT, store_lease.STALE_AFTER = {BEAT}, {STALE}
lease = store_lease.StoreLease(StorePath(sys.argv[1]), "the output")
print("acquired", flush=True)
try:
    while True:
        lease.check()
        time.sleep(0.02)
except OptionError as error:
    print(error.what, flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def lease(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> StorePath:
    filesystem: Any = use_server(monkeypatch, server)
    bucket = request.node.name.replace("_", "-")[:60]
    filesystem.mkdir(bucket)
    monkeypatch.setattr(store_lease, "HEARTBEAT", BEAT)
    monkeypatch.setattr(store_lease, "STALE_AFTER", STALE)
    monkeypatch.setattr(store_lease, "_POLL", 0.02)
    return StorePath(f"s3://{bucket}/out/job.json.lease")


@contextmanager
def holding(lease: StorePath) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, lease.address], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "acquired\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_by_name_and_follows_a_killed_one(
    lease: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lease, "STALE_AFTER", 60)
    with holding(lease) as process:
        with pytest.raises(
            OptionError, match=rf"another process writes the output: process {process.pid} on \S+, since"
        ):
            StoreLease(lease, "the output")
        process.kill()
        process.wait()
        start = time.monotonic()
        own = StoreLease(lease, "the output")
        assert time.monotonic() - start < 30  # a dead process of this machine is not waited for
    holder = read_holder(lease)
    assert holder is not None
    assert holder.pid == os.getpid()
    own.release()
    assert read_holder(lease) is None


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_was_taken_for_dead_stops(lease: StorePath) -> None:
    with holding(lease) as process:
        process.send_signal(signal.SIGSTOP)
        own = StoreLease(lease, "the output")
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=30)
        assert output.startswith(f"the output is written by another process now: process {os.getpid()} on")
    own.check()
    own.release()


def test_the_lease_of_another_machine_counts_until_it_stops_changing(lease: StorePath) -> None:
    other = replace(LeaseHolder.of_this_process(), machine="another", host="node7", pid=1)
    assert create_text(lease, json.dumps(asdict(other)))
    assert not create_text(lease, json.dumps(asdict(replace(other, owner="second"))))
    start = time.monotonic()
    own = StoreLease(lease, "the output")
    assert time.monotonic() - start > STALE
    wait_until(lambda: getattr(read_holder(lease), "beat", 0) > 2, 10)  # renewed
    remove_file(lease)
    wait_until(lambda: getattr(read_holder(lease), "beat", 0) > 2, 10)  # and written again where it is lost
    write_text(lease, json.dumps(asdict(other)))
    with pytest.raises(OptionError, match="process 1 on node7"):
        wait_until(lambda: own.check() is not None, 10)  # type: ignore[func-returns-value]
    own.release()
    assert read_holder(lease) == other  # it is not ours
    write_text(lease, "?")
    with pytest.raises(DatasetError, match="is not a lease that can be read"):
        StoreLease(lease, "the output")
