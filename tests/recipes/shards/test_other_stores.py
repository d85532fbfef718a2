"""Prediction from and to Google's storage, the hub, web servers and memory, by their own clients on real servers."""

import functools
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2.api import predict
from florence2.data.streams.tars.tar_writer import write_shards
from tests.hub_server import hub_server
from tests.s3 import HOST, free_port, upload, wait_for
from tests.tiny import save_tiny

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos/`, the same in `tars/` and in `table.parquet`."""
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("images")
    for name in ("photos", "tars"):
        (folder / name).mkdir()
    encoded: list[bytes] = []
    for number in range(NUM_IMAGES):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (number * 40, 90, 120)).save(file, "PNG")
        encoded.append(file.getvalue())
        (folder / "photos" / f"{number}.png").write_bytes(file.getvalue())
    write_shards(folder / "tars", [(f"{n}.png", content, [{}]) for n, content in enumerate(encoded)], 3)
    column = [{"bytes": each, "path": None} for each in encoded]
    parquet.write_table(arrow.table({"image": column}), folder / "table.parquet")
    return folder


def run(model: str, source: object, output: object) -> Any:
    return predict(
        model_path=model, dtype="float32", input_path=str(source), output_path=str(output), max_length=6, device="cpu"
    )


def texts(lines: bytes) -> list[str]:
    """Return the texts in the order of the images, whose ids end in their numbers."""
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len({row["file_name"] for row in rows}) == len(rows)
    return [row["text"] for row in sorted(rows, key=lambda row: row["file_name"])]


@pytest.fixture(scope="module")
def expected(tiny: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("plain") / "plain.jsonl"
    run(tiny, images / "photos", output)
    return texts(output.read_bytes())


@contextmanager
def gcs_server() -> Iterator[str]:
    pytest.importorskip("gcp_storage_emulator")
    port = free_port()
    words = ["start", f"--host={HOST}", f"--port={port}", "--in-memory", "--default-bucket=scenes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gcp_storage_emulator", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


GCS_PROGRAM = """
import sys
from pathlib import Path
import fsspec.config
fsspec.config.conf["gs"] = {"token": "anon"}
import fsspec
from florence2.api import predict, predict_status
model, folder = sys.argv[1:3]
filesystem = fsspec.filesystem("gs")
for tar in sorted(Path(folder).glob("*.tar")):
    filesystem.pipe_file(f"scenes/tars/{tar.name}", tar.read_bytes())
options = {"model_path": model, "dtype": "float32", "max_length": 6, "device": "cpu", "output_path": "gs://scenes/out/"}
assert predict(input_path="gs://scenes/tars/*.tar", **options).num_shards_done == 2
assert predict(input_path="gs://scenes/tars/", **options).num_shards_earlier == 2
assert predict_status(status="gs://scenes/out/").exit_code == 0
filesystem.invalidate_cache()
assert not filesystem.glob("scenes/out/_run/*.lease")
for name in sorted(filesystem.glob("scenes/out/*.jsonl")):
    sys.stdout.write(filesystem.cat(name).decode())
"""


@pytest.mark.long
def test_google_storage(tiny: str, images: Path, expected: list[str]) -> None:
    pytest.importorskip("gcsfs")
    with gcs_server() as address:
        # the emulator has no gRPC, by which gcsfs asks for the kind of a bucket
        variables = {"STORAGE_EMULATOR_HOST": address, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        program = [sys.executable, "-c", GCS_PROGRAM, tiny, str(images / "tars")]
        ended = subprocess.run(program, env={**os.environ, **variables}, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    assert texts(ended.stdout) == expected


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves a folder, with ranges."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> Any:
        file, wished = Path(self.translate_path(self.path)), self.headers.get("Range", "")
        if not wished.startswith("bytes=") or not file.is_file():
            return super().send_head()
        first, _, last = wished.removeprefix("bytes=").partition("-")
        content = file.read_bytes()
        part = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, *_: object) -> None:
        pass


class NoRangeHandler(RangeHandler):
    """Serves a folder, each file as one."""

    def send_head(self) -> Any:
        return SimpleHTTPRequestHandler.send_head(self)


@pytest.mark.parametrize("handler", [RangeHandler, NoRangeHandler])
def test_web_servers(tiny: str, images: Path, expected: list[str], tmp_path: Path, handler: Any) -> None:
    server = ThreadingHTTPServer((HOST, 0), functools.partial(handler, directory=str(images)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://{HOST}:{server.server_port}"
    try:
        run(tiny, f"{address}/tars/{{000000..000001}}.tar", tmp_path / "tars.jsonl")
        run(tiny, f"{address}/table.parquet", tmp_path / "table.jsonl")
        names = "".join(json.dumps({"file_name": f"{address}/photos/{n}.png"}) + "\n" for n in range(NUM_IMAGES))
        (tmp_path / "list.jsonl").write_text(names)
        run(tiny, tmp_path / "list.jsonl", tmp_path / "listed.jsonl")
    finally:
        server.shutdown()
        server.server_close()
    for name in ("tars", "table", "listed"):
        assert texts((tmp_path / f"{name}.jsonl").read_bytes()) == expected


def test_memory(tiny: str, images: Path, expected: list[str]) -> None:
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    upload(filesystem, images / "photos", "/scenes/photos")
    run(tiny, "memory://scenes/photos/", "memory://scenes/out/")
    content = b"".join(filesystem.cat(name) for name in filesystem.glob("/scenes/out/*.jsonl"))
    assert texts(content) == expected
    filesystem.rm("/scenes", recursive=True)


HUB_PROGRAM = """
import sys
from florence2.api import predict, predict_status
model, folder = sys.argv[1:3]
jobs = {
    "hf://datasets/me/scenes/tars/*.tar": f"{folder}/0.jsonl",
    "hf://datasets/me/scenes/photos/": f"{folder}/1.jsonl",
    "me/table": f"{folder}/2.jsonl",
    "me/table:train": f"{folder}/3/",
    "hf://datasets/me/table/data/train-00000-of-00001.parquet": "hf://datasets/me/scenes/out/",
}
for source, output in jobs.items():
    predict(model_path=model, dtype="float32", input_path=source, output_path=output, max_length=6, device="cpu")
status = predict_status(status="hf://datasets/me/scenes/out/")
assert (status.shards, status.done, status.exit_code) == (1, 1, 0), status
"""


def test_the_hub(tiny: str, images: Path, expected: list[str], tmp_path: Path) -> None:
    files = {path.relative_to(images).as_posix(): path.read_bytes() for path in images.rglob("*") if path.is_file()}
    table = files.pop("table.parquet")
    with hub_server({"me/scenes": files, "me/table": {"data/train-00000-of-00001.parquet": table}}) as hub:
        variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_" + "x" * 34}
        program = [sys.executable, "-c", HUB_PROGRAM, tiny, str(tmp_path)]
        ended = subprocess.run(program, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert hub.num_ranges > 1
        assert hub.num_commits == 3  # the job, its one output, and its state: no lease
        committed = files["out/train-00000-of-00001.jsonl"]
    assert "hf://datasets/me/scenes/out cannot be locked" in ended.stderr
    outputs = [(tmp_path / f"{number}.jsonl").read_bytes() for number in range(3)]
    outputs += [b"".join(path.read_bytes() for path in sorted((tmp_path / "3").glob("*.jsonl"))), committed]
    assert [texts(each) for each in outputs] == [expected] * 5
