"""The output folder of a job in shards as a dataset: checked, converted, evaluated and trained on, like any other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from florence2.api import check_dataset, convert_dataset, evaluate, predict
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.demo.dataset import make_dataset
from florence2.errors import DatasetError, OptionError
from tests.s3 import s3_server, upload, use_server

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos/`, the same as `tars/`, their boxes, and those predicted by one process."""
    folder = tmp_path_factory.mktemp("scenes")
    make_dataset(folder / "photos", num_samples=NUM_IMAGES, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("florence2.data.streams.tars.tar_writer.write_shards.__defaults__", (3,))
        convert_dataset(dataset=str(folder / "photos" / "od.jsonl"), output=str(folder / "tars"), to="shards")
    detect(folder / "photos", folder / "plain.jsonl")
    convert_dataset(dataset=str(folder / "plain.jsonl"), output=str(folder / "plain-coco"), to="coco")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


def detect(source: object, output: object) -> None:
    predict(model_path="demo", dtype="float32", input_path=str(source), output_path=str(output), task="od")


def boxes(folder: Path) -> list[Any]:
    """Return the sizes, boxes and names of a COCO file, without the names of images."""
    coco = json.loads((folder / "_annotations.coco.json").read_text())
    names = {each["id"]: each["name"] for each in coco["categories"]}
    by_image: dict[int, list[Any]] = {each["id"]: [] for each in coco["images"]}
    for each in coco["annotations"]:
        by_image[each["image_id"]].append((names[each["category_id"]], [round(v, 2) for v in each["bbox"]]))
    for image in coco["images"]:
        assert (folder / image["file_name"]).stat().st_size > 500
    return sorted(sorted(each) for each in by_image.values())


@pytest.mark.parametrize(
    ("source", "output"), [("photos", "out/"), ("tars", "out.parquet/"), ("tars/000001.tar", "nested/out/")]
)
def test_a_local_folder(scenes: Path, tmp_path: Path, source: str, output: str) -> None:
    detect(scenes / source, f"{tmp_path}/{output}")
    result = convert_dataset(dataset=f"{tmp_path}/{output}", output=str(tmp_path / "coco"), to="coco")
    expected = boxes(scenes / "plain-coco")
    assert result.num_images == (3 if source.endswith(".tar") else NUM_IMAGES)
    found = boxes(tmp_path / "coco")
    assert found == expected if source != "tars/000001.tar" else all(each in expected for each in found)


def test_a_folder_in_a_store(scenes: Path, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    filesystem = use_server(monkeypatch, server)
    filesystem.mkdir("outputs")
    upload(filesystem, scenes / "tars", "s3://outputs/tars")
    upload(filesystem, scenes / "photos", "s3://outputs/photos")
    expected = boxes(scenes / "plain-coco")
    outputs = [
        "s3://outputs/of-tars/",
        "s3://outputs/of-photos.parquet/",
        "s3://outputs/all.jsonl",
        f"{tmp_path}/of-tars/",
    ]
    for source, output in zip(["tars/", "photos/", "tars/*.tar", "tars/"], outputs, strict=True):
        detect(f"s3://outputs/{source}", output)
        folder = tmp_path / output.strip("/").replace("/", "-")
        assert convert_dataset(dataset=output, output=str(folder), to="coco").num_images == NUM_IMAGES
        assert boxes(folder) == expected
        report = check_dataset(dataset=output)
        assert not report.issues
    scores = [
        evaluate(predictions=output, references=str(references), output_path=str(tmp_path / "scores.json"), num_worst=0)
        for output, references in (
            (str(scenes / "plain.jsonl"), scenes / "photos" / "od.jsonl"),
            ("s3://outputs/of-photos.parquet/", scenes / "photos" / "od.jsonl"),
            ("s3://outputs/of-tars/", scenes / "tars"),
            (f"{tmp_path}/of-tars/", scenes / "tars"),
        )
    ]
    assert scores[0]["tasks"]
    assert all(each["tasks"] == scores[0]["tasks"] for each in scores)


def test_what_is_not_done_is_named(scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detect(scenes / "tars", f"{tmp_path}/out/")
    (tmp_path / "out" / "000001.jsonl").unlink()
    with caplog.at_level("WARNING"):
        assert len(resolve_dataset(tmp_path / "out", DatasetOptions("<OD>")).samples) == 3
    assert "1 of 2 shards are done, and only these are read" in caplog.text
    (tmp_path / "out" / "000000.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"no shard of .* is done"):
        check_dataset(dataset=f"{tmp_path}/out/")
    with pytest.raises(OptionError) as refusal:
        predict(model_path="demo", input_path=str(scenes / "tars"), output_path="out/", export=["coco=boxes"])
    assert refusal.value.hint == "remove `--export`, and run `florence2 data convert out/ FOLDER --to coco` afterwards"
