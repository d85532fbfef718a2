import json
from pathlib import Path

import pytest
from PIL import Image

from florence2.data.resolve import resolve_dataset
from florence2.errors import UserError
from florence2.metrics.match_predictions import answered_by_all, match_predictions, most_common_task, read_predictions

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
        (folder / f"{name}.txt").write_text(f"picture {name}")
    return folder


def paired(said: str, references: Path | str, task: str = "caption"):
    return match_predictions(read_predictions(said), resolve_dataset(references, task=task, missing="skip"))


def row(name: str, text: str = "x", task: str = "<CAPTION>", **more) -> dict:
    return {"file_name": name, "text": text, "task": task, **more}


def test_what_has_no_partner_is_named(photos):
    (photos / "c.txt").unlink()
    Image.new("RGB", (9, 9)).save(photos / "d.png")
    (photos / "d.txt").write_text("picture d")
    said = write(
        photos / "said.jsonl",
        row("a.png", "first"),
        row("a.png", "second"),
        row("b.png", "", error="torn"),
        row("z.png"),
        row("c.png"),
    )
    found = paired(said, photos)
    assert [q.sample.id for q in found.examples] == ["a.png", "b.png", "d.png"]
    assert [q.text for q in found.examples] == ["second", "", ""]
    assert found.duplicates == ["a.png"]
    assert found.failed == ["b.png"]
    assert found.missing == ["d.png"]
    assert found.unmatched == ["z.png", "c.png"]
    assert found.unlabeled == ["c.png"]


def test_images_meet_by_their_paths_whatever_their_names_start_at(photos, tmp_path):
    said = write(tmp_path / "said.jsonl", row("photos/a.png", "hello"), row("b.png", folder="photos"))
    assert [q.text for q in paired(said, photos).examples] == ["hello", "x", ""]


def test_images_that_moved_meet_by_name(photos, tmp_path):
    said = write(tmp_path / "said.jsonl", row("a.png", "hello", folder="/somewhere/else"))
    assert paired(said, photos).examples[0].text == "hello"


def test_tasks_are_the_same_in_any_spelling_and_inputs_tell_questions_apart(photos):
    wanted = write(
        photos / "wanted.jsonl",
        row("a.png", "cat<loc_1><loc_1><loc_9><loc_9>", "open-vocabulary-detection", input="cat"),
        row("a.png", "dog<loc_2><loc_2><loc_9><loc_9>", "open-vocabulary-detection", input="dog"),
    )
    said = write(photos / "said.jsonl", row("a.png", "", "<OPEN_VOCABULARY_DETECTION>", input="dog"))
    found = paired(said, wanted)
    assert [q.sample.input for q in found.examples] == ["cat", "dog"]
    assert [q.prediction is None for q in found.examples] == [True, False]


def test_several_right_answers_are_one_question(photos):
    wanted = write(photos / "wanted.jsonl", row("a.png", "one"), row("a.png", "two"))
    found = paired(write(photos / "said.jsonl", row("a.png")), wanted)
    assert [q.targets for q in found.examples] == [("one", "two")]


def test_places_are_read_in_pixels_from_text_and_from_answers(photos):
    wanted = write(photos / "wanted.jsonl", row("a.png", "cat<loc_0><loc_0><loc_499><loc_999>", OD))
    answer = {"bboxes": [[0, 0, 100, 100], [1, 2, 3, 4]], "labels": ["cat", "dog"], "scores": [0.9, 0.4]}
    said = write(photos / "said.jsonl", row("a.png", "", OD, answer=answer, score=0.7))
    mine, theirs = paired(said, wanted).examples[0].objects()
    assert mine.places == [[0, 0, 100, 100], [1, 2, 3, 4]]
    assert mine.scores == [0.9, 0.4]
    assert theirs.places == [pytest.approx([0.1, 0.05, 99.9, 99.95])]
    said = write(photos / "said.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OD, score=0.7))
    mine, _ = paired(said, wanted).examples[0].objects()
    assert mine.scores == [0.7]
    assert mine.places == [pytest.approx([0.1, 0.05, 1.9, 0.95])]


def test_polygons_among_boxes_become_boxes(photos):
    wanted = write(photos / "w.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OVD, input="cat"))
    answer = {
        "bboxes": [],
        "bboxes_labels": [],
        "polygons": [[[5, 5, 9, 5, 9, 20]]],
        "polygons_labels": ["cat"],
    }
    said = write(photos / "said.jsonl", row("a.png", "", OVD, input="cat", answer=answer))
    mine, _ = paired(said, wanted).examples[0].objects()
    assert (mine.places, mine.labels) == ([[5, 5, 9, 20]], ["cat"])


@pytest.mark.parametrize(
    "answer",
    [
        {"bboxes": [[1, 2, 3]], "labels": ["a"]},
        {"bboxes": [[1, 2, 3, "4"]], "labels": ["a"]},
        {"bboxes": [[1, 2, 3, float("nan")]], "labels": ["a"]},
        {"bboxes": [[1, 2, 3, 4]], "labels": ["a"], "scores": [None]},
        {"quad_boxes": [[1, 2, 3, 4]], "labels": ["a"]},
        {"polygons": [[1, 2, 3, 4, 5, 6]], "labels": [""]},
    ],
    ids=str,
)
def test_places_that_are_none_are_named(photos, answer):
    wanted = write(photos / "wanted.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OD))
    said = write(photos / "said.jsonl", row("a.png", "", OD, answer=answer))
    with pytest.raises(UserError, match=r"the answer about a.png has `\w+` that are no "):
        paired(said, wanted).examples[0].objects()


def test_a_broken_answer_is_named(photos):
    wanted = write(photos / "wanted.jsonl", row("a.png", "cat<loc_0><loc_0><loc_9><loc_9>", OD))
    said = write(photos / "said.jsonl", row("a.png", "", OD, answer={"bboxes": [[1, 2, 3, 4]], "labels": ["a", "b"]}))
    with pytest.raises(UserError, match=r"the answer about a.png has 1 `bboxes` and 2 labels"):
        paired(said, wanted).examples[0].objects()


def test_two_sides_keep_what_both_answered(photos):
    one = paired(write(photos / "one.jsonl", row("a.png"), row("b.png")), photos)
    two = paired(write(photos / "two.jsonl", row("b.png"), row("c.png")), photos)
    kept = answered_by_all([one, two])
    assert [[q.sample.id for q in side.examples] for side in kept] == [["b.png"], ["b.png"]]


def test_sides_with_nothing_in_common(photos):
    one = paired(write(photos / "one.jsonl", row("a.png")), photos)
    two = paired(write(photos / "two.jsonl", row("b.png")), photos)
    with pytest.raises(UserError, match="no question has a prediction on both sides"):
        answered_by_all([one, two])


def test_the_common_task_is_asked(photos):
    said = write(photos / "said.jsonl", row("a.png", task="<OCR>"), row("b.png", task="<OCR>"), row("c.png"))
    assert most_common_task(read_predictions(said)) == "<OCR>"


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([], "caption", "holds no predictions"),
        ([{"text": "x"}], "caption", "line 1 is no prediction: it has no `file_name`"),
        ([row("a.png", task="<OCR>")], "caption", "the predictions answer `ocr` and .* asks `caption`"),
        ([row("z.png")], "caption", "no prediction is about a picture of .*: the first is z.png, not a.png"),
    ],
)
def test_what_cannot_be_compared_is_said(photos, rows, task, message):
    with pytest.raises(UserError, match=message):
        paired(write(photos / "said.jsonl", *rows), photos, task)


@pytest.mark.parametrize("name", ["missing.jsonl", "photos", "photos/a.png"])
def test_what_is_no_file_of_predictions(photos, name):
    with pytest.raises(UserError):
        read_predictions(str(photos.parent / name))
