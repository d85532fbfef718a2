"""The JSON Schema in the docs holds for what `predict` writes, for every task, for errors and for alternatives."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import florence2
from florence2.demo.dataset import make_dataset

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
SCHEMA = json.loads((REFERENCE / "schemas" / "prediction.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def write_list(folder: Path) -> Path:
    """Write a list of one request for each task, a prompt, a request without objects and a damaged image."""
    rows: list[dict[str, Any]] = []
    for task in florence2.TASKS:
        row = json.loads((folder / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()[0])
        rows.append({key: row[key] for key in ("file_name", "task", "input") if row[key]})
    (folder / "damaged.png").write_bytes((folder / "0000.png").read_bytes()[:200])
    rows += [{"file_name": "0000.png", "task": "What is this?"}, {"file_name": "damaged.png", "task": "<OD>"}]
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def predict(requests: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    florence2.predict(model_path="demo", input_path=str(requests), output_path=str(output), **options)
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_lines_of_every_task_fit_the_schema(tmp_path: Path) -> None:
    make_dataset(tmp_path / "images", num_samples=1, seed=5_000_172)
    requests = write_list(tmp_path / "images")
    rows = predict(requests, tmp_path / "captions.jsonl")
    rows += predict(requests, tmp_path / "strict.jsonl", min_score=0.9999)
    several = {"num_beams": 2, "generation_args": ["num_return_sequences=2"]}
    rows += predict(requests, requests.parent / "beams.jsonl", **several)  # beside the images, without `image_dir`
    assert {row["task"] for row in rows} == {*(task.token for task in florence2.TASKS), "What is this?"}
    for row in rows:
        VALIDATOR.validate(row)
    assert {key for row in rows for key in row} == set(SCHEMA["properties"])
    kinds = {kind for row in rows for kind in row.get("answer", ()) if row.get("answer", {}).get(kind)}
    assert {"bboxes", "quad_boxes", "polygons", "bboxes_labels"} <= kinds
    assert {"image_dir" in row for row in rows} == {True, False}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("score", 2),
        ("num_tokens", "3"),
        ("answer", {"bboxes": [[1, 2, 3]], "labels": [""]}),
        ("answer", {"bboxes": [[1, 2, 3, 4]]}),
        ("caption", "a cat"),
        ("error", ""),
    ],
)
def test_other_lines_do_not_fit(key: str, value: Any) -> None:
    row = {"file_name": "a.jpg", "text": "", "task": "<OD>", "num_tokens": 1, "score": 0.5}
    assert VALIDATOR.is_valid(row)
    assert not VALIDATOR.is_valid(row | {key: value})


def test_page_lists_the_keys_of_the_schema() -> None:
    table = (REFERENCE / "formats.md").read_text(encoding="utf-8").split("## A line of")[1].split("\n\n")
    keys = [line.split("`")[1] for block in table for line in block.splitlines() if line.startswith("| `")]
    assert set(keys) >= set(SCHEMA["properties"])
