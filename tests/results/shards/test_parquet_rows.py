"""Predictions as Parquet keep every value of a line of `captions.jsonl`."""

from pathlib import Path

from florence2.data.sample import Prediction
from florence2.model.answer import Answer
from florence2.model.tasks import OutputType
from florence2.results.shards.job_folder import output_names
from florence2.results.shards.parquet_rows import read_parquet, write_parquet


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    boxes = Answer.from_dict({"bboxes": [[1, 2.5, 3, 4]], "labels": ["cat"], "scores": [0.5]}, OutputType.BOXES)
    polygons = Answer.from_dict({"polygons": [[[1, 2, 3, 4, 5, 6]], []], "labels": ["", ""]}, OutputType.POLYGONS)
    predictions = [
        Prediction("a.jpg", "<CAPTION>", text="a cat", num_tokens=3, score=0.25),
        Prediction("b.jpg", "<OD>", text="cat", answer=boxes, num_tokens=5, score=None, num_removed=2),
        Prediction("c.jpg", "<REFERRING_EXPRESSION_SEGMENTATION>", "a cat", "x", polygons, 1, 1.0),
        Prediction("d.jpg", "<CAPTION>", error="d.jpg is not an image"),
        Prediction(
            "e.jpg", "<CAPTION>", text="x", alternatives=(Prediction("e.jpg", "<CAPTION>", text="y", score=0.1),)
        ),
    ]
    rows = [{**each.to_json("photos"), "run_id": "1"} for each in predictions]
    write_parquet(iter(rows), tmp_path / "rows.parquet")
    assert list(read_parquet(tmp_path / "rows.parquet")) == rows
    write_parquet([], tmp_path / "empty.parquet")
    assert list(read_parquet(tmp_path / "empty.parquet")) == []


def test_outputs_have_the_names_of_shards() -> None:
    assert output_names(["a/0.tar", "a/1.tar", "00000"]) == ["a/0", "a/1", "00000"]
    assert output_names(["a.csv", "a.jsonl"]) == ["a.csv", "a.jsonl"]
