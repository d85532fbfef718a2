"""Predictions as columns of a dataset of Hugging Face `datasets`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import florence2
from florence2.data.image import ImageError
from florence2.demo.dataset import make_dataset
from florence2.errors import OptionError
from florence2.recipes.cluster.row_actor import RowOptions


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    make_dataset(folder, num_samples=6, seed=9)
    return sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


@pytest.fixture(scope="module")
def expected(photos: list[Path]) -> dict[str, florence2.Prediction]:
    model, processor = florence2.load("demo", dtype="float32")
    with florence2.Engine(model, processor) as engine:
        predictions = list(engine.run(florence2.Sample(path.name, path, "<OD>") for path in photos))
    return {prediction.file_name: prediction for prediction in predictions}


def test_a_dataset_gets_columns(photos: list[Path], expected: dict[str, florence2.Prediction]) -> None:
    import datasets

    table = {"photo": [str(path) for path in photos], "name": [path.name for path in photos]}
    dataset = datasets.Dataset.from_dict(table).cast_column("photo", datasets.Image())
    options = {"model_path": "demo", "task": "od", "image_column": "photo", "dtype": "float32"}
    for source in (dataset, dataset.to_iterable_dataset()):
        rows = list(florence2.datasets.map(source, **options))
        assert [row["name"] for row in rows] == [path.name for path in photos]
        assert [row["text"] for row in rows] == [expected[path.name].text for path in photos]
        assert json.loads(rows[0]["answer"])["labels"] == expected[photos[0].name].answer.labels
        assert rows[0]["photo"].size == dataset[0]["photo"].size
    options = {"model_path": "demo", "image_column": "photo"}
    for more, reason in (
        ({"task": "od+region_to_category"}, "more than one prediction"),
        ({"task": ["caption", "od"]}, r"`task` is \['caption', 'od'\]"),
        ({"task": "caption_to_phrase_grounding"}, "needs words"),
        ({"image_column": "image"}, "there is no column `image`; there are `photo`, `name`"),
        ({"input_column": "words"}, "there is no column `words`"),
        ({"generation": {"max_lenght": 3}}, "`generation` has no `max_lenght`"),
    ):
        with pytest.raises(OptionError, match=reason):
            florence2.datasets.map(dataset, **(options | more))
    with pytest.raises(OptionError, match="1 new column would replace `text`"):
        florence2.datasets.map(dataset.rename_column("name", "text"), **options)
    with pytest.raises(OptionError, match="the dataset is a list"):
        florence2.datasets.map([1], **options)


def test_columns_of_any_kind_and_splits_are_mapped(
    photos: list[Path], expected: dict[str, florence2.Prediction]
) -> None:
    import datasets

    options = {"model_path": "demo", "dtype": "float32"}
    images = datasets.Dataset.from_dict({"image": [photos[0].read_bytes(), b"damaged", None]})
    paths = datasets.Dataset.from_dict({"image": [str(photos[0])], "words": [None]})
    generated = datasets.IterableDataset.from_generator(lambda: iter([{"image": str(photos[0])}]))
    mapped = florence2.datasets.map(datasets.DatasetDict(a=images, b=images.select([])), task="od", **options)
    assert mapped["a"]["text"][0] == expected[photos[0].name].text
    assert list(mapped["a"]["error"])[1:] == ["row 1 is not an image that can be read", "row 2 has no image"]
    assert mapped["b"].column_names == mapped["a"].column_names
    assert next(iter(florence2.datasets.map(generated, task="od", **options)))["text"] == mapped["a"]["text"][0]
    grounded = florence2.datasets.map(paths, task="caption_to_phrase_grounding", input_column="words", **options)
    assert "needs words" in grounded["error"][0]
    twice = florence2.datasets.map(mapped["a"].select([0]), column_prefix="caption_", **options)
    assert (twice["text"][0], twice["caption_num_tokens"][0] > 0) == (mapped["a"]["text"][0], True)


def test_the_modules_import_nothing_before_a_call() -> None:
    code = "import florence2.ray, florence2.datasets, sys; assert not {'ray', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_row_with_pixels_that_are_no_bytes_has_an_error_of_its_own() -> None:
    options = RowOptions("caption", "", "image", None, "")
    good, bad = (options.sample(0, {"image": np.zeros((4, 5, 3), dtype)}) for dtype in (np.uint8, np.float32))
    assert good.size() == (5, 4)
    with pytest.raises(ImageError, match=r"row 0: its image is an array of shape \(4, 5, 3\) and type float32"):
        bad.open()
