from pathlib import Path
from typing import Any

import pytest
import torch

from florence2.model.storage.run_metadata import read_run_metadata
from florence2.training import auto_batch_size
from florence2.training.auto_batch_size import fits_by_trial, largest_fitting_divisor
from florence2.training.performance.memory_estimate import BatchShapes
from tests.tiny import PIXELS, tiny_model
from tests.training.images import run, save_calm, save_photos


@pytest.mark.parametrize(
    ("number", "largest", "expected"),
    [(8, 8, 8), (8, 7, 4), (12, 5, 4), (7, 6, 1), (1, 9, 1), (8, 0, 1)],
)
def test_largest_fitting_divisor(number: int, largest: int, expected: int) -> None:
    assert largest_fitting_divisor(number, lambda size: size <= largest) == expected


def test_trial_does_not_change_the_model() -> None:
    model, _ = tiny_model()

    def limit(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("out of memory")

    model.model.multi_modal_projector.register_forward_pre_hook(limit)
    before, random_state = {name: w.clone() for name, w in model.named_parameters()}, torch.get_rng_state()
    fits = {
        batch: fits_by_trial(model, BatchShapes(batch, (PIXELS, PIXELS), 5, 12, 16), torch.float32, 2**20)
        for batch in (2, 3, 4)
    }
    assert fits == {2: True, 3: True, 4: False}
    assert not model.training
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(w.grad is None and torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_other_errors_of_a_trial_are_raised() -> None:
    model, _ = tiny_model()
    model.model.vision_tower.convs[0].conv.weight.data = torch.zeros(8, 4, 7, 7)
    with pytest.raises(RuntimeError, match="channels"):
        fits_by_trial(model, BatchShapes(1, (PIXELS, PIXELS), 5, 12, 16), torch.float32, 2**20)


def test_auto_batch_keeps_the_samples_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="florence2")
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    plain = run(tmp_path, "plain", batch_size=8, auto_batch=True)
    assert read_run_metadata(plain).settings["batch_size"] == 8
    monkeypatch.setattr(auto_batch_size, "free_device_memory", lambda _: 10 * 2**20)  # the step of eight would not fit
    values = {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 2, "auto_batch": True}
    out = run(tmp_path, "fitted", **values)
    chosen = read_run_metadata(out).settings
    assert 1 <= chosen["batch_size"] < 8
    assert chosen["batch_size"] * chosen["gradient_accumulation_steps"] == 8
    log = caplog.text
    assert f"batch size {chosen['batch_size']}: the largest that divides 8 and fits into 0.0 GiB" in log
    assert "2 steps of 8" in log
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "checkpoint-1").symlink_to(out / "checkpoint-1")
    monkeypatch.undo()  # there is enough memory now, but the run keeps its batch size
    resumed = run(tmp_path, "resumed", **values, resume="auto")
    assert read_run_metadata(resumed).settings["batch_size"] == chosen["batch_size"]
    assert "as in the checkpoint" in caplog.text
