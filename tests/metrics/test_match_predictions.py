import json
from pathlib import Path

import pytest
from PIL import Image

from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import UserError
from florence2.metrics.match_predictions import match_predictions, most_common_task, read_predictions, remove_missing
from florence2.metrics.report import reference_notes

OD, OVD = "<OD>", "<OPEN_VOCABULARY_DETECTION>"


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (200, 100)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"image {name}")
    return folder


def match(predictions: str, references: Path | str, task: str = "caption"):
    return match_predictions(
        read_predictions(predictions), resolve_dataset(references, DatasetOptions(task, on_missing="skip"))
    )


def row(name: str, text: str = "x", task: str = "<CAPTION>", **more) -> dict:
    return {"file_name": name, "text": text, "task": task, **more}


def test_unmatched_predictions_and_references_are_named(photos):
    (photos / "c.txt").unlink()
    Image.new("RGB", (9, 9)).save(photos / "d.png")
    (photos / "d.txt").write_text("image d")
    predictions = write(
        photos / "predictions.jsonl",
        row("a.png", "first"),
        row("a.png", "second"),
        row("b.png", "", error="truncated"),
        row("z.png"),
        row("c.png"),
    )
    found = match(predictions, photos)
    assert [e.sample.id for e in found.examples] == ["a.png", "b.png", "d.png"]
    assert [e.text for e in found.examples] == ["second", "", ""]
    assert found.duplicates == ["a.png"]
    assert found.failed == ["b.png"]
    assert found.missing == ["d.png"]
    assert found.unmatched == ["z.png", "c.png"]
    assert found.unlabeled == ["c.png"]


def test_images_match_by_path(photos, tmp_path):
    predictions = write(tmp_path / "predictions.jsonl", row("photos/a.png", "hello"), row("b.png", image_dir="photos"))
    assert [e.text for e in match(predictions, photos).examples] == ["hello", "x", ""]


def test_moved_images_match_by_name(photos, tmp_path):
    predictions = write(tmp_path / "predictions.jsonl", row("a.png", "hello", image_dir="/somewhere/else"))
    assert match(predictions, photos).examples[0].text == "hello"


def test_tasks_match_in_any_spelling_and_inputs_separate_examples(photos):
    references = write(
        photos / "references.jsonl",
        row("a.png", "cat<loc_1><loc_1><loc_9><loc_9>", "open-vocabulary-detection", input="cat"),
        row("a.png", "dog<loc_2><loc_2><loc_9><loc_9>", "open-vocabulary-detection", input="dog"),
    )
    predictions = write(photos / "predictions.jsonl", row("a.png", "", "<OPEN_VOCABULARY_DETECTION>", input="dog"))
    found = match(predictions, references)
    assert [e.sample.input for e in found.examples] == ["cat", "dog"]
    assert [e.prediction is None for e in found.examples] == [True, False]


def test_several_references_form_one_example(photos):
    references = write(photos / "references.jsonl", row("a.png", "one"), row("a.png", "two"))
    found = match(write(photos / "predictions.jsonl", row("a.png")), references)
    assert [e.targets for e in found.examples] == [("one", "two")]


def test_items_are_in_pixels_from_text_and_from_answer(photos):
    references = write(photos / "references.jsonl", row("a.png", "cat<loc_0><loc_0><loc_499><loc_999>", OD))
    answer = {"bboxes": [[0, 0, 100, 100], [1, 2, 3, 4]], "labels": ["cat", "dog"], "scores": [0.9, 0.4]}
    predictions = write(photos / "predictions.jsonl", row("a.png", "", OD, answer=answer, score=0.7))
    predicted, reference = match(predictions, references).examples[0].items()
    assert [item.coordinates for item in predicted] == [[0, 0, 100, 100], [1, 2, 3, 4]]
    assert [item.score for item in predicted] == [0.9, 0.4]
    assert [item.coordinates for item in reference] == [pytest.approx([0.1, 0.05, 99.9, 99.95])]
    predictions = write(photos / "predictions.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OD, score=0.7))
    predicted, _ = match(predictions, references).examples[0].items()
    assert [item.score for item in predicted] == [0.7]
    assert [item.coordinates for item in predicted] == [pytest.approx([0.1, 0.05, 1.9, 0.95])]


def test_polygons_among_boxes_become_bounding_boxes(photos):
    references = write(photos / "references.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OVD, input="cat"))
    answer = {
        "bboxes": [],
        "bboxes_labels": [],
        "polygons": [[[5, 5, 9, 5, 9, 20]]],
        "polygons_labels": ["cat"],
    }
    predictions = write(photos / "predictions.jsonl", row("a.png", "", OVD, input="cat", answer=answer))
    predicted, _ = match(predictions, references).examples[0].items()
    assert ([item.coordinates for item in predicted], [item.label for item in predicted]) == ([[5, 5, 9, 20]], ["cat"])


@pytest.mark.parametrize(
    "answer",
    [
        {"bboxes": [[1, 2, 3]], "labels": ["a"]},
        {"bboxes": [[1, 2, 3, "4"]], "labels": ["a"]},
        {"bboxes": [[1, 2, 3, float("nan")]], "labels": ["a"]},
        {"bboxes": [[1, 2, 3, 4]], "labels": ["a"], "scores": ["high"]},
        {"quad_boxes": [[1, 2, 3, 4]], "labels": ["a"]},
        {"polygons": [[1, 2, 3, 4, 5, 6]], "labels": [""]},
    ],
    ids=str,
)
def test_invalid_geometry_is_refused(photos, answer):
    references = write(photos / "references.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OD))
    predictions = write(photos / "predictions.jsonl", row("a.png", "", OD, answer=answer))
    with pytest.raises(UserError, match=r"line 1 has an invalid `answer`: "):
        match(predictions, references).examples[0].items()


def test_answer_with_wrong_number_of_labels_is_refused(photos):
    references = write(photos / "references.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OD))
    predictions = write(
        photos / "predictions.jsonl", row("a.png", "", OD, answer={"bboxes": [[1, 2, 3, 4]], "labels": ["a", "b"]})
    )
    with pytest.raises(UserError, match=r"line 1 has an invalid `answer`: 2 labels for 1 `bboxes`"):
        match(predictions, references).examples[0].items()


def test_predictions_in_fractions_are_refused(photos):
    answer = {"bboxes": [[0.1, 0.1, 0.5, 0.5]], "labels": ["cat"], "scores": [0.9]}
    rows = [row(f"{name}.png", "", OD, answer=answer) for name in "abc"]
    with pytest.raises(UserError, match="are fractions of the image's sides, where pixels belong"):
        read_predictions(write(photos / "predictions.jsonl", *rows))
    pixels = row("c.png", "", OD, answer={**answer, "bboxes": [[0, 0, 50, 50]]})
    assert len(read_predictions(write(photos / "predictions.jsonl", *rows, pixels))) == 4


def test_what_is_not_read_of_references_is_noted(photos):
    for name, kind in (("a", "rectangle"), ("b", "point")):
        shape = {"label": "cat", "shape_type": kind, "points": [[10, 10], [330, 30]][: 1 if kind == "point" else 2]}
        (photos / f"{name}.json").write_text(json.dumps({"shapes": [shape], "imagePath": f"{name}.png"}))
    references = resolve_dataset(photos, DatasetOptions("od", keep_answers=True))
    assert [sample.id for sample in references.samples] == ["a.png"]
    unread, doubtful = reference_notes(references)
    assert unread.startswith("not read: 1 point, 1 image without an annotation file, 1 image of which no object")
    assert doubtful == f"doubtful: 1 object outside its image, the first in {photos}/a.png"


def test_remove_missing_keeps_examples_predicted_on_both_sides(photos):
    one = match(write(photos / "one.jsonl", row("a.png"), row("b.png")), photos)
    two = match(write(photos / "two.jsonl", row("b.png"), row("c.png")), photos)
    complete = remove_missing([one, two])
    assert [[e.sample.id for e in side.examples] for side in complete] == [["b.png"], ["b.png"]]


def test_remove_missing_refuses_disjoint_sides(photos):
    one = match(write(photos / "one.jsonl", row("a.png")), photos)
    two = match(write(photos / "two.jsonl", row("b.png")), photos)
    with pytest.raises(UserError, match="no example has a prediction on both sides"):
        remove_missing([one, two])


def test_most_common_task(photos):
    predictions = write(
        photos / "predictions.jsonl", row("a.png", task="<OCR>"), row("b.png", task="<OCR>"), row("c.png")
    )
    assert most_common_task(read_predictions(predictions)) == "<OCR>"


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([], "caption", "holds no predictions"),
        ([{"text": "x"}], "caption", "line 1 is not a prediction: it has no `file_name`"),
        ([row("a.png", task="<OCR>")], "caption", "the predictions are for task `ocr` and .* for `caption`"),
        ([row("z.png")], "caption", "no prediction is for an image of .*: the first is for z.png, not a.png"),
    ],
)
def test_predictions_that_cannot_match_are_refused(photos, rows, task, message):
    with pytest.raises(UserError, match=message):
        match(write(photos / "predictions.jsonl", *rows), photos, task)


@pytest.mark.parametrize("name", ["missing.jsonl", "photos", "photos/a.png"])
def test_path_that_is_not_a_prediction_file_is_refused(photos, name):
    with pytest.raises(UserError):
        read_predictions(str(photos.parent / name))
