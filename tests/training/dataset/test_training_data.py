import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

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


def find_data(*datasets: str, weights: Sequence[str] = (), **values: Any) -> TrainingData:
    values = {"task": "more_detailed_caption", "sampling_weights": parse_sampling_weights(weights)} | values
    return find_training_data(TrainingDataConfig(datasets, **values))


def test_several_datasets_are_one_and_keep_their_names(room: Path) -> None:
    both = find_data("photos", "photos/mixed.jsonl")
    assert len(both.train) == 8 + 6
    assert both.weights is None
    assert both.train[0].id == "photos/0.png"
    assert both.train[8].id == "photos/mixed.jsonl/0.png"
    assert find_data("photos").train[0].id == "0.png"
    held = find_data("photos", "photos/mixed.jsonl", val_dataset=0.5)
    assert len(held.train) + len(held.eval) == 14
    assert not {sample.id for sample in held.train} & {sample.id for sample in held.eval}


def test_a_weight_is_that_of_the_task_times_that_of_the_dataset(room: Path) -> None:
    mixed = find_data(
        "photos", "photos/mixed.jsonl", weights=["OD=2", "photos/mixed.jsonl=1.5", "more_detailed_caption=0.5"]
    )
    by_task = {
        (sample.id.rpartition("/")[0], sample.task): weight for sample, weight in zip(*_both(mixed), strict=True)
    }
    assert by_task == {
        ("photos", "<MORE_DETAILED_CAPTION>"): 0.5,
        ("photos/mixed.jsonl", "<OD>"): 3.0,
        ("photos/mixed.jsonl", "<CAPTION>"): 1.5,
    }
    none = find_data("photos/mixed.jsonl", weights=["od=0"])
    assert [sample.task for sample in none.train] == ["<CAPTION>"] * 3


def _both(made: TrainingData) -> tuple[Any, Any]:
    return made.train, made.weights


def test_prompts_of_ones_own_have_weights_too(room: Path) -> None:
    made = find_data("photos", task="Is 1 = 1?", weights=["Is 1 = 1?=3"])
    assert made.weights == [3.0] * 8


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
def test_refused(room: Path, word: str, what: str, hint: str) -> None:
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
