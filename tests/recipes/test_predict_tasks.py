"""Prediction with several tasks, cascades, classes, regions, returned sequences and exports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from florence2.api import evaluate, predict
from florence2.cli import program
from florence2.data.columns import ColumnMapping
from florence2.data.formats.detect import find_source
from florence2.demo.dataset import make_dataset
from florence2.engine.encoder.encoder import Encoder
from florence2.errors import UserError
from tests.recipes.test_predict import read_rows, save_images
from tests.tiny import save_tiny

CASCADE = "caption+caption_to_phrase_grounding"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("scenes"), num_samples=3, seed=6_000_001)


@pytest.fixture
def encoded_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the batch sizes of the vision tower."""
    batch_sizes: list[int] = []
    encode_images = Encoder._encode_images

    def count(self: Encoder, images: Any) -> None:
        batch_sizes.append(len(images))
        encode_images(self, images)

    monkeypatch.setattr(Encoder, "_encode_images", count)
    return batch_sizes


def run_task(model: str | Path, folder: Path, output: Path, **more: Any) -> list[dict[str, Any]]:
    """Predict, and return the rows without the keys that are equal in all of them."""
    predict(model_path=str(model), input_path=str(folder), output_path=str(output), **more)
    return [
        {key: value for key, value in row.items() if key not in ("image_dir", "run_id")} for row in read_rows(output)
    ]


def texts_by_request(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], str]:
    return {(row["file_name"], row["task"], row.get("input", "")): row["text"] for row in rows}


def test_several_tasks_encode_each_image_once(tiny: Path, tmp_path: Path, encoded_images: list[int]) -> None:
    folder = save_images(tmp_path / "photos", *(f"{n}.png" for n in range(5)))
    tasks = ("caption", "od", "ocr", "What is it?")
    together = run_task(tiny, folder, tmp_path / "all.jsonl", task=tasks, max_length=6, batch_size=3)
    assert (len(together), sum(encoded_images)) == (20, 5)
    alone = [texts_by_request(run_task(tiny, folder, tmp_path / f"{t}.jsonl", task=t, max_length=6)) for t in tasks]
    assert texts_by_request(together) == {key: text for each in alone for key, text in each.items()}


@pytest.mark.parametrize("engine", ["continuous", "generate"])
def test_cascade_passes_text_to_a_text_task(
    scenes: Path, tmp_path: Path, encoded_images: list[int], engine: str
) -> None:
    rows = run_task("demo", scenes, tmp_path / "o.jsonl", task=CASCADE, engine=engine)
    captions = {row["file_name"]: row["text"] for row in rows if row["task"] == "<CAPTION>"}
    assert len(rows) == 6
    assert {row["file_name"]: row["input"] for row in rows if "input" in row} == captions
    assert all(row["answer"]["labels"] for row in rows if "input" in row)
    assert engine == "generate" or sum(encoded_images) == 3


def test_cascade_passes_boxes_to_a_region_task(scenes: Path, tmp_path: Path) -> None:
    rows = run_task(
        "demo", scenes, tmp_path / "o.jsonl", task="od+region_to_category", save_images=str(tmp_path / "images")
    )
    boxes = [row for row in rows if row["task"] == "<OD>"]
    regions = [row for row in rows if row["task"] == "<REGION_TO_CATEGORY>"]
    labels = {label for row in boxes for label in row["answer"]["labels"]}
    assert len(regions) == sum(len(row["answer"]["bboxes"]) for row in boxes)
    assert len({row["text"] for row in regions} & labels) >= len(labels) - 2, "the model errs now and then"
    text = {row["file_name"]: row["text"] for row in boxes}
    assert all(row["input"] in text[row["file_name"]] for row in regions), "so that lines can be joined"
    assert len(list((tmp_path / "images").glob("*.jpg"))) == len(rows)


def test_interrupted_cascade_resumes_from_its_captions(scenes: Path, tmp_path: Path, encoded_images: list[int]) -> None:
    output, options = tmp_path / "o.jsonl", {"task": CASCADE, "prefix": "sks, ", "suffix": "!"}
    uninterrupted = run_task("demo", scenes, output, **options)
    lines = [
        line for line in output.read_text(encoding="utf-8").splitlines() if "GROUNDING" not in line or "0001" in line
    ]
    output.write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")  # one caption and two groundings are lost
    encoded_images.clear()
    again = run_task("demo", scenes, output, **options)
    assert texts_by_request(again) == texts_by_request(uninterrupted)
    assert len(again) == 6
    assert sum(encoded_images) <= 2
    encoded_images.clear()
    assert texts_by_request(run_task("demo", scenes, output, **options)) == texts_by_request(uninterrupted)
    assert not encoded_images


def test_killed_cascade_predicts_each_request_once(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", *(f"{n:03}.png" for n in range(12)))
    output = tmp_path / "captions.jsonl"
    arguments = [
        "--model_path",
        str(tiny),
        "--input_path",
        str(folder),
        "--output_path",
        str(output),
        "--task",
        CASCADE,
    ]
    command = [sys.executable, "-m", "florence2", "predict", *arguments, "od", "--batch_size", "2", "--max_length", "9"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and count_lines(output) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert count_lines(output) >= 5, "the process must be killed while it runs"
    options: dict[str, Any] = {"task": (CASCADE, "od"), "batch_size": 2, "max_length": 9}
    resumed = run_task(tiny, folder, output, **options)
    uninterrupted = run_task(tiny, folder, tmp_path / "uninterrupted.jsonl", **options)
    assert texts_by_request(resumed) == texts_by_request(uninterrupted)
    assert len(resumed) == len(uninterrupted)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_several_classes_are_one_prediction(scenes: Path, tmp_path: Path, encoded_images: list[int]) -> None:
    task = "open_vocabulary_detection"
    merged = run_task("demo", scenes, tmp_path / "all.jsonl", task=task, task_input="snowman, dog")
    assert (len(merged), sum(encoded_images)) == (3, 3)
    parts = [
        run_task("demo", scenes, tmp_path / f"{name}.jsonl", task=task, task_input=name) for name in ("snowman", "dog")
    ]
    for both in merged:
        alone = [next(row for row in part if row["file_name"] == both["file_name"]) for part in parts]
        assert both["text"] == "".join(row["text"] for row in alone)
        assert both["answer"]["bboxes"] == [box for row in alone for box in row["answer"]["bboxes"]]
        assert both["answer"]["bboxes_scores"] == pytest.approx(
            [s for r in alone for s in r["answer"]["bboxes_scores"]], rel=1e-3
        )
    encoded_images.clear()
    assert run_task("demo", scenes, tmp_path / "all.jsonl", task=task, task_input="snowman, dog") == merged
    assert not encoded_images


def test_returned_sequences_are_one_line(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.png", "b.png")
    options: dict[str, Any] = {"num_beams": 3, "max_length": 6, "prefix": "x "}
    one = run_task(tiny, folder, tmp_path / "one.jsonl", **options)
    three = run_task(tiny, folder, tmp_path / "o.jsonl", generation_args=("num_return_sequences=3",), **options)
    assert texts_by_request(three) == texts_by_request(one)
    for row in three:
        texts = [row["text"], *(other["text"] for other in row["alternatives"])]
        assert len(set(texts)) == 3
        assert all(text.startswith("x ") for text in texts)
    assert run_task(tiny, folder, tmp_path / "o.jsonl", generation_args=("num_return_sequences=3",), **options) == three


def test_generation_args_change_predictions_and_run_id(tiny: Path, tmp_path: Path) -> None:
    folder, output = save_images(tmp_path / "photos", "a.png"), tmp_path / "o.jsonl"
    run_task(tiny, folder, output, max_length=9)
    [first] = read_rows(output)
    run_task(tiny, folder, output, max_length=9, generation_args=("num_return_sequences=1",))
    assert read_rows(output) == [first], "the same run"
    run_task(tiny, folder, output, max_length=9, generation_args=("min_length=9",))
    [second] = read_rows(output)
    assert second["run_id"] != first["run_id"]
    assert second["num_tokens"] == 9


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("length_penalti=2", "did you mean `length_penalty`"),
        ("num_beams=3", "pass `--num_beams`"),
        ("min_length=some", "min_length=some"),
        ("early_stopping=1", "early_stopping=1"),
        ("generation_args=1", "has no `generation_args`"),
        ("repetition_penalty=0", "repetition_penalty"),
    ],
)
def test_invalid_generation_args_are_refused_by_name(
    tiny: Path, tmp_path: Path, option: str, message: str, capsys: Any
) -> None:
    flags = ["--model_path", str(tiny), "--input_path", str(tmp_path), "--output_path", str(tmp_path / "o.jsonl")]
    assert program.main(["predict", *flags, "--generation_args", option]) == 2
    assert message in capsys.readouterr().err


def test_region_input_is_in_pixels(scenes: Path, tmp_path: Path) -> None:
    with Image.open(scenes / "0000.png") as image:
        width, height = image.size
    region = f"0,0,{width / 2},{height}"
    [row] = run_task("demo", scenes / "0000.png", tmp_path / "o.jsonl", task="region_to_category", task_input=region)
    assert row["input"] == "<loc_0><loc_0><loc_500><loc_999>"


def test_object_scores_rank_boxes_in_evaluation(scenes: Path, tmp_path: Path) -> None:
    output, references = tmp_path / "o.jsonl", str(scenes / "od.jsonl")
    rows = run_task("demo", scenes, output, task="od")
    assert all(0 < score <= 1 for row in rows for score in row["answer"]["scores"])
    assert [len(row["answer"]["scores"]) for row in rows] == [len(row["answer"]["bboxes"]) for row in rows]

    def precision() -> float:
        scores = evaluate(
            predictions=str(output), references=references, bootstrap_samples=0, output_path=str(tmp_path / "s")
        )
        return float(scores["tasks"]["od"]["scores"]["map"]["value"])

    written = read_rows(output)
    for row in written:  # a wrong box of each label beside the right one, first with a lower score, then a higher one
        row["answer"]["bboxes"] += [[0, 0, 2, 2]] * len(row["answer"]["bboxes"])
        row["answer"]["labels"] *= 2
        row["answer"]["scores"] += [0.01] * len(row["answer"]["scores"])
    output.write_text("".join(json.dumps(row) + "\n" for row in written))
    best = precision()
    for row in written:
        row["answer"]["scores"] = [1 - score for score in row["answer"]["scores"]]
    output.write_text("".join(json.dumps(row) + "\n" for row in written))
    assert best > 0.7
    assert precision() < 0.6 * best


def test_interrupted_run_exports_all_predictions(scenes: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    run_task("demo", scenes / "0000.png", output, task="od")
    export = ("coco", f"yolo={tmp_path / 'mine'}", "jsonl")
    (tmp_path / "o-coco.partial" / "torn").mkdir(parents=True)  # as a kill leaves it
    rows = run_task("demo", scenes, output, task="od", export=export)
    assert not list(tmp_path.glob("*.partial"))
    for folder, labels in ((tmp_path / "o-coco", "_annotations.coco.json"), (tmp_path / "mine", "data.yaml")):
        assert (folder / labels).is_file()
        entries = list(find_source(str(folder)).rows(ColumnMapping("od")))  # type: ignore[union-attr]
        exported = {Path(entry.row["file_name"]).name: entry.row["answer"] for entry in entries}
        assert exported.keys() == {"0000.png", "0001.png", "0002.png"}
        for row in rows:
            assert exported[row["file_name"]]["labels"] == row["answer"]["labels"]
            for box, expected in zip(exported[row["file_name"]]["bboxes"], row["answer"]["bboxes"], strict=True):
                assert box == pytest.approx(expected, abs=0.01)
    assert len(yaml.safe_load((tmp_path / "mine" / "data.yaml").read_text())["names"]) > 2
    annotations = json.loads((tmp_path / "o-coco" / "_annotations.coco.json").read_text())
    scores = {round(score, 6) for row in rows for score in row["answer"]["scores"]}
    assert {round(each["score"], 6) for each in annotations["annotations"]} == scores
    assert [len(row["text"]) for row in read_rows(tmp_path / "o-jsonl" / "metadata.jsonl")] == [
        len(row["text"]) for row in read_rows(output)
    ]
    run_task("demo", scenes, output, task="od", export=export)  # nothing to predict, nothing to write
    with pytest.raises(UserError, match="o-coco exists"):
        run_task("demo", scenes, output, task="od", export=export, overwrite_output=True)


def test_captions_are_exported_to_a_folder(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.png", "deep/b.png")
    rows = run_task(tiny, folder, tmp_path / "o.jsonl", max_length=6, prefix="sks", recursive=True, export="folder")
    for row in rows:
        written = tmp_path / "o-folder" / row["file_name"]
        assert written.read_bytes() == (folder / row["file_name"]).read_bytes()
        assert written.with_suffix(".txt").read_text() == row["text"] + "\n"


def test_unsupported_export_is_refused_before_prediction(tiny: Path, tmp_path: Path) -> None:
    folder, output = save_images(tmp_path / "photos", "a.png", "a.jpg"), tmp_path / "o.jsonl"
    with pytest.raises(UserError, match="would have the same text file"):
        run_task(tiny, folder, output, export="folder", max_length=3)
    assert not output.exists()
    (folder / "a.jpg").unlink()
    (folder / "a.png").write_bytes(b"torn")
    [row] = run_task(tiny, folder, output, export="folder", max_length=3)
    assert row["error"]
    assert not (tmp_path / "o-folder").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"export": "coco"}, "coco cannot hold the output of `caption`"),
        ({"export": "folder", "task": "od"}, "folder cannot hold the output of `od`"),
        ({"export": "cocoa"}, "`--export cocoa` is not a format"),
        ({"export": "jsonl", "output_path": "-"}, "and - is not a file"),
        ({"sidecar": ".txt", "task": ("od", "caption")}, "`--sidecar` holds one prediction"),
    ],
)
def test_conflicting_output_flags_are_refused(
    tiny: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = save_images(tmp_path / "photos", "a.png")
    with pytest.raises(UserError, match=message) as error:
        predict(
            **{"model_path": str(tiny), "input_path": str(folder), "output_path": str(tmp_path / "o.jsonl"), **options}
        )
    assert error.value.hint
    assert not (tmp_path / "o.jsonl").exists()
