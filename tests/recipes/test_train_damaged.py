"""Images whose damage shows only when they are decoded: training goes on, and a resume changes nothing."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2.errors import DatasetError
from tests.training.images import run, save_calm, save_photos


def test_damaged_images_are_named_counted_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_photos(tmp_path / "photos") / "3.png"
    save_calm(tmp_path / "model", dropout=0.2)
    data = path.read_bytes()
    path.write_bytes(data[:60] + data[-20:])  # header and end are as they were
    caplog.set_level(logging.INFO, logger="florence2")
    values = {"epochs": 2, "save_every_n_steps": 1, "num_workers": 1}
    uninterrupted = run(tmp_path, "uninterrupted", **values)
    first, summary = [line for line in caplog.messages if str(path) in line]
    assert first.endswith("; the next sample of the dataset replaces it")
    assert summary.startswith("1 image could not be read; the next samples replaced them. The first: ")
    shutil.copytree(uninterrupted / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    resumed = run(tmp_path, "resumed", **values, resume="auto")
    one, other = (load_file(out / "checkpoint-4" / "adapter_model.safetensors") for out in (uninterrupted, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(DatasetError, match=r"3\.png cannot be read"):  # its features would be computed first
        run(tmp_path, "frozen", freeze="vision")
