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


def draw(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        squares = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((80, 60)).save(path)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(path: Path) -> dict[str, str]:
    return {row["file_name"]: row["text"] for row in rows(path)}


def run(tiny: Path, folder: Path, output: Path, **more: Any) -> dict[str, str]:
    predict(model_path=str(tiny), input_path=str(folder), output_path=str(output), **({"max_length": 6} | more))
    return texts(output)


def test_one_line_for_each_image_and_other_files_left_alone(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.JPG", "b.png", "c.WebP", "d.tiff", "deep/e.bmp")
    (folder / "notes.md").write_text("not a picture")
    assert set(run(tiny, folder, tmp_path / "flat.jsonl")) == {"a.JPG", "b.png", "c.WebP", "d.tiff"}
    assert "deep/e.bmp" in run(tiny, folder, tmp_path / "all.jsonl", recursive=True)


def test_a_bad_image_is_a_line_with_an_error_and_exit_code_1(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.jpg", "b.jpg")
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    values = {"model_path": str(tiny), "input_path": str(folder), "output_path": str(tmp_path / "o.jsonl")}
    given = settings.settings_from_dict(PredictSettings, {**values, "max_length": 4})
    assert main(given) == 1
    errors = {row["file_name"]: row.get("error") for row in rows(tmp_path / "o.jsonl")}
    assert errors["a.jpg"] is None
    assert "b.jpg" in str(errors["b.jpg"])
    draw(folder, "a.jpg", "b.jpg")
    assert main(given) == 0
    assert len(rows(tmp_path / "o.jsonl")) == 2


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 1.5}], ids=str)
def test_no_answer_depends_on_the_batch_or_the_engine(tiny: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    folder = draw(tmp_path / "photos", *(f"{n}.png" for n in range(5)))
    more = {"dtype": "float32"} | more  # half precision rounds otherwise in other company
    alone = run(tiny, folder, tmp_path / "1.jsonl", batch_size=1, **more)
    assert run(tiny, folder, tmp_path / "4.jsonl", batch_size=4, **more) == alone
    if not more.get("do_sample"):
        assert run(tiny, folder, tmp_path / "r.jsonl", batch_size=3, engine="generate", **more) == alone


def test_captions_beside_images(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.png", "b.png")
    (folder / "a.txt").write_text("by hand", encoding="utf-8")
    said = run(tiny, folder, tmp_path / "skip.jsonl", sidecar=".txt", prefix="sks ", suffix="!")
    assert set(said) == {"b.png"}
    assert said["b.png"].startswith("sks ")
    assert (folder / "b.txt").read_text(encoding="utf-8") == said["b.png"] + "\n"
    assert (folder / "a.txt").read_text(encoding="utf-8") == "by hand"
    said = run(tiny, folder, tmp_path / "append.jsonl", sidecar=".txt", if_exists="append")
    assert (folder / "a.txt").read_text(encoding="utf-8") == f"by hand {said['a.png']}".strip() + "\n"


def test_answers_drawn_on_images(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.png", "deep/a.png")
    run(tiny, folder, tmp_path / "o.jsonl", recursive=True, save_images=str(tmp_path / "drawn"))
    drawn = {path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.jpg")}
    assert drawn == {"a.jpg", "deep/a.jpg"}
    with Image.open(tmp_path / "drawn" / "a.jpg") as image:
        assert image.width > 80, "drawn large enough to read"


def test_the_question_is_the_users_or_the_trainings_or_a_caption(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.png")
    run(tiny, folder, tmp_path / "o.jsonl")
    run(tiny, folder, tmp_path / "o.jsonl", task="What is this?")
    record = tiny / "training_settings.json"
    record.write_text(json.dumps({"base": "x", "task": "<OD>", "prompt": "Locate"}))
    run(tiny, folder, tmp_path / "o.jsonl")
    record.unlink()
    assert [row["task"] for row in rows(tmp_path / "o.jsonl")] == ["<CAPTION>", "What is this?", "<OD>"]


def test_a_journal_is_a_dataset_wherever_it_lies(tiny: Path, tmp_path: Path) -> None:
    from florence2.data.resolve import DatasetOptions, resolve_dataset

    folder = draw(tmp_path / "photos" / "mine", "a.png", "b.png")
    said = run(tiny, folder, tmp_path / "elsewhere" / "captions.jsonl", prefix="x")
    found = resolve_dataset(tmp_path / "elsewhere" / "captions.jsonl", DatasetOptions("caption"))
    assert {sample.id: sample.target for sample in found.samples} == said
    assert all(sample.open().size == (80, 60) for sample in found.samples)


def test_killed_at_any_moment_and_started_again_answers_each_image_once(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", *(f"{n:03}.png" for n in range(40)))
    output = tmp_path / "captions.jsonl"
    words = ["predict", "--model_path", str(tiny), "--input_path", str(folder), "--output_path", str(output)]
    command = [sys.executable, "-X", "importtime", "-m", "florence2", *words, "--batch_size", "2", "--max_length", "20"]
    with (tmp_path / "imports").open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
    patience = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < patience and _lines(output) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = _lines(output)
    assert done >= 5, "it was to be killed on its way"
    imported = set(re.findall(r"\| +(\w+)$", (tmp_path / "imports").read_text(), re.MULTILINE))
    assert "torch" in imported
    assert not imported & {"peft", "datasets", "pandas", "bitsandbytes", "matplotlib"}, "a full model pays for adapters"
    resumed = run(tiny, folder, output, batch_size=2, max_length=20)
    assert len(rows(output)) == 40
    assert resumed == run(tiny, folder, tmp_path / "whole.jsonl", batch_size=2, max_length=20)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
