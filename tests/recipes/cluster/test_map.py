"""Predictions as columns of a dataset of Hugging Face `datasets`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import florence2
from florence2.demo.dataset import make_dataset
from florence2.errors import OptionError


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
    with pytest.raises(OptionError, match="more than one prediction"):
        florence2.datasets.map(dataset, model_path="demo", task="od+region_to_category", image_column="photo")


def test_the_modules_import_nothing_before_a_call() -> None:
    code = "import florence2.ray, florence2.datasets, sys; assert not {'ray', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
