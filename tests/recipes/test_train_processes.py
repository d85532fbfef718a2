"""Two processes over gloo take the steps that one process takes with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.photos import run, save_calm, save_photos

SHARED = {"epochs": 2, "learning_rate": 1e-1, "dropout": 0.0, "optim": "torch.optim.SGD", "rank": 4}


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on POSIX")
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    plain = "--mixed_precision no --dynamo_backend no -m florence2 train"
    given = {"dataset": "photos", "model_id": "model", "output_dir": "two", "device": "cpu", "batch_size": 2}
    flags = [word for name, value in (given | SHARED).items() for word in (f"--{name}", str(value))]
    flags += [
        "--trainer",
        "logging_steps=1",
        "--val_dataset",
        "photos",
        "--eval_metrics",
        "loss",
        "cer",
        "--task",
        "ocr",
    ]
    command = [sys.executable, *launch.split(), *plain.split(), *flags]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("captions, 4 steps of 4") == 1  # only one of them talks
    one = run(
        tmp_path,
        "one",
        **SHARED,
        batch_size=4,
        trainer=["logging_steps=1"],
        val_dataset=str(tmp_path / "photos"),
        eval_metrics=["loss", "cer"],
        task="ocr",
    )
    mine, theirs = (load_file(out / "adapter_model.safetensors") for out in (tmp_path / "two", one))
    start = load_file(one / "checkpoint-2" / "adapter_model.safetensors")
    assert any((start[name] - theirs[name]).abs().max() > 1e-5 for name in theirs)
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in theirs)
    for here, there in zip(rows(tmp_path / "two"), rows(one), strict=True):
        assert here["step"] == there["step"]
        for name in {"loss", "eval_loss", "eval_cer"} & here.keys():
            assert here[name] == pytest.approx(there[name], abs=1e-4)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
