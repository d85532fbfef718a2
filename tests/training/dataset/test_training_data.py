import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from florence2.data.resolve import DatasetOptions
from florence2.errors import UserError
from florence2.training.dataset.training_data import (
    TrainingData,
    TrainingDataConfig,
    find_training_data,
    parse_sampling_weights,
    parse_val_dataset,
)
from tests.training.images import save_photos


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_photos(tmp_path / "photos")
    rows = [{"file_name": f"{n}.png", "task": ("od", "caption")[n % 2], "text": f"cat {n}"} for n in range(6)]
    (tmp_path / "photos" / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find_data(
    *datasets: str, weights: Sequence[str] = (), task: str = "more_detailed_caption", **values: Any
) -> TrainingData:
    sampling_weights = parse_sampling_weights(weights)
    config = TrainingDataConfig(datasets, DatasetOptions(task), sampling_weights=sampling_weights, **values)
    return find_training_data(config)


def weights_by_dataset_and_task(data: TrainingData) -> dict[tuple[str, str], float]:
    assert data.weights is not None
    keys = [(sample.id.rpartition("/")[0], sample.task) for sample in data.train]
    return dict(zip(keys, data.weights, strict=True))


def test_samples_of_several_datasets_have_the_dataset_in_their_id(room: Path) -> None:
    data = find_data("photos", "photos/mixed.jsonl")
    assert len(data.train) == 8 + 6
    assert data.weights is None
    assert data.train[0].id == "photos/0.png"
    assert data.train[8].id == "photos/mixed.jsonl/0.png"
    assert find_data("photos").train[0].id == "0.png"
    split = find_data("photos", "photos/mixed.jsonl", val_dataset=0.5)
    assert len(split.train) + len(split.eval) == 14
    assert not {sample.id for sample in split.train} & {sample.id for sample in split.eval}


def test_evaluation_samples_come_from_their_own_dataset(room: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "florence2"):
        data = find_data("photos", val_dataset="photos/mixed.jsonl")
    assert (len(data.train), len(data.eval)) == (8, 6)
    assert len(caplog.messages) == 2


def test_weight_of_a_sample_is_the_product_of_task_weight_and_dataset_weight(room: Path) -> None:
    words = ["OD=2", "photos/mixed.jsonl=1.5", "more_detailed_caption=0.5"]
    data = find_data("photos", "photos/mixed.jsonl", weights=words)
    assert weights_by_dataset_and_task(data) == {
        ("photos", "<MORE_DETAILED_CAPTION>"): 0.5,
        ("photos/mixed.jsonl", "<OD>"): 3.0,
        ("photos/mixed.jsonl", "<CAPTION>"): 1.5,
    }
    assert data.samples_per_epoch == 18  # 8 x 0.5 + 3 x 3 + 3 x 1.5, rounded


def test_samples_of_weight_zero_are_removed(room: Path) -> None:
    data = find_data("photos/mixed.jsonl", weights=["od=0"])
    assert [sample.task for sample in data.train] == ["<CAPTION>"] * 3


def test_custom_prompts_have_weights(room: Path) -> None:
    data = find_data("photos", task="Is 1 = 1?", weights=["Is 1 = 1?=3"])
    assert data.weights == [3.0] * 8


@pytest.mark.parametrize(
    ("word", "what", "hint"),
    [
        ("odd=2", "`--sampling_weights odd` is neither a dataset nor a task of the samples", "did you mean `od`?"),
        ("ocr=2", "`--sampling_weights ocr` is neither a dataset nor a task of the samples", ""),
        ("od", "`--sampling_weights od` is not a weight", ""),
        ("od=-1", "`--sampling_weights od=-1` is not a weight", ""),
        ("od=inf", "`--sampling_weights od=inf` is not a weight", ""),
        ("photos/mixed.jsonl=0.01", "with `--sampling_weights` an epoch draws no sample", ""),
    ],
)
def test_invalid_sampling_weights_are_refused(room: Path, word: str, what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        find_data("photos/mixed.jsonl", weights=[word])
    assert caught.value.what == what
    assert hint in caught.value.hint


@pytest.mark.parametrize(("word", "parsed"), [(None, None), ("", None), ("0.1", 0.1), ("photos", "photos")])
def test_val_dataset_is_a_fraction_or_a_dataset(word: str | None, parsed: str | float | None) -> None:
    assert parse_val_dataset(word) == parsed


@pytest.mark.parametrize("word", ["0", "1", "-0.5", "nan"])
def test_val_dataset_outside_zero_and_one_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"`--val_dataset {word}` is not a fraction"):
        parse_val_dataset(word)
