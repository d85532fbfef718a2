"""Two processes over gloo take the same steps as one process with twice the batch, with and without sharded weights."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from florence2.data.streams.tars.tar_writer import write_shards
from florence2.errors import UserError
from florence2.model.load import load
from florence2.training.saving.checkpoint_trainer import check_zero3_config
from tests.training.images import CAPTIONS, run, save_calm, save_photos

ROOT = Path(__file__).parents[2]
SHARED = {"epochs": 2, "learning_rate": 1e-1, "dropout": 0.0, "optim": "torch.optim.SGD", "rank": 4, "task": "ocr"}
LAUNCH_OPTIONS = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no -m florence2"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    save_photos(path / "photos")
    save_calm(path / "model")
    plain = {"batch_size": 4, "trainer_args": ["logging_steps=1"], "val_dataset": str(path / "photos")}
    run(path, "one", **SHARED, **plain, eval_metrics=["loss", "cer"])
    return path


EVAL_FLAGS = ("--eval_metrics", "loss", "cer")


def launch_train(folder: Path, launch_options: str, name: str, *more: str, **more_values: Any) -> str:
    """Train in two processes and return their log."""
    values = {"dataset": "photos", "model_id": "model", "output_dir": name, "device": "cpu", "batch_size": 2}
    flags = [word for flag, value in (values | SHARED | more_values).items() for word in (f"--{flag}", str(value))]
    flags += ["--trainer_args", "logging_steps=1", "--val_dataset", "photos", *more]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    result = subprocess.run(
        [*command, *launch_options.split(), "train", *flags],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def fsdp(folder: Path) -> str:
    """Return the launch options of the FSDP example, on a CPU."""
    config = yaml.safe_load((ROOT / "examples" / "devices" / "fsdp.yaml").read_text())
    (folder / "fsdp.yaml").write_text(yaml.safe_dump(config | {"mixed_precision": "no", "use_cpu": True}))
    return f"--config_file fsdp.yaml {ROOT / 'tests' / 'recipes' / 'fsdp_on_cpu.py'}"


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "adapter_model.safetensors")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_close(actual: Path, expected: Path) -> None:
    """Compare the weights and losses of two runs."""
    for actual_folder, expected_folder in ((actual, expected), (actual / "checkpoint-2", expected / "checkpoint-2")):
        actual_weights, expected_weights = read_weights(actual_folder), read_weights(expected_folder)
        assert actual_weights.keys() == expected_weights.keys()
        assert all(torch.allclose(actual_weights[name], expected_weights[name], atol=1e-6) for name in expected_weights)
    start = read_weights(expected / "checkpoint-2")
    assert any((start[name] - weight).abs().max() > 1e-5 for name, weight in read_weights(expected).items())
    for actual_row, expected_row in zip(read_metrics(actual), read_metrics(expected), strict=True):
        assert actual_row["step"] == expected_row["step"]
        for name in {"loss", "eval_loss", "eval_cer"} & actual_row.keys():
            assert actual_row[name] == pytest.approx(expected_row[name], abs=1e-4)
    assert sum("eval_loss" in row for row in read_metrics(actual)) == 2


def test_two_processes_equal_one_with_twice_the_batch(folder: Path) -> None:
    log = launch_train(folder, LAUNCH_OPTIONS, "two", *EVAL_FLAGS)
    assert log.count("samples, 4 steps of 4") == 1  # only the main process logs
    assert log.count("saved two") == 1
    assert_close(folder / "two", folder / "one")


@pytest.mark.skipif(not os.environ.get("FLORENCE2_LONG"), reason="set FLORENCE2_LONG=1")
def test_two_processes_resume(folder: Path) -> None:
    shutil.copytree(folder / "two" / "checkpoint-2", folder / "two-resumed" / "checkpoint-2")
    launch_train(folder, LAUNCH_OPTIONS, "two-resumed", *EVAL_FLAGS, "--resume", "auto")
    resumed, uninterrupted = read_weights(folder / "two-resumed"), read_weights(folder / "two")
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())


@pytest.mark.skipif(not os.environ.get("FLORENCE2_LONG"), reason="set FLORENCE2_LONG=1")
def test_two_machines_equal_one_with_twice_the_batch(folder: Path) -> None:
    config = yaml.safe_load((ROOT / "examples" / "devices" / "two_machines.yaml").read_text())
    machine = {"num_processes": 2, "main_process_ip": "127.0.0.1", "mixed_precision": "no"}
    (folder / "machines.yaml").write_text(yaml.safe_dump(config | machine))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch_options = f"--main_process_port {port} --config_file machines.yaml --machine_rank %d -m florence2"
    with ThreadPoolExecutor(2) as machines:
        logs = list(
            machines.map(lambda rank: launch_train(folder, launch_options % rank, "machines", *EVAL_FLAGS), range(2))
        )
    assert [log_of_rank.count("saved machines") for log_of_rank in logs] == [1, 0]  # only the main process logs
    assert_close(folder / "machines", folder / "one")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_equals_one_process_and_resumes(folder: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = yaml.safe_load((ROOT / "examples" / "devices" / "deepspeed.yaml").read_text())
    config["deepspeed_config"]["zero_stage"] = stage
    (folder / "ds.yaml").write_text(yaml.safe_dump(config | {"mixed_precision": "no", "use_cpu": True}))
    plain, launch_options, name = f"zero-{stage}-one", "--config_file ds.yaml -m florence2", f"zero-{stage}"
    # DeepSpeed supports only Adam and its relatives without a setting.
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3}
    run(folder, plain, **SHARED | adam, batch_size=4)
    launch_train(folder, launch_options, name, **adam)
    actual_weights, expected_weights = read_weights(folder / name), read_weights(folder / plain)
    assert all(torch.allclose(actual_weights[key], weight, atol=1e-4) for key, weight in expected_weights.items())
    shutil.copytree(folder / name / "checkpoint-2", folder / f"{name}-resumed" / "checkpoint-2")
    launch_train(folder, launch_options, f"{name}-resumed", "--resume", "auto", **adam)
    resumed = read_weights(folder / f"{name}-resumed")
    assert all(torch.equal(resumed[key], weight) for key, weight in actual_weights.items())


@pytest.mark.parametrize(
    ("zero", "is_refused"),
    [
        ({"stage": 2}, False),
        ({"stage": 3}, True),
        ({"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}, True),
        ({"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}, False),
    ],
)
def test_zero3_without_gathering_is_refused(zero: dict[str, Any], is_refused: bool) -> None:
    with pytest.raises(UserError, match="does not gather them to save them") if is_refused else nullcontext():
        check_zero3_config({"zero_optimization": zero})


def test_fsdp_equals_one_process_and_resumes(folder: Path) -> None:
    launch_train(folder, fsdp(folder), "sharded")
    assert_close(folder / "sharded", folder / "one")
    checkpoint = folder / "sharded" / "checkpoint-2"
    assert len(list((checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2  # one from each process
    load(checkpoint, device="cpu")
    shutil.copytree(checkpoint, folder / "sharded-resumed" / "checkpoint-2")
    launch_train(folder, fsdp(folder), "sharded-resumed", "--resume", "auto")
    resumed, uninterrupted = read_weights(folder / "sharded-resumed"), read_weights(folder / "sharded")
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX")
def test_two_processes_split_a_stream_as_two_workers_do(tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    (tmp_path / "tars").mkdir()
    images = [(f"{n}.png", (photos / f"{n}.png").read_bytes(), [{"text": text}]) for n, text in enumerate(CAPTIONS)]
    write_shards(tmp_path / "tars", images, per_shard=3)
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    plain = "--mixed_precision no --dynamo_backend no -m florence2 train --streaming"
    values = {"dataset": "tars", "model_id": "model", "output_dir": "two", "device": "cpu", "batch_size": 1}
    flags = [word for name, value in (values | SHARED).items() for word in (f"--{name}", str(value))]
    command = [
        sys.executable,
        *launcher.split(),
        *plain.split(),
        *flags,
        "--trainer_args",
        "max_steps=5",
        "logging_steps=1",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    expected = run(
        tmp_path,
        "one",
        **SHARED,
        dataset=str(tmp_path / "tars"),
        streaming=True,
        batch_size=1,
        gradient_accumulation_steps=2,
        num_workers=2,
        trainer_args=["max_steps=5", "logging_steps=1"],
    )
    actual_weights, expected_weights = (
        load_file(out / "adapter_model.safetensors") for out in (tmp_path / "two", expected)
    )
    assert all(torch.allclose(actual_weights[name], expected_weights[name], atol=1e-6) for name in expected_weights)
    for actual_row, expected_row in zip(read_metrics(tmp_path / "two"), read_metrics(expected), strict=True):
        assert actual_row["loss"] == pytest.approx(expected_row["loss"], abs=1e-4)
