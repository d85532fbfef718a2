"""Runs that are resumed with another batch size, number of epochs or dataset: equal, or refused with the reason."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from florence2.errors import UserError
from tests.training.images import run, save_calm, save_photos

VALUES: dict[str, Any] = {"dropout": 0.0, "epochs": 2, "save_every_n_steps": 1, "dtype": "float32"}
ONE_BY_ONE = {"batch_size": 1, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_photos(folder / "photos", number=4)
    save_calm(folder / "model")
    run(folder, "whole", **VALUES, **ONE_BY_ONE)
    return folder


def resume(folder: Path, name: str, checkpoint: str = "checkpoint-1", **values: Any) -> Path:
    if not (folder / name).exists():
        shutil.copytree(folder / "whole" / checkpoint, folder / name / checkpoint)
    return run(folder, name, **(VALUES | {"resume": "auto"} | values))


def steps(output: Path) -> int:
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return int(json.loads((last / "trainer_state.json").read_text())["global_step"])


def test_the_same_step_in_other_batches_ends_equal(folder: Path) -> None:
    output = resume(folder, "four at once", batch_size=4)  # F4
    assert steps(output) == 2
    states = [load_file(path / "adapter_model.safetensors") for path in (output, folder / "whole")]
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-5) for name in states[1])


def test_more_epochs_are_done_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("florence2"), "propagate", True)
    output = resume(folder, "longer", "checkpoint-2", **ONE_BY_ONE, epochs=3)  # F5, the end of an epoch
    assert steps(output) == 3
    assert "`--epochs 3` instead of 2; no uninterrupted run has the result" in caplog.text


def test_unchanged_settings_are_not_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    resume(folder, "unchanged", **ONE_BY_ONE)
    assert "other settings" not in caplog.text


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"batch_size": 2}, r"a step of .*checkpoint-2 had 4 samples, and now it would have 2"),  # F4
        ({"epochs": 1}, "has 2 steps, and this run would end after 1"),  # F5, fewer epochs
        ({"seed": 1}, "was trained with `--seed 42`, not `1`"),
        ({"sampling_weights": ["caption=2"]}, "was trained with `--sampling_weights"),
    ],
)
def test_another_order_of_the_samples_is_refused(folder: Path, values: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        resume(
            folder,
            "refused",
            "checkpoint-2",
            **(ONE_BY_ONE | {"gradient_accumulation_steps": 4} | values if "batch_size" not in values else values),
        )
    assert [path.name for path in (folder / "refused").iterdir()] == ["checkpoint-2"]


def add_image(photos: Path) -> None:
    Image.new("RGB", (40, 40), "brown").save(photos / "more.png")
    (photos / "more.txt").write_text("brown bear")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (add_image, "was trained on 4 samples, and the dataset now has 5"),  # F5, one image more
        (lambda photos: (photos / "0.txt").write_text("another"), "the dataset has changed since"),
        (lambda photos: [path.rename(photos / f"z{path.suffix}") for path in photos.glob("0.*")], "has changed since"),
    ],
)
def test_another_dataset_is_refused(folder: Path, tmp_path: Path, change: Any, what: str) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    change(tmp_path / "photos")
    with pytest.raises(UserError, match=what) as caught:
        resume(folder, "changed", **ONE_BY_ONE, dataset=str(tmp_path / "photos"))
    assert "--model_id" in caught.value.hint
