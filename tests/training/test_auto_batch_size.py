from pathlib import Path
from typing import Any

import pytest
import torch

from florence2.model.storage.run_metadata import read_run_metadata
from florence2.training import auto_batch_size as fitting
from florence2.training.auto_batch_size import fits_by_trial, largest_fitting_divisor
from florence2.training.performance.memory_estimate import BatchShapes
from tests.tiny import PIXELS, tiny_model
from tests.training.images import run, save_calm, save_photos


@pytest.mark.parametrize(
    ("images", "most", "chosen"),
    [(8, 8, 8), (8, 7, 4), (12, 5, 4), (7, 6, 1), (1, 9, 1), (8, 0, 1)],
)
def test_the_largest_part_of_a_step(images: int, most: int, chosen: int) -> None:
    assert largest_fitting_divisor(images, lambda size: size <= most) == chosen


def test_trying_leaves_the_learner_as_it_was() -> None:
    model, _ = tiny_model()

    def refuse(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > 3:
            raise torch.OutOfMemoryError("out of memory")

    model.model.multi_modal_projector.register_forward_pre_hook(refuse)
    before, chance = {name: w.clone() for name, w in model.named_parameters()}, torch.get_rng_state()
    fits = {
        batch: fits_by_trial(model, BatchShapes(batch, (PIXELS, PIXELS), 5, 12, 16), torch.float32, 2**20)
        for batch in (2, 3, 4)
    }
    assert fits == {2: True, 3: True, 4: False}
    assert not model.training
    assert torch.equal(chance, torch.get_rng_state())
    assert all(w.grad is None and torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_other_errors_of_a_try_are_raised() -> None:
    model, _ = tiny_model()
    model.model.vision_tower.convs[0].conv.weight.data = torch.zeros(8, 4, 7, 7)
    with pytest.raises(RuntimeError, match="channels"):
        fits_by_trial(model, BatchShapes(1, (PIXELS, PIXELS), 5, 12, 16), torch.float32, 2**20)


def test_a_step_sees_as_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="florence2")
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    plain = run(tmp_path, "plain", batch_size=8, auto_batch=True)
    assert read_run_metadata(plain).settings["batch_size"] == 8
    monkeypatch.setattr(fitting, "free_device_memory", lambda _: 10 * 2**20)  # the step of eight would not fit
    given = {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 2, "auto_batch": True}
    out = run(tmp_path, "fitted", **given)
    chosen = read_run_metadata(out).settings
    assert 1 <= chosen["batch_size"] < 8
    assert chosen["batch_size"] * chosen["gradient_accumulation_steps"] == 8
    said = caplog.text
    assert f"batch size {chosen['batch_size']}: the largest that divides 8 and fits into 0.0 GiB" in said
    assert "2 steps of 8" in said
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "checkpoint-1").symlink_to(out / "checkpoint-1")
    monkeypatch.undo()  # there is room now, and yet the choice is kept
    again = run(tmp_path, "again", **given, resume="auto")
    assert read_run_metadata(again).settings["batch_size"] == chosen["batch_size"]
    assert "as in the checkpoint" in caplog.text
