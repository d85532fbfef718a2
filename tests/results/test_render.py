import numpy as np
import pytest
from PIL import Image

from florence2.model.answer import Answer
from florence2.results.render import MIN_SIDE, draw_answer


def annotate(image, answer, **options):
    return draw_answer(image, answer if isinstance(answer, str) else Answer.from_dict(answer), **options)


def grey(width=800, height=700):
    return Image.new("RGB", (width, height), (128, 128, 128))


def changed(image, base):
    """Return the box of the pixels that differ from the base."""
    rows, columns = np.nonzero((np.asarray(image) != np.asarray(base)).any(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def colors(image):
    return {color for _, color in image.getcolors(1 << 20)}


def test_box_outline_is_at_its_coordinates():
    base = grey()
    annotated = annotate(base, {"bboxes": [[100, 200, 300, 500]], "labels": [""]})
    assert changed(annotated, base) == pytest.approx((100, 200, 300, 500), abs=5)
    assert base.getcolors() == [(800 * 700, (128, 128, 128))]  # the image itself is unchanged
    assert annotated.getpixel((200, 350)) == (128, 128, 128)


def test_coordinates_are_scaled_from_size():
    base = grey()
    annotated = annotate(base, {"bboxes": [[1000, 2000, 3000, 5000]], "labels": [""]}, size=(8000, 7000))
    assert changed(annotated, base) == pytest.approx((100, 200, 300, 500), abs=5)


def test_only_small_images_are_enlarged():
    assert max(annotate(grey(64, 32), {"bboxes": []}).size) == MIN_SIDE
    assert annotate(grey(1500, 900), {"bboxes": []}).size == (1500, 900)


def test_each_label_has_its_own_color():
    def annotated(*labels):
        boxes = [[100 + 200 * n, 200, 200 + 200 * n, 400] for n in range(len(labels))]
        return annotate(grey(), {"bboxes": boxes, "labels": list(labels)})

    def line(image, n):
        return {image.getpixel((x, 300)) for x in range(95 + 200 * n, 106 + 200 * n)}

    two, same = annotated("cat", "dog"), annotated("Cat", "cat")
    assert line(two, 0) != line(two, 1)
    assert line(same, 0) == line(same, 1) == line(two, 0)


def test_score_does_not_change_color():
    plain = annotate(grey(), {"bboxes": [[100, 200, 300, 500]], "labels": ["cat"]})
    scored = annotate(grey(), {"bboxes": [[100, 200, 300, 500]], "labels": ["cat"], "scores": [0.5]})
    assert plain.getpixel((100, 350)) == scored.getpixel((100, 350))
    assert plain.tobytes() != scored.tobytes()


def test_masks_are_filled_and_quads_are_not():
    ring = [100, 100, 400, 100, 400, 400, 100, 400]
    filled = annotate(grey(), {"polygons": [[ring]], "labels": [""]})
    outlined = annotate(grey(), {"quad_boxes": [ring], "labels": [""]})
    assert filled.getpixel((250, 250)) != (128, 128, 128)
    assert outlined.getpixel((250, 250)) == (128, 128, 128)
    assert changed(outlined, grey()) == pytest.approx((100, 100, 400, 400), abs=6)


def test_labels_do_not_cover_each_other():
    once = annotate(grey(), {"bboxes": [[100, 200, 300, 500]], "labels": ["a cat"]})
    twice = annotate(grey(), {"bboxes": [[100, 200, 300, 500]] * 2, "labels": ["a cat", "a dog"]})
    assert (np.asarray(once) != 128).sum() * 1.1 < (np.asarray(twice) != 128).sum()


def test_text_is_written_below_image():
    annotated = annotate(grey(), "a cat " * 60)
    assert annotated.width == 800
    assert annotated.height > 800
    assert annotated.crop((0, 0, 800, 700)).tobytes() == grey().tobytes()


@pytest.mark.parametrize(
    "answer",
    [
        {"bboxes": [], "labels": []},
        {"bboxes": [[-50, -50, 2000, 2000]], "labels": ["larger than the image"]},
        {"bboxes": [[300, 300, 100, 100]], "labels": ["swapped"]},
        {"bboxes": [[10, 10, 10, 10]], "labels": ["a point " * 40]},
        {"polygons": [[[1, 2]], [], [[1, 2, 3, 4]]], "labels": ["", "", ""]},
        {"quad_boxes": [[1, 2, 3, 4, 5, 6, 7, 8]], "labels": ["猫 émoji 🙂 שלום"]},
        {
            "bboxes": [[1, 2, 30, 40]],
            "bboxes_labels": ["a"],
            "polygons": [[[1, 2, 3, 4, 5, 6]]],
            "polygons_labels": [""],
        },
        "",
    ],
    ids=str,
)
def test_draw_answer_accepts_any_answer(answer):
    assert max(annotate(grey(50, 40), answer).size) >= MIN_SIDE
