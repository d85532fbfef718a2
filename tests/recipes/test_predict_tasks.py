"""Several tasks, cascades, classes, regions, several answers, exports: what `predict` asks, and how it goes on."""

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

from florence2 import cli
from florence2.api import evaluate, predict
from florence2.data.columns import ColumnMapping
from florence2.data.formats.detect import find_source
from florence2.demo.dataset import make_dataset
from florence2.engine.encoder.encoder import Encoder
from florence2.errors import UserError
from tests.recipes.test_predict import draw, rows
from tests.tiny import save_tiny

CASCADE = "caption+caption_to_phrase_grounding"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("scenes"), num_samples=3, seed=6_000_001)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the pictures that the vision tower looks at."""
    seen: list[int] = []
    look = Encoder._encode_images

    def counting(self: Encoder, views: Any) -> None:
        seen.append(len(views))
        look(self, views)

    monkeypatch.setattr(Encoder, "_encode_images", counting)
    return seen


def run(model: str | Path, folder: Path, output: Path, **more: Any) -> list[dict[str, Any]]:
    """Predict, and give the lines without the words that are the same on each."""
    predict(model_path=str(model), input_path=str(folder), output_path=str(output), **more)
    return [{key: value for key, value in row.items() if key not in ("image_dir", "run_id")} for row in rows(output)]


def by_question(lines: list[dict[str, Any]]) -> dict[tuple[str, ...], str]:
    return {(row["file_name"], row["task"], row.get("input", "")): row["text"] for row in lines}


def test_several_tasks_look_at_an_image_once(tiny: Path, tmp_path: Path, looked: list[int]) -> None:
    folder = draw(tmp_path / "photos", *(f"{n}.png" for n in range(5)))
    tasks = ("caption", "od", "ocr", "What is it?")
    together = run(tiny, folder, tmp_path / "all.jsonl", task=tasks, max_length=6, batch_size=3)
    assert (len(together), sum(looked)) == (20, 5)
    alone = [by_question(run(tiny, folder, tmp_path / f"{t}.jsonl", task=t, max_length=6)) for t in tasks]
    assert by_question(together) == {key: text for each in alone for key, text in each.items()}


@pytest.mark.parametrize("engine", ["continuous", "generate"])
def test_words_lead_to_a_task_that_takes_words(scenes: Path, tmp_path: Path, looked: list[int], engine: str) -> None:
    found = run("demo", scenes, tmp_path / "o.jsonl", task=CASCADE, engine=engine)
    captions = {row["file_name"]: row["text"] for row in found if row["task"] == "<CAPTION>"}
    assert len(found) == 6
    assert {row["file_name"]: row["input"] for row in found if "input" in row} == captions
    assert all(row["answer"]["labels"] for row in found if "input" in row)
    assert engine == "generate" or sum(looked) == 3


def test_places_lead_to_a_task_that_takes_a_region(scenes: Path, tmp_path: Path) -> None:
    found = run("demo", scenes, tmp_path / "o.jsonl", task="od+region_to_category", save_images=str(tmp_path / "drawn"))
    boxes = [row for row in found if row["task"] == "<OD>"]
    regions = [row for row in found if row["task"] == "<REGION_TO_CATEGORY>"]
    labels = {label for row in boxes for label in row["answer"]["labels"]}
    assert len(regions) == sum(len(row["answer"]["bboxes"]) for row in boxes)
    assert len({row["text"] for row in regions} & labels) >= len(labels) - 2, "the model errs now and then"
    text = {row["file_name"]: row["text"] for row in boxes}
    assert all(row["input"] in text[row["file_name"]] for row in regions), "so that lines can be joined"
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == len(found)


def test_a_cascade_goes_on_behind_the_words_it_said(scenes: Path, tmp_path: Path, looked: list[int]) -> None:
    output, how = tmp_path / "o.jsonl", {"task": CASCADE, "prefix": "sks, ", "suffix": "!"}
    whole = run("demo", scenes, output, **how)
    kept = [
        line for line in output.read_text(encoding="utf-8").splitlines() if "GROUNDING" not in line or "0001" in line
    ]
    output.write_text("\n".join(kept[1:]) + "\n", encoding="utf-8")  # one caption and two groundings are lost
    looked.clear()
    again = run("demo", scenes, output, **how)
    assert by_question(again) == by_question(whole)
    assert len(again) == 6
    assert sum(looked) <= 2
    looked.clear()
    assert by_question(run("demo", scenes, output, **how)) == by_question(whole)
    assert not looked


def test_a_cascade_killed_at_any_moment_asks_each_question_once(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", *(f"{n:03}.png" for n in range(12)))
    output = tmp_path / "captions.jsonl"
    words = ["--model_path", str(tiny), "--input_path", str(folder), "--output_path", str(output), "--task", CASCADE]
    command = [sys.executable, "-m", "florence2", "predict", *words, "od", "--batch_size", "2", "--max_length", "9"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    patience = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < patience and _lines(output) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _lines(output) >= 5, "it was to be killed on its way"
    how: dict[str, Any] = {"task": (CASCADE, "od"), "batch_size": 2, "max_length": 9}
    resumed = run(tiny, folder, output, **how)
    whole = run(tiny, folder, tmp_path / "whole.jsonl", **how)
    assert by_question(resumed) == by_question(whole)
    assert len(resumed) == len(whole)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_classes_are_one_line_of_answers(scenes: Path, tmp_path: Path, looked: list[int]) -> None:
    task = "open_vocabulary_detection"
    whole = run("demo", scenes, tmp_path / "all.jsonl", task=task, task_input="snowman, dog")
    assert (len(whole), sum(looked)) == (3, 3)
    parts = [run("demo", scenes, tmp_path / f"{name}.jsonl", task=task, task_input=name) for name in ("snowman", "dog")]
    for told in whole:
        alone = [next(row for row in part if row["file_name"] == told["file_name"]) for part in parts]
        assert told["text"] == "".join(row["text"] for row in alone)
        assert told["answer"]["bboxes"] == [box for row in alone for box in row["answer"]["bboxes"]]
        assert told["answer"]["bboxes_scores"] == pytest.approx(
            [s for r in alone for s in r["answer"]["bboxes_scores"]], rel=1e-3
        )
    looked.clear()
    assert run("demo", scenes, tmp_path / "all.jsonl", task=task, task_input="snowman, dog") == whole
    assert not looked


def test_several_answers_are_one_line(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.png", "b.png")
    how: dict[str, Any] = {"num_beams": 3, "max_length": 6, "prefix": "x "}
    one = run(tiny, folder, tmp_path / "one.jsonl", **how)
    three = run(tiny, folder, tmp_path / "o.jsonl", generation_args=("num_return_sequences=3",), **how)
    assert by_question(three) == by_question(one)
    for row in three:
        said = [row["text"], *(other["text"] for other in row["alternatives"])]
        assert len(set(said)) == 3
        assert all(text.startswith("x ") for text in said)
    assert run(tiny, folder, tmp_path / "o.jsonl", generation_args=("num_return_sequences=3",), **how) == three


def test_what_comes_through_the_door_changes_answers_and_the_run(tiny: Path, tmp_path: Path) -> None:
    folder, output = draw(tmp_path / "photos", "a.png"), tmp_path / "o.jsonl"
    run(tiny, folder, output, max_length=9)
    [first] = rows(output)
    run(tiny, folder, output, max_length=9, generation_args=("num_return_sequences=1",))
    assert rows(output) == [first], "as it was: the same run"
    run(tiny, folder, output, max_length=9, generation_args=("min_length=9",))
    [second] = rows(output)
    assert second["run_id"] != first["run_id"]
    assert second["num_tokens"] == 9


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("length_penalti=2", "did you mean `length_penalty`"),
        ("num_beams=3", "pass `--num_beams`"),
        ("min_length=some", "min_length=some"),
        ("early_stopping=1", "early_stopping=1"),
        ("generation_args=1", "has no `generation_args`"),
        ("repetition_penalty=0", "repetition_penalty"),
    ],
)
def test_the_door_refuses_by_name(tiny: Path, tmp_path: Path, word: str, named: str, capsys: Any) -> None:
    flags = ["--model_path", str(tiny), "--input_path", str(tmp_path), "--output_path", str(tmp_path / "o.jsonl")]
    assert cli.main(["predict", *flags, "--generation_args", word]) == 2
    assert named in capsys.readouterr().err


def test_a_region_is_given_in_pixels(scenes: Path, tmp_path: Path) -> None:
    with Image.open(scenes / "0000.png") as image:
        width, height = image.size
    region = f"0,0,{width / 2},{height}"
    [row] = run("demo", scenes / "0000.png", tmp_path / "o.jsonl", task="region_to_category", task_input=region)
    assert row["input"] == "<loc_0><loc_0><loc_500><loc_999>"


def test_objects_have_scores_that_evaluation_goes_by(scenes: Path, tmp_path: Path) -> None:
    output, references = tmp_path / "o.jsonl", str(scenes / "od.jsonl")
    lines = run("demo", scenes, output, task="od")
    assert all(0 < score <= 1 for row in lines for score in row["answer"]["scores"])
    assert [len(row["answer"]["scores"]) for row in lines] == [len(row["answer"]["bboxes"]) for row in lines]

    def precision() -> float:
        scored = evaluate(
            predictions=str(output), references=references, bootstrap_samples=0, output_path=str(tmp_path / "s")
        )
        return float(scored["tasks"]["od"]["scores"]["map"]["value"])

    whole = rows(output)
    for row in whole:  # a wrong box of each label beside the right one, less sure and more sure
        row["answer"]["bboxes"] += [[0, 0, 2, 2]] * len(row["answer"]["bboxes"])
        row["answer"]["labels"] *= 2
        row["answer"]["scores"] += [0.01] * len(row["answer"]["scores"])
    output.write_text("".join(json.dumps(row) + "\n" for row in whole))
    best = precision()
    for row in whole:
        row["answer"]["scores"] = [1 - score for score in row["answer"]["scores"]]
    output.write_text("".join(json.dumps(row) + "\n" for row in whole))
    assert best > 0.7
    assert precision() < 0.6 * best


# What a run is exported to


def test_a_run_is_exported_whole_however_often_it_stopped(scenes: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    run("demo", scenes / "0000.png", output, task="od")
    export = ("coco", f"yolo={tmp_path / 'mine'}", "jsonl")
    (tmp_path / "o-coco.partial" / "torn").mkdir(parents=True)  # as a kill leaves it
    lines = run("demo", scenes, output, task="od", export=export)
    assert not list(tmp_path.glob("*.partial"))
    for folder, labels in ((tmp_path / "o-coco", "_annotations.coco.json"), (tmp_path / "mine", "data.yaml")):
        assert (folder / labels).is_file()
        entries = list(find_source(str(folder)).rows(ColumnMapping("od")))  # type: ignore[union-attr]
        told = {Path(entry.row["file_name"]).name: entry.row["answer"] for entry in entries}
        assert told.keys() == {"0000.png", "0001.png", "0002.png"}
        for row in lines:
            assert told[row["file_name"]]["labels"] == row["answer"]["labels"]
            for box, wanted in zip(told[row["file_name"]]["bboxes"], row["answer"]["bboxes"], strict=True):
                assert box == pytest.approx(wanted, abs=0.01)
    assert len(yaml.safe_load((tmp_path / "mine" / "data.yaml").read_text())["names"]) > 2
    whole = json.loads((tmp_path / "o-coco" / "_annotations.coco.json").read_text())
    scores = {round(score, 6) for row in lines for score in row["answer"]["scores"]}
    assert {round(each["score"], 6) for each in whole["annotations"]} == scores
    assert [len(row["text"]) for row in rows(tmp_path / "o-jsonl" / "metadata.jsonl")] == [
        len(row["text"]) for row in rows(output)
    ]
    run("demo", scenes, output, task="od", export=export)  # nothing to ask, nothing to write
    with pytest.raises(UserError, match="o-coco exists"):
        run("demo", scenes, output, task="od", export=export, overwrite_output=True)


def test_captions_are_exported_to_a_folder(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.png", "deep/b.png")
    lines = run(tiny, folder, tmp_path / "o.jsonl", max_length=6, prefix="sks", recursive=True, export="folder")
    for row in lines:
        written = tmp_path / "o-folder" / row["file_name"]
        assert written.read_bytes() == (folder / row["file_name"]).read_bytes()
        assert written.with_suffix(".txt").read_text() == row["text"] + "\n"


def test_what_could_not_be_exported_is_refused_at_the_start(tiny: Path, tmp_path: Path) -> None:
    folder, output = draw(tmp_path / "photos", "a.png", "a.jpg"), tmp_path / "o.jsonl"
    with pytest.raises(UserError, match="would have the same text file"):
        run(tiny, folder, output, export="folder", max_length=3)
    assert not output.exists()
    (folder / "a.jpg").unlink()
    (folder / "a.png").write_bytes(b"torn")
    [row] = run(tiny, folder, output, export="folder", max_length=3)
    assert row["error"]
    assert not (tmp_path / "o-folder").exists()


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"export": "coco"}, "coco cannot hold the output of `caption`"),
        ({"export": "folder", "task": "od"}, "folder cannot hold the output of `od`"),
        ({"export": "cocoa"}, "`--export cocoa` is not a format"),
        ({"export": "jsonl", "output_path": "-"}, "and - is not a file"),
        ({"sidecar": ".txt", "task": ("od", "caption")}, "`--sidecar` holds one answer"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny: Path, tmp_path: Path, how: dict[str, Any], named: str) -> None:
    folder = draw(tmp_path / "photos", "a.png")
    with pytest.raises(UserError, match=named) as error:
        predict(**{"model_path": str(tiny), "input_path": str(folder), "output_path": str(tmp_path / "o.jsonl"), **how})
    assert error.value.hint
    assert not (tmp_path / "o.jsonl").exists()
