"""A run that is killed at random moments and resumed gives the result of an uninterrupted run.

FLORENCE2_LONG=1 in the environment sets 20 kills, some of them before the first step; the default is two.
"""

import contextlib
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florence2.training.saving.checkpoints import list_checkpoints
from tests.training.images import run, save_calm, save_photos

LONG = bool(os.environ.get("FLORENCE2_LONG"))
KILLS, EPOCHS = (20, 20) if LONG else (2, 6)
VALUES: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 4,
    "save_every_n_steps": 1,
    "shuffle_captions": True,
    "caption_args": ("caption_separator= ",),
    "trainer_args": ("save_total_limit=3", "logging_steps=1"),
}


def resume(folder: Path) -> None:
    """Train in this process, silently, from the newest checkpoint."""
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        run(folder, "killed", **VALUES, resume="auto")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server")
def test_killed_and_resumed_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model", dropout=0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    uninterrupted = run(tmp_path, "uninterrupted", **VALUES)
    torch.set_num_threads(threads)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.images"])
    rng, kills = random.Random(), 0
    while True:
        process = processes.Process(target=resume, args=(tmp_path,))
        process.start()
        checkpoints = list_checkpoints(tmp_path / "killed")
        if LONG and rng.random() < 0.3:  # while it starts, reads and loads
            process.join(rng.uniform(0, 3))
        else:
            while kills < KILLS and process.is_alive() and list_checkpoints(tmp_path / "killed") == checkpoints:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))  # a step and its checkpoint take about this long
        if kills < KILLS and process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
    assert kills > 0
    print(f"{kills} kills, {EPOCHS * 2} steps")
    resumed, expected = (load_file(out / "adapter_model.safetensors") for out in (tmp_path / "killed", uninterrupted))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert (tmp_path / "killed" / "metrics.jsonl").read_text().count("\n") == EPOCHS * 2
    assert not list((tmp_path / "killed").glob(".unfinished/*"))
