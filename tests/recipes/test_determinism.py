"""The same seed gives the same adapter and predictions, whatever the workers, the batch size and the decoders."""

import json
from pathlib import Path
from typing import Any

import pytest

from florence2.api import predict
from tests.training.images import run, save_calm, save_photos

WAYS: dict[str, dict[str, Any]] = {
    "more slots": {"batch_size": 8},
    "one slot": {"batch_size": 1},
    "more decoders": {"num_workers": 3},
    "decoders in threads": {"image_workers": "threads", "num_workers": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("determinism")
    save_photos(folder / "photos")
    save_calm(folder / "model", dropout=0.1)
    return folder


def lines(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Predict the photos with sampling, and return the lines in the order of the files."""
    output = folder / "o.jsonl"
    output.unlink(missing_ok=True)
    paths = {"model_path": str(folder / "model"), "input_path": str(folder / "photos"), "output_path": str(output)}
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "seed": 3, "max_length": 12, "device": "cpu"}
    predict(**(paths | settings | {"batch_size": 3, "num_workers": 1, "dtype": "float32"} | options))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return sorted(rows, key=lambda row: str(row["file_name"]))


def test_predictions_are_the_same_in_every_way(folder: Path) -> None:
    first = lines(folder)
    assert len({row["text"] for row in first}) > 1
    for name, options in WAYS.items():
        rows = lines(folder, **options)
        assert [(row["file_name"], row["text"]) for row in rows] == [
            (row["file_name"], row["text"]) for row in first
        ], name
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in first], rel=1e-5), name
    assert [row["text"] for row in lines(folder, seed=4)] != [row["text"] for row in first]


def test_adapters_are_the_same_to_the_last_byte(folder: Path) -> None:
    options = {"seed": 5, "augment": ["hflip=0.5", "crop=0.3"], "dropout": 0.2, "batch_size": 4}
    outputs = [run(folder, f"run{at}", num_workers=number, **options) for at, number in enumerate((0, 0, 1))]
    first, *others = [(output / "adapter_model.safetensors").read_bytes() for output in outputs]
    assert others == [first, first]
    other_seed = run(folder, "seed", num_workers=0, **(options | {"seed": 6}))
    assert (other_seed / "adapter_model.safetensors").read_bytes() != first
