"""Predictions as columns: of a Ray dataset, and of a dataset of Hugging Face `datasets`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import florence2
from florence2.demo.dataset import make_dataset
from florence2.errors import OptionError
from tests.ray_nodes import ray_environment

RAY_PROGRAM = """
import json, sys, tempfile
from pathlib import Path
import ray
import florence2
ray.init(num_cpus=2, include_dashboard=False, _temp_dir=tempfile.mkdtemp(prefix="r", dir="/tmp"),
         object_store_memory=80 * 2**20)
folder, number = Path(sys.argv[1]), int(sys.argv[2])
paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
rows = [{"image": path.read_bytes(), "name": path.name} for path in paths] + [{"image": b"damaged", "name": "bad"}]
dataset = ray.data.from_items(rows)
options = {"model_path": "demo", "task": "od", "dtype": "float32", "num_engines": 1}
rows = florence2.ray.predict(dataset, **options).take_all()
print(json.dumps({row["name"]: [row["text"], row["answer"], row["error"]] for row in rows}))
"""


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


def test_a_ray_dataset_gets_columns(photos: list[Path], expected: dict[str, florence2.Prediction]) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-c", RAY_PROGRAM, str(photos[0].parent), "7"]
    run = subprocess.run(command, env=ray_environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    rows = json.loads(run.stdout.splitlines()[-1])
    assert rows.pop("bad")[2].startswith("row")
    assert {name: text for name, (text, _, _) in rows.items()} == {name: p.text for name, p in expected.items()}
    for name, (_, answer, error) in rows.items():
        assert json.loads(answer)["bboxes"] == expected[name].answer.to_dict()["bboxes"]
        assert error is None


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
