"""Files at addresses: blocks, servers without range requests, retries, names of shards."""

import errno
import io
import os
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import EAI_AGAIN, gaierror
from threading import Thread

import fsspec
import pytest
from botocore.exceptions import EndpointConnectionError, InvalidRegionError, ProfileNotFound

from florence2.data.columns import ColumnMapping
from florence2.data.stores import range_reader, retries
from florence2.data.stores.range_reader import RangeReader
from florence2.data.stores.retries import is_transient, retry
from florence2.data.stores.store_path import StorePath, open_filesystem
from florence2.data.stores.write_store import read_files, upload_file, write_text
from florence2.data.streams.open_source import find_image_shards
from florence2.data.streams.shard_paths import common_folder, expand_pattern, has_pattern, relative_names
from florence2.errors import DatasetError


class PlainHandler(SimpleHTTPRequestHandler):
    """Answers every request with the complete file."""

    num_requests = 0

    def log_message(self, *_: object) -> None:
        type(self).num_requests += 1


@pytest.fixture
def http_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(PlainHandler, directory=str(folder)))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_is_read_in_blocks_from_any_position() -> None:
    content = os.urandom(10_000)
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/blocks/a.bin", content)
    with RangeReader(filesystem, "/blocks/a.bin", "memory://blocks/a.bin", block_size=999) as reader:
        assert io.BufferedReader(reader, 64).read() == content
    with RangeReader(filesystem, "/blocks/a.bin", "a", block_size=999) as reader:
        for start in (9_500, 0, 998, 5_000):
            reader.seek(start)
            assert reader.read(1_200) == content[start : (start // 999 + 1) * 999]
    with StorePath("memory://blocks/a.bin").open() as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == content[-10:]


def test_a_server_without_ranges_is_read_once(http_folder: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = http_folder
    content = os.urandom(50_000)
    (folder / "a.bin").write_bytes(content)
    monkeypatch.setattr(PlainHandler, "num_requests", 0)
    filesystem, path = open_filesystem(f"{address}/a.bin")
    with RangeReader(filesystem, path, path, block_size=1000) as reader:
        assert io.BufferedReader(reader, 100).read() == content
    assert PlainHandler.num_requests <= 5
    with pytest.raises(DatasetError, match=r"absent\.bin does not exist"):
        StorePath(f"{address}/absent.bin").open()


def test_only_what_passes_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)

    def failing(error: Exception, times: int) -> tuple[list[int], str]:
        calls: list[int] = []

        def call() -> str:
            calls.append(1)
            if len(calls) <= times:
                raise error
            return "done"

        return calls, retry(call, "s3://b/k")

    calls, result = failing(ConnectionResetError("reset"), 3)
    assert (len(calls), result, len(pauses)) == (4, "done", 3)
    assert pauses[0] < pauses[2]
    for error in (
        ConnectionResetError("reset"),
        EndpointConnectionError(endpoint_url="reset"),
        gaierror(EAI_AGAIN, "reset"),
    ):
        with pytest.raises(DatasetError, match=r"s3://b/k cannot be read after 7 attempts: .*reset"):
            failing(error, 99)
    for error, message in (
        (FileNotFoundError(), "s3://b/k does not exist"),
        (PermissionError("no"), "permission denied"),
        (OSError(errno.EINVAL, "bad name"), "s3://b/k cannot be read: .*bad name"),
        (ValueError("bug"), "s3://b/k cannot be read: bug"),
        (ProfileNotFound(profile="mine"), r"permission denied \(The config profile \(mine\) could not be found"),
        (InvalidRegionError(region_name="?"), "s3://b/k cannot be read: .*region"),
    ):
        with pytest.raises(DatasetError, match=message):
            failing(error, 99)


def test_statuses_decide_by_number() -> None:
    class StatusError(Exception):
        def __init__(self, status: int) -> None:
            self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}

    assert [status for status in (400, 403, 404, 408, 429, 500, 503) if is_transient(StatusError(status))] == [
        408,
        429,
        500,
        503,
    ]


def test_files_are_written_complete(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    for folder in ("memory://written", f"file://{tmp_path}/written"):
        target = StorePath(folder) / "deep/a.bin"
        upload_file(tmp_path / "a", target)
        write_text(StorePath(folder) / "deep/b.json", "{}")
        assert target.read_bytes() == b"first"
        assert read_files([target, StorePath(folder) / "deep/b.json"]) == [b"first", b"{}"]
        assert target.is_file()
        assert (StorePath(folder) / "deep").is_dir()
    assert sorted(path.name for path in (tmp_path / "written" / "deep").iterdir()) == ["a.bin", "b.json"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..10}", "08 09 10"),
        ("{2..0}", "2 1 0"),
        ("{0..8..4}", "0 4 8"),
        ("{98..100..2}", "98 100"),
        ("{00..100..50}", "000 050 100"),
        ("{c..a}", "c b a"),
        ("a{0,{1,2}}", "a0 a1 a2"),
        ("{a,b}{1..2}", "a1 a2 b1 b2"),
        ("{a,a}", "a"),
        ("{}{x}{a", "{}{x}{a"),
        ("{x{a,b}}", "{xa} {xb}"),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, names: str) -> None:
    expected = [f"s3://b/{name}.tar" for name in names.split(" ")]
    assert [str(path) for path in expand_pattern(f"s3://b/{pattern}.tar")] == expected
    assert has_pattern(f"s3://b/{pattern}.tar") == (expected != [f"s3://b/{pattern}.tar"])


def test_names_of_many_shards_are_made_once() -> None:
    shards = find_image_shards("s3://b/{000000..099999}.tar", ColumnMapping("<CAPTION>", with_targets=False))
    started = time.monotonic()
    assert [shards.shard_name(index) for index in range(shards.num_shards)][-1] == "099999.tar"
    assert shards.reader(99_999)
    assert time.monotonic() - started < 10  # was .3 seconds for each


def test_patterns_and_names(tmp_path: Path) -> None:
    assert not has_pattern("https://host/a.tar?key=1")
    assert has_pattern("s3://b/*.tar")
    filesystem = fsspec.filesystem("memory")
    for name in ("x/1.tar", "y/1.tar", "y/2.txt"):
        filesystem.pipe_file(f"/patterns/{name}", b"")
    matches = expand_pattern("memory://patterns/?/*.tar")
    assert relative_names(matches) == ["x/1.tar", "y/1.tar"]
    assert str(common_folder(matches)).rstrip("/").endswith("patterns")
    assert relative_names([tmp_path / "a" / "1.tar", tmp_path / "a" / "2.tar"]) == ["1.tar", "2.tar"]
    path = StorePath("https://host/folder/a.tar?key=1")
    assert (path.name, path.suffix, str(path.parent)) == ("a.tar", ".tar", "https://host/folder")
    with pytest.raises(DatasetError, match="cannot be opened"):
        open_filesystem("nosuchscheme://a/b")
    assert range_reader.BLOCK_SIZE == 8 * 2**20
