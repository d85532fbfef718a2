import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from florence2.data.sample import ImageError, Prediction, Sample, relative_image_dir
from florence2.model.answer import Answer
from tests.data.images import image


def test_sample_opens_every_image_source(tmp_path):
    path = image(tmp_path / "a.png")
    for source in (path, path.read_bytes(), Image.new("RGB", (20, 10)), lambda: path, path.read_bytes):
        sample = Sample("a.png", source, "prompt")
        assert sample.open().size == sample.size() == (20, 10)


def test_unreadable_image_is_named(tmp_path):
    with pytest.raises(ImageError, match=rf"^{tmp_path}/none\.jpg does not exist"):
        Sample("none.jpg", tmp_path / "none.jpg", "prompt").open()
    with pytest.raises(ImageError, match=r"^rows/7 is not an image"):
        Sample("rows/7", b"junk", "prompt").open()
    with pytest.raises(ImageError, match=r"^rows/7 is not an image"):
        Sample("rows/7", lambda: b"junk", "prompt").size()


def test_key_of_sample_equals_key_of_its_prediction():
    sample = Sample("a.jpg", Path("a.jpg"), "<OD>", "boat")
    assert sample.key == ("a.jpg", "<OD>", "boat")
    assert sample.key == Prediction("a.jpg", "<OD>", "boat").key


def test_sample_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample("a.jpg", Path("a.jpg"), "<OD>").task = "other"


OTHER = Prediction("a.jpg", "<OCR>", text="y", num_tokens=1, score=0.25)
BOXES = {"bboxes": [[1.5, 2, 3, 4]], "labels": ["boat"]}


@pytest.mark.parametrize(
    ("prediction", "optional_keys"),
    [
        (Prediction("a.jpg", "<CAPTION>", text="a boat", num_tokens=3, score=-1.5), []),
        (Prediction("a.jpg", "<OD>", text="boat<loc_1>", answer=Answer.from_dict(BOXES), num_tokens=5), ["answer"]),
        (Prediction("a.jpg", "<OCR>", "boat", text="x"), ["input"]),
        (Prediction("a.jpg", "<CAPTION>", error="cannot be read"), ["error"]),
        (Prediction("é/日本.jpg", "prompt", text="ü"), []),
        (Prediction("a.jpg", "<OCR>", text="x", alternatives=(OTHER,)), ["alternatives"]),
    ],
)
def test_prediction_survives_the_round_trip(prediction, optional_keys):
    order = [
        "file_name",
        "text",
        "task",
        "input",
        "answer",
        "num_tokens",
        "score",
        "alternatives",
        "image_dir",
        "error",
    ]
    optional = {"input", "answer", "alternatives", "image_dir", "error"}
    row = prediction.to_json()
    assert list(row) == [key for key in order if key not in optional or key in optional_keys]
    line = json.dumps(prediction.to_json("../photos"), allow_nan=False)
    assert Prediction.from_json(json.loads(line)) == prediction
    assert row.get("answer", BOXES) == BOXES
    assert list(json.loads(line)) == [
        key for key in order if key not in optional or key in [*optional_keys, "image_dir"]
    ]


def test_row_with_other_keys_is_read():
    read = Prediction.from_json({"file_name": "a.jpg", "text": "a boat", "model": "x", "score": None})
    assert (read.text, read.answer, read.task, read.num_tokens) == ("a boat", None, "", 0)


@pytest.mark.parametrize(
    ("written", "images", "lead"),
    [
        ("photos/captions.jsonl", "photos", "."),
        ("captions.jsonl", "photos", "photos"),
        ("out/captions.jsonl", "photos/2024", "../photos/2024"),
        ("photos/out/captions.jsonl", "photos", ".."),
    ],
)
def test_relative_image_dir(tmp_path, monkeypatch, written, images, lead):
    monkeypatch.chdir(tmp_path)
    assert relative_image_dir(Path(written), Path(images)) == lead
    assert relative_image_dir(tmp_path / written, Path(images)) == lead
    assert relative_image_dir(Path(written), tmp_path / images) == lead


def test_relative_image_dir_through_a_link(tmp_path):
    (tmp_path / "far" / "disk").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "disk", target_is_directory=True)
    assert relative_image_dir(tmp_path / "out" / "captions.jsonl", tmp_path / "photos") == "../../photos"
