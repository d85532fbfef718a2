import json
from pathlib import Path
from typing import Any

import pytest

from florence2.config import TrainSettings
from florence2.errors import UserError
from florence2.settings_io import settings_from_dict
from florence2.training.dataset import training_data as material
from florence2.training.dataset.training_data import TrainingData
from tests.training.images import save_photos


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_photos(tmp_path / "photos")
    rows = [{"file_name": f"{n}.png", "task": ("od", "caption")[n % 2], "text": f"cat {n}"} for n in range(6)]
    (tmp_path / "photos" / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*datasets: str, **values: Any) -> TrainingData:
    told: list[str] = []
    made = material.find_training_data(
        settings_from_dict(TrainSettings, {"dataset": list(datasets), "output_dir": "o", **values}), told.append
    )
    assert len(told) == len(datasets)
    return made


def test_several_datasets_are_one_and_keep_their_names(room: Path) -> None:
    both = found("photos", "photos/mixed.jsonl")
    assert len(both.train) == 8 + 6
    assert both.weights is None
    assert both.train[0].id == "photos/0.png"
    assert both.train[8].id == "photos/mixed.jsonl/0.png"
    assert found("photos").train[0].id == "0.png"
    held = found("photos", "photos/mixed.jsonl", val_dataset="0.5")
    assert len(held.train) + len(held.eval) == 14
    assert not {sample.id for sample in held.train} & {sample.id for sample in held.eval}


def test_a_weight_is_that_of_the_task_times_that_of_the_dataset(room: Path) -> None:
    mixed = found(
        "photos", "photos/mixed.jsonl", sampling_weights=["OD=2", "photos/mixed.jsonl=1.5", "more_detailed_caption=0.5"]
    )
    by_task = {
        (sample.id.rpartition("/")[0], sample.task): weight for sample, weight in zip(*_both(mixed), strict=True)
    }
    assert by_task == {
        ("photos", "<MORE_DETAILED_CAPTION>"): 0.5,
        ("photos/mixed.jsonl", "<OD>"): 3.0,
        ("photos/mixed.jsonl", "<CAPTION>"): 1.5,
    }
    none = found("photos/mixed.jsonl", sampling_weights=["od=0"])
    assert [sample.task for sample in none.train] == ["<CAPTION>"] * 3


def _both(made: TrainingData) -> tuple[Any, Any]:
    return made.train, made.weights


def test_prompts_of_ones_own_have_weights_too(room: Path) -> None:
    made = found("photos", task="Is 1 = 1?", sampling_weights=["Is 1 = 1?=3"])
    assert made.weights == [3.0] * 8


@pytest.mark.parametrize(
    ("word", "what", "hint"),
    [
        ("odd=2", "`--sampling_weights odd` names no dataset here and no task that is learnt", "did you mean `od`?"),
        ("ocr=2", "`--sampling_weights ocr` names no dataset here and no task that is learnt", ""),
        ("od", "`--sampling_weights od` is no weight", ""),
        ("od=-1", "`--sampling_weights od=-1` is no weight", ""),
        ("od=inf", "`--sampling_weights od=inf` is no weight", ""),
        ("photos/mixed.jsonl=0.01", "with `--sampling_weights` an epoch draws no sample at all", ""),
    ],
)
def test_refused(room: Path, word: str, what: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        found("photos/mixed.jsonl", sampling_weights=[word])
    assert caught.value.what == what
    assert hint in caught.value.hint
