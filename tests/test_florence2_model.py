import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Florence2ForConditionalGeneration, pipeline

import florence2
from florence2.data.image import ImageError, open_image
from florence2.demo.dataset import make_dataset
from florence2.model.load import load


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    make_dataset(folder, num_samples=4, seed=3)
    return sorted(folder.glob("*.[jp]*g"))


@pytest.fixture(scope="module")
def model() -> Iterator[florence2.Florence2]:
    with florence2.Florence2("demo", dtype="float32") as model:
        yield model


def test_call_equals_engine(model: florence2.Florence2, images: list[Path]) -> None:
    results = model(images, "od")
    with florence2.Engine(*load("demo", dtype="float32")) as engine:
        expected = {each.file_name: each for each in engine.run(florence2.Sample(str(p), p, "od") for p in images)}
    assert [result.sample.id for result in results] == [str(path) for path in images]
    for result in results:
        assert result.prediction.text == expected[result.sample.id].text
        assert result.boxes == expected[result.sample.id].answer.bboxes  # type: ignore[union-attr]
        assert len(result.boxes) == len(result.labels) == len(result.scores) > 0


def test_kinds_of_image_give_one_answer(model: florence2.Florence2, images: list[Path]) -> None:
    path = images[0]
    pixels = open_image(path).image
    texts = {model(image, "caption").text for image in (path, str(path), path.read_bytes(), pixels, np.asarray(pixels))}
    assert len(texts) == 1


def test_unreadable_image_raises_alone_and_is_a_result_among_others(
    model: florence2.Florence2, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model(tmp_path / "broken.jpg")
    broken, good = model([tmp_path / "broken.jpg", images[0]], "caption")
    assert broken.error is not None
    assert good.error is None
    with pytest.raises(florence2.DatasetError, match="nothing to draw"):
        broken.plot()


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((4, 5, 3), np.float32), "image 0 is an array of shape (4, 5, 3) and type float32"),
        (np.zeros((3, 4, 5), np.uint8), "image 0 is an array of shape (3, 4, 5) and type uint8"),
        (torch.zeros(1, 3, 4, 5), "image 0 is a Tensor"),
        (None, "image 0 is a NoneType"),
    ],
)
def test_what_is_no_image_is_named(model: florence2.Florence2, image: object, what: str) -> None:
    with pytest.raises(florence2.OptionError) as caught:
        model(image, "caption")  # type: ignore[call-overload]
    assert caught.value.what == what


def test_image_at_an_address_is_read(model: florence2.Florence2, images: list[Path]) -> None:
    assert model(images[0].as_uri(), "od").boxes == model(images[0], "od").boxes


def test_input_of_a_task_is_required_and_a_region_may_be_pixels(model: florence2.Florence2, images: list[Path]) -> None:
    with pytest.raises(florence2.OptionError, match="caption_to_phrase_grounding needs words"):
        model(images[0], "caption_to_phrase_grounding")
    width, height = open_image(images[0]).image.size
    region = f"0,0,{width / 2},{height / 2}"
    by_pixels, by_tokens = (
        model(images[0], "region_to_category", each) for each in (region, "<loc_0><loc_0><loc_500><loc_500>")
    )
    assert by_pixels.prediction == by_tokens.prediction


def test_stream_follows_a_cascade_and_a_call_refuses_it(model: florence2.Florence2, images: list[Path]) -> None:
    cascade = "caption+caption_to_phrase_grounding"
    first, second = model.stream(images[:1], cascade)
    assert (second.sample.input, bool(second.boxes)) == (first.text, True)
    with pytest.raises(florence2.OptionError, match="leads to several predictions"):
        model(images[0], cascade)


def test_stream_reads_images_as_they_are_needed(model: florence2.Florence2, images: list[Path]) -> None:
    endless = (images[i % len(images)] for i in iter(int, 1))
    results = model.stream(endless, "caption")
    assert next(results).text
    results.close()  # type: ignore[attr-defined]


def test_plot_draws_boxes_or_text(model: florence2.Florence2, images: list[Path], tmp_path: Path) -> None:
    boxes, caption = model(images[0], "od"), model(images[0], "caption")
    size = open_image(images[0]).image.size
    assert boxes.plot().size[0] / boxes.plot().size[1] == pytest.approx(size[0] / size[1], abs=0.01)
    assert caption.plot().size[1] > boxes.plot().size[1]  # the caption stands below the image
    with Image.open(boxes.save(tmp_path / "new" / "boxes.png")) as file:
        assert file.convert("RGB").tobytes() == boxes.plot().tobytes()
    assert boxes._repr_png_().startswith(b"\x89PNG")


def test_result_converts_to_coco_and_json(model: florence2.Florence2, images: list[Path]) -> None:
    result = model(images[0], "od")
    ids = {label: i for i, label in enumerate(sorted(set(result.labels)), start=1)}
    rows = result.to_coco(image_id=7, category_ids=ids)
    assert [row["category_id"] for row in rows] == [ids[label] for label in result.labels]
    assert json.loads(json.dumps(result.to_json()))["text"] == result.text
    with pytest.raises(florence2.DatasetError, match="has no boxes"):
        model(images[0], "caption").to_coco(7, ids)


def test_methods_have_the_signatures_of_the_commands() -> None:
    for name in ("train", "predict", "evaluate"):
        method, command = getattr(florence2.Florence2, name), getattr(florence2.api, name)
        assert inspect.signature(method) == inspect.signature(command)


def test_predict_writes_what_the_command_writes(model: florence2.Florence2, images: list[Path], tmp_path: Path) -> None:
    folder = str(images[0].parent)
    summary = model.predict(input_path=folder, output_path=str(tmp_path / "a.jsonl"), dtype="float32")
    florence2.predict(model_path="demo", input_path=folder, output_path=str(tmp_path / "b.jsonl"), dtype="float32")
    assert summary.num_predictions == len(images)
    ours, theirs = (
        sorted(map(json.loads, (tmp_path / name).read_text().splitlines()), key=lambda row: row["file_name"])
        for name in ("a.jsonl", "b.jsonl")
    )
    for row, expected in zip(ours, theirs, strict=True):
        # Images arrive when they are decoded, and sums round differently in batches of other shapes.
        assert row.pop("score") == pytest.approx(expected.pop("score"), abs=1e-5)
        assert row == expected


def test_a_call_imports_neither_transformers_nor_peft(images: list[Path]) -> None:
    code = f"""
import florence2, sys
florence2.Florence2("demo")({str(images[0])!r}, "od").plot()
model, preprocessor = florence2.load_for_inference("demo")
florence2.Engine(model, preprocessor).close()
print(*{{"transformers", "peft", "huggingface_hub", "datasets"}} & sys.modules.keys(), "ready")
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "ready\n"


def test_model_of_transformers_has_the_memory_of_the_engine(images: list[Path]) -> None:
    with florence2.Florence2("demo", dtype="float32") as model:
        before = model(images[0], "caption").text
        assert isinstance(model.model, Florence2ForConditionalGeneration)
        ours, theirs = model._engine.model.state_dict(), model.model.state_dict()
        assert all(theirs[name].data_ptr() == tensor.data_ptr() for name, tensor in ours.items())
        with torch.no_grad():
            model.model.lm_head.weight.neg_()
        assert model(images[0], "caption").text != before  # what is trained is what answers


def test_pipeline_of_transformers_takes_model_and_processor(model: florence2.Florence2, images: list[Path]) -> None:
    pipe = pipeline("image-text-to-text", model=model.model, processor=model.processor)
    [answer] = pipe(images=[str(images[0])], text="<CAPTION>", max_new_tokens=64)
    assert answer["generated_text"].removeprefix("<CAPTION>") == model(images[0], "caption").text
