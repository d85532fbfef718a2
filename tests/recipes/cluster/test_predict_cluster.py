"""Prediction on a Ray cluster of two nodes, whose workers, nodes and driver are killed while it works."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import florence2
from florence2.api import predict, predict_status
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.demo.dataset import make_dataset
from florence2.errors import OptionError
from florence2.recipes.cluster.ray_cluster import EnginePool, find_address
from tests.ray_memory import record_memory
from tests.ray_nodes import RayNodes, kill_all, ray_environment, ray_nodes, wait_until
from tests.s3 import s3_server, upload, use_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes of Ray are killed by their title")


def make_tars(folder: Path, num_images: int, num_tars: int, num_scenes: int = 16) -> Path:
    """Write scenes into tars; beyond `num_scenes` the images repeat under other names."""
    make_dataset(folder / "photos", num_samples=num_scenes, seed=5)
    photos = [path for path in sorted((folder / "photos").iterdir()) if path.suffix in (".jpg", ".png")]
    encoded = [(path.name, path.read_bytes(), [{}]) for path in photos]
    (folder / "tars").mkdir()
    write_shards(folder / "tars", [encoded[n % len(encoded)] for n in range(num_images)], num_images // num_tars)
    return folder / "tars"


def read_rows(filesystem: Any, address: str) -> list[dict[str, Any]]:
    filesystem.invalidate_cache()
    names = [name for name in filesystem.find(address) if "/_run/" not in name]
    return [json.loads(line) for name in names for line in filesystem.cat(name).splitlines()]


def times(filesystem: Any, address: str) -> dict[str, Any]:
    filesystem.invalidate_cache()
    files = filesystem.find(address, detail=True).items()  # of a folder that just appears, itself
    return {name: each["LastModified"] for name, each in files if "/_run/" not in name and each["type"] == "file"}


@contextmanager
def ending(driver: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield driver
    finally:
        kill_all(driver)


def start(nodes: RayNodes, source: str, output: str, log: Path, *flags: str) -> subprocess.Popen[bytes]:
    words = ["predict", "--model_path", "demo", "--dtype", "float32", "--input_path", source, "--output_path", output]
    command = [sys.executable, "-m", "florence2", *words, "--cluster", nodes.address, *flags]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=ray_environment(), stdout=file, stderr=file)


def finish(driver: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> str:
    code = driver.wait(timeout=seconds)
    text = log.read_text()
    assert code == 0, text[-4000:]
    return text


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def ray_head(server: str) -> Iterator[RayNodes]:
    with pytest.MonkeyPatch.context() as patch:
        use_server(patch, server)  # nodes have credentials of their own
        with ray_nodes(0, cpus=2) as nodes:
            yield nodes


def image_number(file_name: str) -> int:
    return int(Path(file_name).stem)


def expected_texts(tars: Path, folder: Path) -> dict[str, str]:
    """Predict the tars by one process without a cluster."""
    output = folder / "plain.jsonl"
    predict(model_path="demo", dtype="float32", input_path=str(tars), output_path=str(output))
    return {row["file_name"]: row["text"] for row in map(json.loads, output.read_text().splitlines())}


def test_a_killed_worker_loses_and_repeats_nothing(
    server: str, ray_head: RayNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kill a worker; objects with low scores are removed and counted once, also in packs that two workers predict."""
    filesystem = use_server(monkeypatch, server)
    tars = make_tars(tmp_path, num_images=160, num_tars=4, num_scenes=16)
    filesystem.mkdir("short")
    upload(filesystem, tars, "s3://short/tars")
    common: dict[str, Any] = {"model_path": "demo", "dtype": "float32", "input_path": f"{tmp_path}/photos/*.png"}
    predict(**common, task=("od",), output_path=str(tmp_path / "all.jsonl"))
    scores = sorted(score for row in lines_of(tmp_path / "all.jsonl") for score in row["answer"]["scores"])
    min_score = (scores[2] + scores[3]) / 2
    plain = predict(**common, task=("od",), output_path=str(tmp_path / "plain.jsonl"), min_score=min_score)
    assert plain.num_removed == 3
    log = tmp_path / "log"
    flags = ("--max_in_flight", "8", "--task", "od", "--min_score", str(min_score))
    with ending(start(ray_head, "s3://short/tars/{000000..000003}.tar", "s3://short/out/", log, *flags)) as driver:
        wait_until(lambda: len(ray_head.engines()) == 2, 300)
        wait_until(lambda: bool(times(filesystem, "s3://short/out")), 300)
        ray_head.kill_engine()
        text = finish(driver, log)
    assert "160 predictions in" in text
    assert "1 node of a Ray cluster, 2 engines with 1 core each" in text
    assert f"{10 * plain.num_removed} objects removed, with a score below `--min_score`" in text
    expected = {
        row["file_name"]: (row["text"], row.get("removed_objects")) for row in lines_of(tmp_path / "plain.jsonl")
    }
    scenes = sorted(expected)
    rows = read_rows(filesystem, "s3://short/out")
    assert sorted(image_number(row["file_name"]) for row in rows) == list(range(160))
    for row in rows:
        scene = scenes[image_number(row["file_name"]) % 16]
        assert (row["text"], row.get("removed_objects")) == expected[scene]
    status = predict_status(status="s3://short/out/")
    assert (status.shards, status.done, status.lines, status.errors) == (4, 4, 160, 0)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, path.read_text().splitlines()))


RAY_PROGRAM = """
import json, sys
from pathlib import Path
import ray
import florence2
ray.init(sys.argv[1], log_to_driver=False)
paths = sorted(Path(sys.argv[2]).glob("*.png"))
encoded = [{"image": path.read_bytes(), "path": str(path), "id": 1, "tags": ["a"]} for path in paths]
encoded += [{"image": b"damaged", "path": "bad", "id": None, "tags": []}]
options = {"model_path": "demo", "task": "od", "dtype": "float32", "num_engines": 1}
for dataset in (ray.data.from_items(encoded), ray.data.read_images([str(path) for path in paths], include_paths=True)):
    rows = florence2.ray.predict(dataset, **options).take_all()
    others = [(row.get("id", 1), row.get("tags", ["a"]), row["path"] == "bad") for row in rows]
    assert {str(other) for other in others} <= {"(1, ['a'], False)", "(None, [], True)"}, others
    print(json.dumps({Path(row["path"]).name: [row["text"], row["answer"], row["error"]] for row in rows}))
"""


def test_a_ray_dataset_gets_columns(ray_head: RayNodes, tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=6, seed=9)
    command = [sys.executable, "-c", RAY_PROGRAM, ray_head.address, str(tmp_path)]
    run = subprocess.run(command, env=ray_environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    encoded, pixels = (json.loads(line) for line in run.stdout.splitlines() if line.startswith("{"))
    assert encoded.pop("bad")[2].startswith("row")
    model, processor = florence2.load("demo", dtype="float32")
    with florence2.Engine(model, processor) as engine:
        samples = [florence2.Sample(path.name, path, "<OD>") for path in sorted(tmp_path.glob("*.png"))]
        expected = {each.file_name: each for each in engine.run(samples)}
    for rows in (encoded, pixels):
        assert {name: text for name, (text, _, _) in rows.items()} == {name: p.text for name, p in expected.items()}
        for name, (_, answer, error) in rows.items():
            own = expected[name].answer
            assert own is not None
            assert json.loads(answer)["bboxes"] == own.to_dict()["bboxes"]
            assert error is None


@pytest.mark.long
def test_lost_workers_nodes_and_drivers_are_survived(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    num_images, num_tars, num_scenes = request.config.getoption("--scenes"), 40, 500
    filesystem = use_server(monkeypatch, server)
    tars = make_tars(tmp_path, num_images, num_tars, num_scenes)
    filesystem.mkdir("long")
    upload(filesystem, tars, "s3://long/tars")
    (tars / "000007.tar").rename(tmp_path / "good.tar")
    filesystem.pipe_file("s3://long/tars/000007.tar", b"damaged" * 200)
    output = "s3://long/out/"
    record = request.config.getoption("--memory_record") or tmp_path / "memory.jsonl"
    seconds = num_images  # for each wait: one image a second, however busy the machine is
    with ray_nodes(2) as nodes, record_memory(nodes.address, Path(record)) as memory:
        log = tmp_path / "log"

        def run() -> subprocess.Popen[bytes]:
            memory.mark("driver started")
            return start(nodes, "s3://long/tars/*.tar", output, log)

        def wait_for_outputs(number: int) -> None:
            wait_until(lambda: len(times(filesystem, output)) >= number, seconds)

        driver = run()
        wait_for_outputs(3)
        nodes.kill_engine()
        memory.mark("worker killed")
        wait_for_outputs(8)
        nodes.kill_node(0)
        memory.mark("node killed")
        nodes.add_node()
        wait_for_outputs(15)
        driver.kill()
        driver.wait()
        memory.mark("driver killed")
        done_before = times(filesystem, output)
        time.sleep(5)
        (tmp_path / "good.tar").rename(tars / "000007.tar")
        driver = run()
        assert driver.wait(timeout=seconds) == 1, log.read_text()[-4000:]
        assert "1 shard failed; the first: 000007.tar" in log.read_text()
        filesystem.put_file(str(tars / "000007.tar"), "s3://long/tars/000007.tar")
        memory.mark("tar replaced")
        finish(run(), log, seconds)
        memory.mark("finished")
    after = times(filesystem, output)
    assert {name: after[name] for name in done_before} == done_before  # nothing that was done is done again
    rows = read_rows(filesystem, output)
    for tar in sorted(tars.iterdir())[-(-num_scenes * num_tars // num_images) :]:
        tar.unlink()  # the images repeat: these tars have each of them once
    texts = {image_number(name): text for name, text in expected_texts(tars, tmp_path).items()}
    assert sorted(image_number(row["file_name"]) for row in rows) == list(range(num_images))
    assert len({row["file_name"] for row in rows}) == num_images
    wrong = [row for row in rows if row["text"] != texts[image_number(row["file_name"]) % num_scenes]]
    assert not wrong, (len(wrong), wrong[:3])
    print(f"{len(done_before)} shards in place when the driver was killed", log.read_text(), sep="\n")


def test_nodes_are_divided_among_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert EnginePool.of_nodes([node(1), node(1)], None) == EnginePool(2, 1, 0)
    assert EnginePool.of_nodes([node(16), node(8), node(64, alive=False)], None) == EnginePool(6, 4, 0)
    assert EnginePool.of_nodes([node(128, 8), node(64)], None) == EnginePool(8, 16, 1, is_growing=True)
    assert EnginePool.of_nodes([node(128, 8)], "cpu") == EnginePool(32, 4, 0)
    assert EnginePool.of_nodes([node(1)], None).reserved_cpus == 0.5
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert EnginePool.of_nodes([node(16)], None) == EnginePool(8, 2, 0)
    with pytest.raises(OptionError, match="has no GPU"):
        EnginePool.of_nodes([node(8)], "cuda")


def test_a_cluster_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert find_address() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert find_address() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_address() == "10.0.0.1:6379"


def test_flags_that_a_cluster_cannot_have_are_refused(tmp_path: Path) -> None:
    def run(**flags: Any) -> None:
        values = {"model_path": "demo", "input_path": str(tmp_path), "output_path": f"{tmp_path}/out/"}
        predict(**(values | flags))

    with pytest.raises(OptionError, match="`--max_in_flight` is for a cluster"):
        run(max_in_flight=3)
    with pytest.raises(OptionError, match="max_in_flight` is 0"):
        run(cluster="auto", max_in_flight=0)
    make_dataset(tmp_path, num_samples=1, seed=1)
    with pytest.raises(OptionError, match=r"the Ray cluster `127\.0\.0\.1:1` cannot be reached: .*refused"):
        run(cluster="127.0.0.1:1")
    with pytest.raises(OptionError, match="Ray chooses the devices"):
        run(cluster="auto", devices="cpu,cpu")
    with pytest.raises(OptionError, match="runs in one process"):
        run(cluster="auto", engine="generate")
