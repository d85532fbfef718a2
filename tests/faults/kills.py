"""Kills prediction and training at random moments until they are complete, and compares with uninterrupted runs.

    python -m tests.faults.kills predict 200
    python -m tests.faults.kills train 50

Half of the kills come after a random time, the others before a random file operation: opening a file to write it,
renaming or removing one. Every killed command is started again as it was. Prints what was done and lost as JSON.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from florence2.cli.program import main as florence2
from florence2.engine.stats import Stats
from tests.faults.killer import Killer
from tests.faults.test_odd_files import read_rows
from tests.training.images import run, save_calm, save_photos

IMAGES = 16
COMMON = ("--model_path", "demo", "--dtype", "float32", "--max_length", "8", "--batch_size", "2")
# What is written beside the lines: caption files, annotated images, datasets; several requests of one image.
PREDICTIONS: tuple[tuple[str, ...], ...] = (
    ("--sidecar", ".txt", "--save_images", "{}/drawn", "--export", "jsonl"),
    ("--task", "od", "--save_images", "{}/drawn", "--export", "coco", "--export", "yolo"),
    ("--sidecar", ".txt", "--if_exists", "append"),
    ("--task", "caption,caption_to_phrase_grounding", "od", "--save_images", "{}/drawn"),
)
EPOCHS = 12
TRAINING: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 4,
    "save_every_n_steps": 1,
    "shuffle_captions": True,
    "caption_args": ("caption_separator= ",),
    "trainer_args": ("save_total_limit=3", "logging_steps=1"),
}


class RecordedEngine:
    """An engine whose requests are written into a file, one line each."""

    def __init__(self, engine: Any, requests: Path) -> None:
        self._engine, self._requests = engine, requests

    @property
    def stats(self) -> Stats:
        """Return the statistics of the engine."""
        stats: Stats = self._engine.stats
        return stats

    def __enter__(self) -> "RecordedEngine":
        self._engine.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._engine.__exit__(*error)

    def run(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Run the engine."""
        samples = list(samples)
        self._requests.write_text("".join(json.dumps(sample.key) + "\n" for sample in samples), encoding="utf-8")
        return iter(self._engine.run(samples))


def predict_recorded(words: list[str], requests: Path) -> int:
    """Run `predict`, and write down what its engine is to predict."""
    recipe = import_module("florence2.recipes.predict")
    create = recipe.create_engine
    vars(recipe)["create_engine"] = lambda *options: RecordedEngine(create(*options), requests)
    return florence2(words)


def kill_predictions(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill prediction until `kills` are reached; every output is compared with that of an uninterrupted run."""
    killer = Killer(folder / "log")
    counts: Counter[str] = Counter()
    round_number = 0
    while counts["kills"] < kills:
        options = PREDICTIONS[round_number % len(PREDICTIONS)]
        expected, length, operations = predict_uninterrupted(killer, folder, round_number, options)
        work = folder / f"killed{round_number}"
        words = make_prediction(work, options)
        while True:
            done = {key_of(row) for row in read_complete_rows(work / "o.jsonl")}
            moment = random_moment(rng, length, operations) if counts["kills"] < kills else {}
            requests = work / "requests"
            requests.unlink(missing_ok=True)
            ending = killer.run(predict_recorded, words, requests, **moment)
            assert not ending.has_orphans, "a process of the killed run still runs"
            requested = {tuple(json.loads(line)) for line in read_lines(requests)}
            assert not requested & done, f"predicted again: {requested & done}"
            counts["images requested"] += len(requested)
            if not ending.is_killed:
                assert ending.code == 0, (folder / "log").read_text()[-3000:]
                break
            counts["kills"] += 1
            counts["kills at a file operation" if "operation" in moment else "kills at a time"] += 1
        compare_folders(expected, work)
        counts["predictions"] += len(read_rows(work / "o.jsonl"))
        counts["outputs compared"] += 1
        round_number += 1
    return dict(counts) | {"lost": 0}


def predict_uninterrupted(
    killer: Killer, folder: Path, round_number: int, options: tuple[str, ...]
) -> tuple[Path, float, int]:
    """Predict without a kill; return the folder, the seconds and the number of file operations."""
    work = folder / f"expected{round_number % len(PREDICTIONS)}"
    words = make_prediction(work, options)
    if (work / "o.jsonl").exists():
        words = make_prediction(folder / f"timed{round_number}", options)
    ending = killer.run(predict_recorded, words, folder / "requests")
    assert ending.code == 0, (folder / "log").read_text()[-3000:]
    return work, ending.seconds, ending.num_operations


def make_prediction(work: Path, options: tuple[str, ...]) -> list[str]:
    """Make a folder with images, and return the command that predicts them."""
    make_images(work / "images", IMAGES)
    paths = ("--input_path", str(work / "images"), "--output_path", str(work / "o.jsonl"))
    return ["predict", *COMMON, *paths, *(each.format(work) for each in options)]


def make_images(folder: Path, number: int) -> None:
    """Make a folder with images, no two of them equal."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        image = Image.new("RGB", (60, 40), (index * 15, 90, 255 - index * 15))
        ImageDraw.Draw(image).ellipse((index, 5, index + 25, 30), fill=(255 - index * 15, 200, index * 9))
        image.save(folder / f"{index:02}.png")


def random_moment(rng: random.Random, seconds: float, operations: int) -> dict[str, Any]:
    """Choose when to kill a run that needs so many seconds and file operations."""
    if rng.random() < 0.5:
        return {"seconds": rng.uniform(0.2, 1.0) * seconds}
    return {"operation": rng.randint(1, operations)}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file; none where there is no file."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def read_complete_rows(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a journal that may end in the middle of a line."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def key_of(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return image, task and input of a line."""
    return (row["file_name"], row["task"], row.get("input", ""))


def compare_folders(expected: Path, folder: Path) -> None:
    """Assert that two folders have the same files with the same content, and the journals the same lines."""
    names, expected_names = (
        {str(path.relative_to(each)) for path in each.rglob("*") if path.is_file()} - {"requests"}
        for each in (folder, expected)
    )
    assert names == expected_names, names ^ expected_names
    for name in sorted(names):
        content, expected_content = (folder / name).read_bytes(), (expected / name).read_bytes()
        if name.endswith("jsonl"):
            assert read_predictions(folder / name) == read_predictions(expected / name), name
        elif not name.endswith("json"):  # ids in a JSON file follow the order of the lines
            assert content == expected_content, name


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Return sorted rows without what the other images of a batch change in its last digits, the score."""
    rows = [{key: value for key, value in row.items() if key != "score"} for row in read_rows(path)]
    for row in rows:
        row.get("answer", {}).pop("scores", None)
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def resume_training(folder: str) -> None:
    """Train in this process, from the newest checkpoint."""
    torch.set_num_threads(1)
    run(Path(folder), "killed", **TRAINING, resume="auto")


def train_uninterrupted(folder: str) -> None:
    """Train in this process without a kill."""
    torch.set_num_threads(1)
    run(Path(folder), "uninterrupted", **TRAINING)


def kill_trainings(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill training until `kills` are reached, compare the adapter with that of an uninterrupted run, and repeat."""
    killer = Killer(folder / "log")
    save_photos(folder / "photos")
    save_calm(folder / "model", dropout=0.2)
    uninterrupted = killer.run(train_uninterrupted, str(folder))
    assert uninterrupted.code == 0, (folder / "log").read_text()[-3000:]
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        while True:
            moment = (
                random_moment(rng, uninterrupted.seconds, uninterrupted.num_operations // 3)
                if counts["kills"] < kills
                else {}
            )
            ending = killer.run(resume_training, str(folder), **moment)
            assert not ending.has_orphans, "a process of the killed run still runs"
            if not ending.is_killed:
                assert ending.code == 0, (folder / "log").read_text()[-3000:]
                break
            counts["kills"] += 1
            counts["kills at a file operation" if "operation" in moment else "kills at a time"] += 1
        compare_trainings(folder / "uninterrupted", folder / "killed")
        counts["adapters compared"] += 1
        (folder / "killed").rename(folder / f"killed{counts['adapters compared']}")
    return dict(counts) | {"steps": EPOCHS * 2, "lost": 0}


def compare_trainings(expected: Path, folder: Path) -> None:
    """Assert that adapter, optimizer state and log of a resumed run equal those of an uninterrupted run."""
    resumed, reference = (load_file(each / "adapter_model.safetensors") for each in (folder, expected))
    assert resumed.keys() == reference.keys()
    assert all(torch.equal(resumed[name], reference[name]) for name in reference)
    [state, expected_state] = (
        torch.load(each / f"checkpoint-{EPOCHS * 2}" / "optimizer.pt", weights_only=True)["state"]
        for each in (folder, expected)
    )
    assert all(torch.equal(state[n][key], expected_state[n][key]) for n in expected_state for key in expected_state[n])
    assert (folder / "metrics.jsonl").read_text().count("\n") == EPOCHS * 2
    assert not list(folder.glob(".unfinished/*"))


def main(kind: str, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill runs of a kind and return what was done; anything lost or done twice is an error."""
    kill = {"predict": kill_predictions, "train": kill_trainings}[kind]
    with tempfile.TemporaryDirectory() as folder:
        return kill(Path(folder), kills, random.Random(seed))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2])), indent=1))
