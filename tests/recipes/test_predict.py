import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from florence2 import settings_io as settings
from florence2.api import predict
from florence2.config import PredictSettings
from florence2.recipes.predict import main
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def save_images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        squares = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((80, 60)).save(path)
    return folder


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_texts(path: Path) -> dict[str, str]:
    return {row["file_name"]: row["text"] for row in read_rows(path)}


def run_predict(tiny: Path, folder: Path, output: Path, **more: Any) -> dict[str, str]:
    predict(model_path=str(tiny), input_path=str(folder), output_path=str(output), **({"max_length": 6} | more))
    return read_texts(output)


def test_predict_writes_one_line_per_image_and_ignores_other_files(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.JPG", "b.png", "c.WebP", "d.tiff", "deep/e.bmp")
    (folder / "notes.md").write_text("not an image")
    assert set(run_predict(tiny, folder, tmp_path / "flat.jsonl")) == {"a.JPG", "b.png", "c.WebP", "d.tiff"}
    assert "deep/e.bmp" in run_predict(tiny, folder, tmp_path / "all.jsonl", recursive=True)


def test_unreadable_image_is_written_as_error_and_exits_with_1(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jpg")
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    values = {"model_path": str(tiny), "input_path": str(folder), "output_path": str(tmp_path / "o.jsonl")}
    prediction_settings = settings.settings_from_dict(PredictSettings, {**values, "max_length": 4})
    assert main(prediction_settings) == 1
    errors = {row["file_name"]: row.get("error") for row in read_rows(tmp_path / "o.jsonl")}
    assert errors["a.jpg"] is None
    assert "b.jpg" in str(errors["b.jpg"])
    save_images(folder, "a.jpg", "b.jpg")
    assert main(prediction_settings) == 0
    assert len(read_rows(tmp_path / "o.jsonl")) == 2


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 1.5}], ids=str)
def test_predictions_do_not_depend_on_batch_size_or_engine(tiny: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    folder = save_images(tmp_path / "photos", *(f"{n}.png" for n in range(5)))
    more = {"dtype": "float32"} | more  # half precision rounds differently in other batches
    alone = run_predict(tiny, folder, tmp_path / "1.jsonl", batch_size=1, **more)
    assert run_predict(tiny, folder, tmp_path / "4.jsonl", batch_size=4, **more) == alone
    if not more.get("do_sample"):
        assert run_predict(tiny, folder, tmp_path / "r.jsonl", batch_size=3, engine="generate", **more) == alone


def test_sidecars_are_written_beside_images(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.png", "b.png")
    (folder / "a.txt").write_text("by hand", encoding="utf-8")
    predicted = run_predict(tiny, folder, tmp_path / "skip.jsonl", sidecar=".txt", prefix="sks ", suffix="!")
    assert set(predicted) == {"b.png"}
    assert predicted["b.png"].startswith("sks ")
    assert (folder / "b.txt").read_text(encoding="utf-8") == predicted["b.png"] + "\n"
    assert (folder / "a.txt").read_text(encoding="utf-8") == "by hand"
    predicted = run_predict(tiny, folder, tmp_path / "append.jsonl", sidecar=".txt", if_exists="append")
    assert (folder / "a.txt").read_text(encoding="utf-8") == f"by hand {predicted['a.png']}".strip() + "\n"


def test_save_images_writes_annotated_images(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.png", "deep/a.png")
    run_predict(tiny, folder, tmp_path / "o.jsonl", recursive=True, save_images=str(tmp_path / "images"))
    written = {path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.jpg")}
    assert written == {"a.jpg", "deep/a.jpg"}
    with Image.open(tmp_path / "images" / "a.jpg") as image:
        assert image.width > 80, "enlarged, so that the text is legible"


def test_default_task_is_the_fine_tuned_one_else_caption(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.png")
    run_predict(tiny, folder, tmp_path / "o.jsonl")
    run_predict(tiny, folder, tmp_path / "o.jsonl", task="What is this?")
    metadata = tiny / "training_settings.json"
    metadata.write_text(json.dumps({"base": "x", "task": "<OD>", "prompt": "Locate"}))
    run_predict(tiny, folder, tmp_path / "o.jsonl")
    metadata.unlink()
    assert [row["task"] for row in read_rows(tmp_path / "o.jsonl")] == ["<CAPTION>", "What is this?", "<OD>"]


def test_predictions_file_in_another_folder_is_a_dataset(tiny: Path, tmp_path: Path) -> None:
    from florence2.data.resolve import DatasetOptions, resolve_dataset

    folder = save_images(tmp_path / "photos" / "mine", "a.png", "b.png")
    predicted = run_predict(tiny, folder, tmp_path / "elsewhere" / "captions.jsonl", prefix="x")
    found = resolve_dataset(tmp_path / "elsewhere" / "captions.jsonl", DatasetOptions("caption"))
    assert {sample.id: sample.target for sample in found.samples} == predicted
    assert all(sample.open().size == (80, 60) for sample in found.samples)


def test_tasks_of_a_table_take_the_place_of_the_flag_with_a_warning(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jpg")
    run_predict(tiny, folder, tmp_path / "first.jsonl", task="caption")
    caplog.clear()
    run_predict(tiny, tmp_path / "first.jsonl", tmp_path / "same.jsonl", task="caption")
    assert not caplog.messages[:-1]  # but for the time
    run_predict(tiny, tmp_path / "first.jsonl", tmp_path / "other.jsonl", task="od")
    assert "a task of the table itself takes the place of `--task od` in 2 rows; the first is `caption`" in caplog.text
    assert [row["task"] for row in read_rows(tmp_path / "other.jsonl")] == ["<CAPTION>", "<CAPTION>"]


def test_tables_as_shards_name_images_below_one_folder(tiny: Path, tmp_path: Path) -> None:
    for name in "ab":
        save_images(tmp_path / "in" / name, "1.jpg")
        row = {"file_name": "1.jpg", "image_dir": name}
        (tmp_path / "in" / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    words = {"model_path": tiny, "max_length": 6, "task": "caption"}
    predict(input_path=tmp_path / "in" / "{a,b}.jsonl", output_path=f"{tmp_path}/first/", **words)
    predict(input_path=f"{tmp_path}/first/*.jsonl", output_path=f"{tmp_path}/second/", **words)
    for output in ("first", "second"):
        rows = [row for name in "ab" for row in read_rows(tmp_path / output / f"{name}.jsonl")]
        assert [(row["file_name"], row["image_dir"], row.get("error")) for row in rows] == [
            ("a/1.jpg", "../in", None),
            ("b/1.jpg", "../in", None),
        ]
    save_images(tmp_path / "elsewhere", "1.jpg")
    with (tmp_path / "in" / "b.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file_name": "1.jpg", "image_dir": "../elsewhere"}) + "\n")
    summary = predict(input_path=tmp_path / "in" / "{a,b}.jsonl", output_path=f"{tmp_path}/third/", **words)
    assert "is not below" in str(summary)


def test_killed_run_resumes_and_predicts_each_image_once(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", *(f"{n:03}.png" for n in range(40)))
    output = tmp_path / "captions.jsonl"
    arguments = ["predict", "--model_path", str(tiny), "--input_path", str(folder), "--output_path", str(output)]
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "florence2",
        *arguments,
        "--batch_size",
        "2",
        "--max_length",
        "20",
    ]
    with (tmp_path / "imports").open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and _lines(output) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_lines = _lines(output)
    assert num_lines >= 5, "the process must be killed while it runs"
    imported = set(re.findall(r"\| +(\w+)$", (tmp_path / "imports").read_text(), re.MULTILINE))
    assert "torch" in imported
    assert not imported & {"peft", "datasets", "pandas", "bitsandbytes", "matplotlib"}, (
        "imported for a model without adapter"
    )
    resumed = run_predict(tiny, folder, output, batch_size=2, max_length=20)
    assert len(read_rows(output)) == 40
    assert resumed == run_predict(tiny, folder, tmp_path / "uninterrupted.jsonl", batch_size=2, max_length=20)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
