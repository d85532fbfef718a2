"""Prediction from and to a real S3 server, shard by shard."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2.api import predict, predict_status
from florence2.data.columns import ColumnMapping
from florence2.data.stores.store_path import StorePath
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.demo.dataset import make_dataset
from florence2.errors import DatasetError, OptionError
from florence2.results.progress import RunSummary
from florence2.results.shards.parquet_rows import read_parquet
from tests.ray_nodes import wait_until
from tests.s3 import FaultyProxy, s3_server, upload, use_server
from tests.tiny import save_tiny

NUM_IMAGES, NUM_TARS = 12, 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos/`, and the same images in `tars/`."""
    folder = tmp_path_factory.mktemp("scenes")
    make_dataset(folder / "photos", num_samples=NUM_IMAGES, seed=3)
    images = [path for path in sorted((folder / "photos").iterdir()) if path.suffix in (".jpg", ".png")]
    (folder / "tars").mkdir()
    write_shards(folder / "tars", [(path.name, path.read_bytes(), [{}]) for path in images], NUM_IMAGES // NUM_TARS)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Any, str]:
    filesystem = use_server(monkeypatch, server)
    name = request.node.name.split("[")[0].replace("_", "-")[:60]
    filesystem.makedirs(name, exist_ok=True)
    return filesystem, f"s3://{name}"


def run(tiny: str, spec: object, output: object, **more: Any) -> RunSummary:
    return predict(model_path=tiny, input_path=str(spec), output_path=str(output), **({"max_length": 6} | more))


def rows_of(output: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a file, or of all files in a folder but those about the run."""
    if isinstance(output, str):
        from florence2.data.stores.store_path import list_files

        path = StorePath(output)
        listed = [path] if path.is_file() else list_files(path, recursive=True)
        files: list[Any] = [path for path in listed if "/_run/" not in str(path)]
    else:
        files = [output] if output.is_file() else [p for p in output.rglob("*.*") if "_run" not in p.parts]
    rows: list[dict[str, Any]] = []
    for path in files:
        rows += read_parquet(path) if path.suffix == ".parquet" else map(json.loads, path.read_bytes().splitlines())
    return rows


def answers(output: str | Path) -> dict[tuple[str, str, str], Any]:
    """Return texts and answers by image, task and input; no line occurs twice."""
    rows = rows_of(output)
    positions = [{k: v for k, v in (row.get("answer") or {}).items() if "scores" not in k} for row in rows]
    keys = [(row["file_name"], row["task"], row.get("input", "")) for row in rows]
    by_key = {key: (row["text"], answer) for key, row, answer in zip(keys, rows, positions, strict=True)}
    assert len(by_key) == len(rows)
    return by_key


def test_a_bad_shard_is_named_and_redone_alone(
    tiny: str, scenes: Path, bucket: tuple[Any, str], tmp_path: Path
) -> None:
    filesystem, address = bucket
    run(tiny, scenes / "tars", tmp_path / "plain.jsonl")
    plain = answers(tmp_path / "plain.jsonl")
    upload(filesystem, scenes / "tars", f"{address}/tars")
    filesystem.pipe_file(f"{address}/tars/000002.tar", (scenes / "tars" / "000002.tar").read_bytes()[:5000])

    summary = run(tiny, f"{address}/tars/{{000000..000003}}.tar", f"{address}/out/")
    assert (summary.exit_code, summary.num_shards_done, [name for name, _ in summary.failed_shards]) == (
        1,
        3,
        ["000002.tar"],
    )
    assert "000002.tar is not a tar that can be read" in str(summary)
    others = {key: value for key, value in plain.items() if not key[0].startswith("000002")}
    assert answers(f"{address}/out") == others
    status = predict_status(status=f"{address}/out/")
    assert (status.shards, status.done, status.open, list(status.failed)) == (4, 3, 0, ["000002"])
    assert (status.lines, status.errors, status.exit_code) == (9, 0, 1)

    first = filesystem.info(f"{address}/out/000000.jsonl")["LastModified"]
    upload(filesystem, scenes / "tars", f"{address}/tars")
    summary = run(tiny, f"{address}/tars/*.tar", f"{address}/out/")
    assert (summary.exit_code, summary.num_predictions, summary.num_shards_earlier) == (0, 3, 3)
    assert answers(f"{address}/out") == plain
    filesystem.invalidate_cache()
    assert filesystem.info(f"{address}/out/000000.jsonl")["LastModified"] == first
    assert predict_status(status=f"{address}/out/").exit_code == 0
    assert run(tiny, f"{address}/tars/", f"{address}/out/", num_beams=2).num_shards_done == 4  # another run


def test_requests_that_a_store_fails_are_repeated(
    tiny: str, scenes: Path, bucket: tuple[Any, str], server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filesystem, address = bucket
    monkeypatch.setattr("florence2.data.stores.retries.FIRST_PAUSE", 0.01)
    upload(filesystem, scenes / "tars", f"{address}/tars")
    run(tiny, scenes / "tars", tmp_path / "plain.jsonl")
    proxy = FaultyProxy(server, lambda number, *_: number % 3 == 0)
    try:
        use_server(monkeypatch, proxy.address)
        summary = run(tiny, f"{address}/tars/", f"{address}/out.parquet/")
    finally:
        proxy.close()
    use_server(monkeypatch, server)
    assert summary.exit_code == 0
    assert answers(f"{address}/out.parquet") == answers(tmp_path / "plain.jsonl")
    assert min(proxy.counts.values()) >= 2, proxy.counts


def test_a_store_that_stays_broken_fails_the_shard(
    tiny: str, scenes: Path, bucket: tuple[Any, str], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, address = bucket
    monkeypatch.setattr("florence2.data.stores.retries.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    upload(filesystem, scenes / "tars", f"{address}/tars")
    proxy = FaultyProxy(server, lambda _, method, path: method == "GET" and path.endswith("/000001.tar"))
    try:
        use_server(monkeypatch, proxy.address)
        summary = run(tiny, f"{address}/tars/", f"{address}/out/")
    finally:
        proxy.close()
    assert ([name for name, _ in summary.failed_shards], summary.num_shards_done) == (["000001.tar"], 3)
    assert "000001.tar cannot be read" in summary.failed_shards[0][1]


def test_tasks_cascades_and_classes_equal_those_of_a_list(tiny: str, scenes: Path, tmp_path: Path) -> None:
    tasks = ["caption", "od+region_to_description", "open_vocabulary_detection"]
    flags: dict[str, Any] = {"task": tasks, "task_input": "cat, dog", "max_length": 16}
    run(tiny, scenes / "tars", tmp_path / "plain.jsonl", **flags)
    summary = run(tiny, scenes / "tars", f"{tmp_path}/out/", **flags)
    assert summary.num_shards_done == NUM_TARS
    plain = answers(tmp_path / "plain.jsonl")
    assert answers(tmp_path / "out") == plain
    assert {task for _, task, _ in plain} >= {"<OD>", "<REGION_TO_DESCRIPTION>", "<OPEN_VOCABULARY_DETECTION>"}
    run(tiny, scenes / "tars", tmp_path / "all.parquet", **flags)
    assert answers(tmp_path / "all.parquet") == plain
    assert run(tiny, scenes / "tars", tmp_path / "all.parquet", **flags).num_predictions == 0


@pytest.mark.parametrize(("suffix", "is_remote"), [("/", False), (".parquet/", True)])
def test_an_output_is_continued_by_other_tasks_and_images(
    tiny: str, scenes: Path, bucket: tuple[Any, str], tmp_path: Path, suffix: str, is_remote: bool
) -> None:
    output = f"{bucket[1]}/{is_remote}{suffix}" if is_remote else f"{tmp_path}/out{suffix}"
    (tmp_path / "others").mkdir()
    for name in ("000000.tar", "000001.tar"):
        (tmp_path / "others" / name).write_bytes((scenes / "tars" / "000003.tar").read_bytes())
    two_tars = f"{scenes}/tars/00000{{0,1}}.tar"
    assert run(tiny, two_tars, output).num_predictions == 6
    assert run(tiny, two_tars, output, task="od").num_predictions == 6
    assert run(tiny, tmp_path / "others", output, task="od").num_predictions == 6
    assert run(tiny, tmp_path / "others", output, task="od").num_predictions == 0
    rows = rows_of(output.rstrip("/") if is_remote else Path(output))
    assert Counter((Path(row["image_dir"]).name, row["task"]) for row in rows) == {
        ("tars", "<CAPTION>"): 6,
        ("tars", "<OD>"): 6,
        ("others", "<OD>"): 6,
    }
    assert predict_status(status=output).lines == 18


def test_a_table_is_not_written_over(tiny: str, scenes: Path, tmp_path: Path) -> None:
    shutil.copy(next((scenes / "photos").glob("*.png")), tmp_path / "a.png")
    (tmp_path / "b.parquet").mkdir()
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [(tmp_path / "a.png").read_bytes()]})
    parquet.write_table(table, tmp_path / "b.parquet" / "b.parquet")
    (tmp_path / "a.jsonl").write_text('{"file_name": "a.png", "id": 7}\n')
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for source, output in (("a.jsonl", ""), ("b.parquet", "b.parquet/"), ("b.parquet/b.parquet",) * 2):
        with pytest.raises(OptionError, match="would replace a table of `--input_path`"):
            run(tiny, tmp_path / source, f"{tmp_path}/{output}")
    with pytest.raises(OptionError, match="is a file"):
        run(tiny, tmp_path / "a.png", f"{tmp_path}/a.jsonl/")
    with pytest.raises(DatasetError, match="is not a file of predictions"):
        run(tiny, tmp_path / "a.png", f"{tmp_path}/b.parquet/b.parquet")
    assert {path: path.read_bytes() for path in contents} == contents


def test_parquet_lists_and_folders_as_input(
    tiny: str, scenes: Path, bucket: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, address = bucket
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    photos = [path for path in sorted((scenes / "photos").iterdir()) if path.suffix in (".jpg", ".png")]
    upload(filesystem, scenes / "photos", f"{address}/photos")
    run(tiny, scenes / "photos", tmp_path / "plain.jsonl")
    texts = {row["file_name"]: row["text"] for row in rows_of(tmp_path / "plain.jsonl")}

    def text_list(output: str | Path) -> list[str]:
        return [row["text"] for row in sorted(rows_of(output), key=lambda row: int(row["file_name"].split("/")[-1]))]

    expected = [texts[path.name] for path in photos]
    encoded = [path.read_bytes() for path in photos]
    struct = [{"bytes": each, "path": None} for each in encoded]
    for name, column in (("struct", struct), ("binary", encoded)):
        parquet.write_table(arrow.table({"image": column}), tmp_path / f"{name}.parquet")
        filesystem.put_file(str(tmp_path / f"{name}.parquet"), f"{address}/{name}.parquet")
        run(tiny, f"{address}/{name}.parquet", tmp_path / f"{name}.jsonl")
        assert text_list(tmp_path / f"{name}.jsonl") == expected
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        run(tiny, tmp_path / f"{name}.parquet", tmp_path / f"{name}-local.jsonl")
        assert text_list(tmp_path / f"{name}-local.jsonl") == expected

    names = [f"{address}/photos/{photos[0].name}", *(f"photos/{path.name}" for path in photos[1:])]
    filesystem.pipe_file(f"{address}/list.jsonl", "".join(json.dumps({"file_name": n}) + "\n" for n in names).encode())
    run(tiny, f"{address}/list.jsonl", f"{address}/listed.jsonl")
    assert [row["text"] for row in sorted(rows_of(f"{address}/listed.jsonl"), key=lambda row: row["file_name"][-20:])]
    assert {Path(row["file_name"]).name: row["text"] for row in rows_of(f"{address}/listed.jsonl")} == texts

    monkeypatch.setattr("florence2.data.streams.image_blocks.BLOCK_IMAGES", 5)
    assert run(tiny, f"{address}/photos/", f"{tmp_path}/blocks/").num_shards_done == 3
    rows = rows_of(tmp_path / "blocks")
    assert {row["file_name"]: row["text"] for row in rows} == texts
    assert {row["image_dir"] for row in rows} == {f"{address}/photos"}


def test_a_saved_dataset_is_read_in_shards(
    tiny: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    photos = [path for path in sorted((scenes / "photos").iterdir()) if path.suffix in (".jpg", ".png")]
    dataset = datasets.Dataset.from_dict({"image": list(map(str, photos))}).cast_column("image", datasets.Image())
    dataset.save_to_disk(str(tmp_path / "saved"))
    run(tiny, scenes / "photos", tmp_path / "plain.jsonl")
    texts = [row["text"] for row in sorted(rows_of(tmp_path / "plain.jsonl"), key=lambda row: row["file_name"])]
    run(tiny, tmp_path / "saved", tmp_path / "list.jsonl")
    assert sorted(row["text"] for row in rows_of(tmp_path / "list.jsonl")) == sorted(texts)
    run(tiny, tmp_path / "saved", f"{tmp_path}/out.parquet/")
    assert sorted(row["text"] for row in rows_of(tmp_path / "out.parquet")) == sorted(texts)


def test_training_streams_tars_of_a_store(bucket: tuple[Any, str], tmp_path: Path) -> None:
    filesystem, address = bucket
    image = io.BytesIO()
    Image.new("RGB", (20, 10)).save(image, "PNG")
    write_shards(tmp_path, [("a.png", image.getvalue(), [{"text": f"a {n}"}]) for n in range(6)], 3)
    upload(filesystem, tmp_path, f"{address}/tars")

    def epoch(spec: str) -> list[tuple[str, str | None, tuple[int, int]]]:
        stream = SampleStream(find_sharded_source(spec, ColumnMapping("caption")), seed=1)
        return [(sample.id, sample.target, sample.open().size) for sample in stream.epoch(0)]

    assert epoch(f"{address}/tars/{{000000..000001}}.tar") == epoch(f"{tmp_path}/{{000000..000001}}.tar")
    assert len(epoch(f"{address}/tars/*.tar")) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_run_resumes_within_its_open_shard(scenes: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    image = next((scenes / "photos").glob("*.[jp]*g"))
    write_shards(tars, [(image.name, image.read_bytes(), [{}])] * 80, 40)
    words = [
        "--model_path",
        "demo",
        "--input_path",
        str(tars),
        "--output_path",
        f"{tmp_path}/out/",
        "--batch_size",
        "1",
    ]
    command = [sys.executable, "-m", "florence2", "predict", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journals = tmp_path / "out" / "_run" / "open"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_size > 1500 for path in journals.glob("000000.jsonl")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [journal] = journals.glob("000000.jsonl")
    before = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 5 < len(before) < 40
    status = predict_status(status=f"{tmp_path}/out/")
    assert (status.done, status.open, status.lines) == (0, 2, len(before))
    ended = subprocess.run(command, capture_output=True, check=True, text=True)
    assert f"{80 - len(before)} predictions in" in ended.stderr
    lines = (tmp_path / "out" / "000000.jsonl").read_bytes().splitlines(keepends=True)
    assert lines[: len(before)] == before
    assert len({json.loads(line)["file_name"] for line in lines}) == len(lines) == 40
    assert not list(journals.glob("*.jsonl"))


def make_photos(folder: Path, names: Sequence[str], damaged: Sequence[str] = ()) -> Path:
    """Write small images; the damaged ones are no images."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (number * 20, 90, 120)).save(folder / name)
    for name in damaged:
        (folder / name).write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize(("suffix", "is_remote"), [("/", False), (".parquet/", True)])
def test_failed_images_of_finished_shards_are_tried_again(
    tiny: str,
    bucket: tuple[Any, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    is_remote: bool,
) -> None:
    _, address = bucket
    monkeypatch.setattr("florence2.data.streams.image_blocks.BLOCK_IMAGES", 4)
    names = [f"{number}.png" for number in range(12)]
    photos = make_photos(tmp_path / "photos", names, damaged=["1.png", "2.png", "5.png"])
    output = f"{address}/{is_remote}{suffix}" if is_remote else f"{tmp_path}/out{suffix}"
    assert run(tiny, photos, output).exit_code == 1
    status = predict_status(status=output)
    assert (status.done, status.lines, status.errors, status.exit_code) == (3, 12, 3, 1)
    assert [error.split(":")[0] for error in status.first_errors.values()] == ["1.png", "2.png"]

    make_photos(tmp_path / "photos", names, damaged=["5.png"])
    rows = {row["file_name"]: row for row in rows_of(output.rstrip("/") if is_remote else Path(output))}
    summary = run(tiny, photos, output)
    assert (summary.num_predictions, len(summary.errors), summary.num_shards_earlier) == (2, 1, 1)
    after = {row["file_name"]: row for row in rows_of(output.rstrip("/") if is_remote else Path(output))}
    assert len(after) == 12
    assert {name: after[name] for name in names if "error" not in rows[name]} == {
        name: row for name, row in rows.items() if "error" not in row
    }
    status = predict_status(status=output)
    assert (status.done, status.lines, status.errors) == (3, 12, 1)


def test_an_interrupted_job_finishes_its_shards_before_it_tries_images_again(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("florence2.data.streams.image_blocks.BLOCK_IMAGES", 3)
    photos = make_photos(tmp_path / "photos", [f"{number}.png" for number in range(9)], damaged=["1.png"])
    output = tmp_path / "out"
    run(tiny, photos, f"{output}/")
    next(path for path in output.glob("00001-*.jsonl")).unlink()  # as if the first run had been killed
    summary = run(tiny, photos, f"{output}/")
    assert (summary.num_predictions, len(summary.errors), summary.num_shards_earlier) == (3, 0, 2)
    summary = run(tiny, photos, f"{output}/")
    assert (summary.num_predictions, len(summary.errors), summary.num_shards_earlier) == (0, 1, 2)


FIRST_WRITER = """
import sys, time
from pathlib import Path
from florence2.cli.program import main
from florence2.data.stores import store_lease
from florence2.results.shards.shard_output import ShardOutput

store_lease.HEARTBEAT = 0.1
finish, go = ShardOutput.finish, Path(sys.argv[1])

def finish_later(self):
    while not go.exists():
        time.sleep(0.02)
    finish(self)

ShardOutput.finish = finish_later
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", ["out/", pytest.param("all.jsonl", marks=pytest.mark.long)])
def test_two_commands_do_not_write_one_place_in_a_store(
    tiny: str, scenes: Path, bucket: tuple[Any, str], tmp_path: Path, name: str
) -> None:
    filesystem, address = bucket
    output, go = f"{address}/{name}", tmp_path / "go"
    words = ["predict", "--model_path", tiny, "--input_path", str(scenes / "tars"), "--max_length", "6"]
    command = [sys.executable, "-c", FIRST_WRITER, str(go), *words, "--output_path", output]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: bool(filesystem.glob(f"{address}/**/*.lease")) or first.poll() is not None)
        with pytest.raises(OptionError, match=f"another process writes {output.rstrip('/')}: process {first.pid} on"):
            run(tiny, scenes / "tars", output)
    finally:
        go.touch()
        _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    filesystem.invalidate_cache()
    assert not filesystem.glob(f"{address}/**/*.lease")
    assert len(answers(output.rstrip("/") if name.endswith("/") else output)) == NUM_IMAGES


def test_what_shards_cannot_do_is_refused(tiny: str, scenes: Path, tmp_path: Path) -> None:
    for flags in ({"sidecar": ".txt"}, {"export": "coco"}, {"save_images": "drawn"}):
        with pytest.raises(OptionError, match=f"`--{next(iter(flags))}` writes beside one local file"):
            run(tiny, scenes / "tars", f"{tmp_path}/out/", **flags)
    with pytest.raises(OptionError, match="is neither a"):
        run(tiny, scenes / "tars", "memory://predictions.csv")
    with pytest.raises(OptionError, match="cannot be written"):
        run(tiny, scenes / "tars", "https://example.org/a.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text\n")
    for name, reason in (
        ("", "is not the output of a prediction"),
        (str(tmp_path), "is not the output of a prediction"),
        (f"{tmp_path}/", "is not the output of a job in shards"),
        (f"{tmp_path}/empty/", "does not exist or is empty"),
        (f"{tmp_path}/absent", "does not exist"),
        (f"{tmp_path}/text.txt", "line 1 is not a prediction"),
    ):
        with pytest.raises(DatasetError, match=reason):
            predict_status(status=name)
    with pytest.raises(OptionError, match=r"beside each image, and 000000\.tar/00000000\.png is no file in a folder"):
        run(tiny, scenes / "tars", tmp_path / "captions.jsonl", sidecar=".txt")
    with pytest.raises(OptionError, match="is not an address"):
        run(tiny, scenes / "tars", "s3:/bucket/out/")
    with pytest.raises(OptionError, match="is empty"):
        run(tiny, "", f"{tmp_path}/out/")
    with pytest.raises(OptionError, match="is both input and output"):
        run(tiny, tmp_path / "text.txt", tmp_path / "text.txt")
    with pytest.raises(DatasetError, match="no image, tar or table matches"):
        run(tiny, "memory://absent/*.tar", f"{tmp_path}/out/")
    summary = run(tiny, scenes / "tars", f"{tmp_path}/out/", task="caption_to_phrase_grounding")
    assert len(summary.failed_shards) == NUM_TARS
    assert "without" in summary.failed_shards[0][1]
