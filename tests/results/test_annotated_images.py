from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.data.sample import Prediction, Sample
from florence2.model.answer import Answer, AnswerItem
from florence2.model.tasks import OutputType
from florence2.results.annotated_images import AnnotatedImageWriter

SQUARE = (200, 200, 500, 200, 500, 500, 200, 500)
REGION = "<loc_250><loc_250><loc_625><loc_625>"  # the box of SQUARE in an image of 800 pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    Image.new("RGB", (800, 800), (128, 128, 128)).save(tmp_path / "photos" / "sub" / "a.png")
    return tmp_path / "photos"


def sample(photos: Path, task: str, task_input: str = "") -> Sample:
    return Sample("sub/a.png", photos / "sub" / "a.png", task, task_input)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def bounds(pixels: np.ndarray) -> tuple[int, ...]:
    """Return the box of the pixels that are not grey."""
    rows, columns = np.nonzero((np.abs(pixels - 128) > 30).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_error_has_no_annotated_image(photos, tmp_path):
    writer = AnnotatedImageWriter(str(tmp_path / "out"), [sample(photos, "<OD>")])
    assert writer.write(Prediction("sub/a.png", "<OD>", error="truncated")) is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_multi_task", [False, True])
def test_file_name_has_task_and_input_if_one_image_has_several_samples(photos, tmp_path, is_multi_task):
    writer = AnnotatedImageWriter(str(tmp_path), [sample(photos, "<OD>")], is_multi_task=is_multi_task)
    path = writer.write(Prediction("sub/a.png", "<OD>", answer=Answer(OutputType.BOXES)))
    assert path == tmp_path / "sub" / ("a.od.jpg" if is_multi_task else "a.jpg")
    task = "<REGION_TO_CATEGORY>"
    samples = [sample(photos, task, REGION), sample(photos, task, "<loc_0><loc_0><loc_9><loc_9>")]
    path = AnnotatedImageWriter(str(tmp_path), samples).write(Prediction("sub/a.png", task, REGION, text="cat"))
    assert path == tmp_path / "sub" / "a.region_to_category.250-250-625-625.jpg"


def test_region_of_text_task_has_text_as_label(photos, tmp_path):
    task = "<REGION_TO_CATEGORY>"
    writer = AnnotatedImageWriter(str(tmp_path), [sample(photos, task, REGION)])
    path = writer.write(Prediction("sub/a.png", task, REGION, text="cat"))
    pixels = read(path)
    assert pixels.shape == (800, 800, 3)  # no strip of text below the image
    left, top, right, bottom = bounds(pixels)
    assert (left, right, bottom) == pytest.approx((200, 500, 500), abs=8)
    assert 150 < top < 190  # the label is above the region


@pytest.mark.parametrize(
    ("task", "task_input"), [("<REFERRING_EXPRESSION_SEGMENTATION>", "cat"), ("<REGION_TO_SEGMENTATION>", REGION)]
)
def test_mask_has_phrase_or_region_as_label(photos, tmp_path, task, task_input):
    writer = AnnotatedImageWriter(str(tmp_path), [sample(photos, task, task_input)])
    answer = Answer(OutputType.POLYGONS, (AnswerItem.mask([SQUARE]),))
    path = writer.write(Prediction("sub/a.png", task, task_input, answer=answer))
    pixels = read(path)
    assert np.abs(pixels[350, 350] - 128).max() > 30  # the mask is filled
    assert bounds(pixels)[1] < 190  # a label is above it


def test_text_is_below_image(photos, tmp_path):
    writer = AnnotatedImageWriter(str(tmp_path), [sample(photos, "<CAPTION>")])
    path = writer.write(Prediction("sub/a.png", "<CAPTION>", text="a cat"))
    assert len(read(path)) > 800
