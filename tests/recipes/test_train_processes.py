"""Two processes over gloo take the steps that one process takes with twice the batch, the weights parted or not."""

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

from florence2.data.streams.tar_source import write_shards
from florence2.errors import UserError
from florence2.model.load import load
from florence2.training.saving.checkpoint_trainer import check_zero3_config
from tests.training.images import CAPTIONS, run, save_calm, save_photos

ROOT = Path(__file__).parents[2]
SHARED = {"epochs": 2, "learning_rate": 1e-1, "dropout": 0.0, "optim": "torch.optim.SGD", "rank": 4, "task": "ocr"}
PLAIN = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no -m florence2"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on POSIX")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    save_photos(folder / "photos")
    save_calm(folder / "model")
    plain = {"batch_size": 4, "trainer_args": ["logging_steps=1"], "val_dataset": str(folder / "photos")}
    run(folder, "one", **SHARED, **plain, eval_metrics=["loss", "cer"])
    return folder


EXAM = ("--eval_metrics", "loss", "cer")


def launch(room: Path, how: str, name: str, *more: str, **other: Any) -> str:
    """Train in two processes and return what they said."""
    given = {"dataset": "photos", "model_id": "model", "output_dir": name, "device": "cpu", "batch_size": 2}
    flags = [word for flag, value in (given | SHARED | other).items() for word in (f"--{flag}", str(value))]
    flags += ["--trainer_args", "logging_steps=1", "--val_dataset", "photos", *more]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, *how.split(), "train", *flags],
        cwd=room,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def fsdp(room: Path) -> str:
    """Give the launch options for the example of FSDP, on a CPU."""
    config = yaml.safe_load((ROOT / "examples" / "devices" / "fsdp.yaml").read_text())
    (room / "fsdp.yaml").write_text(yaml.safe_dump(config | {"mixed_precision": "no", "use_cpu": True}))
    return f"--config_file fsdp.yaml {ROOT / 'tests' / 'recipes' / 'fsdp_on_cpu.py'}"


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(two: Path, one: Path) -> None:
    """Hold one training's weights and losses against another's."""
    for here, there in ((two, one), (two / "checkpoint-2", one / "checkpoint-2")):
        mine, theirs = learnt(here), learnt(there)
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in theirs)
    start = learnt(one / "checkpoint-2")
    assert any((start[name] - weight).abs().max() > 1e-5 for name, weight in learnt(one).items())
    for mine, theirs in zip(rows(two), rows(one), strict=True):
        assert mine["step"] == theirs["step"]
        for name in {"loss", "eval_loss", "eval_cer"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], abs=1e-4)
    assert sum("eval_loss" in row for row in rows(two)) == 2


def test_two_processes_are_one_with_twice_the_batch(room: Path) -> None:
    said = launch(room, PLAIN, "two", *EXAM)
    assert said.count("captions, 4 steps of 4") == 1  # only one of them talks
    assert said.count("saved two") == 1
    assert_alike(room / "two", room / "one")


@pytest.mark.skipif(not os.environ.get("FLORENCE2_LONG"), reason="FLORENCE2_LONG=1 asks for it")
def test_two_processes_go_on(room: Path) -> None:
    shutil.copytree(room / "two" / "checkpoint-2", room / "two-again" / "checkpoint-2")
    launch(room, PLAIN, "two-again", *EXAM, "--resume", "auto")
    again, whole = learnt(room / "two-again"), learnt(room / "two")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


@pytest.mark.skipif(not os.environ.get("FLORENCE2_LONG"), reason="FLORENCE2_LONG=1 asks for it")
def test_two_machines_are_one_with_twice_the_batch(room: Path) -> None:
    config = yaml.safe_load((ROOT / "examples" / "devices" / "two_machines.yaml").read_text())
    here = {"num_processes": 2, "main_process_ip": "127.0.0.1", "mixed_precision": "no"}
    (room / "machines.yaml").write_text(yaml.safe_dump(config | here))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = f"--main_process_port {port} --config_file machines.yaml --machine_rank %d -m florence2"
    with ThreadPoolExecutor(2) as machines:
        said = list(machines.map(lambda rank: launch(room, how % rank, "machines", *EXAM), range(2)))
    assert [each.count("saved machines") for each in said] == [1, 0]  # only one of them talks
    assert_alike(room / "machines", room / "one")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_learns_the_same_and_goes_on(room: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = yaml.safe_load((ROOT / "examples" / "devices" / "deepspeed.yaml").read_text())
    config["deepspeed_config"]["zero_stage"] = stage
    (room / "ds.yaml").write_text(yaml.safe_dump(config | {"mixed_precision": "no", "use_cpu": True}))
    plain, how, name = f"zero-{stage}-one", "--config_file ds.yaml -m florence2", f"zero-{stage}"
    # DeepSpeed knows no optimizer but Adam and its kin by heart.
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3}
    run(room, plain, **SHARED | adam, batch_size=4)
    launch(room, how, name, **adam)
    mine, theirs = learnt(room / name), learnt(room / plain)
    assert all(torch.allclose(mine[key], weight, atol=1e-4) for key, weight in theirs.items())
    shutil.copytree(room / name / "checkpoint-2", room / f"{name}-again" / "checkpoint-2")
    launch(room, how, f"{name}-again", "--resume", "auto", **adam)
    again = learnt(room / f"{name}-again")
    assert all(torch.equal(again[key], weight) for key, weight in mine.items())


@pytest.mark.parametrize(
    ("zero", "is_refused"),
    [
        ({"stage": 2}, False),
        ({"stage": 3}, True),
        ({"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}, True),
        ({"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}, False),
    ],
)
def test_weights_that_could_not_be_kept_are_not_parted(zero: dict[str, Any], is_refused: bool) -> None:
    with pytest.raises(UserError, match="does not gather them to save them") if is_refused else nullcontext():
        check_zero3_config({"zero_optimization": zero})


def test_parted_weights_learn_the_same_and_go_on(room: Path) -> None:
    launch(room, fsdp(room), "parted")
    assert_alike(room / "parted", room / "one")
    kept = room / "parted" / "checkpoint-2"
    assert len(list((kept / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2  # a part from each process
    load(kept, device="cpu")
    shutil.copytree(kept, room / "parted-again" / "checkpoint-2")
    launch(room, fsdp(room), "parted-again", "--resume", "auto")
    again, whole = learnt(room / "parted-again"), learnt(room / "parted")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on POSIX")
def test_two_processes_share_a_stream_as_two_workers_do(tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    (tmp_path / "tars").mkdir()
    images = [(f"{n}.png", (photos / f"{n}.png").read_bytes(), [{"text": text}]) for n, text in enumerate(CAPTIONS)]
    write_shards(tmp_path / "tars", images, per_shard=3)
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    plain = "--mixed_precision no --dynamo_backend no -m florence2 train --streaming"
    given = {"dataset": "tars", "model_id": "model", "output_dir": "two", "device": "cpu", "batch_size": 1}
    flags = [word for name, value in (given | SHARED).items() for word in (f"--{name}", str(value))]
    command = [
        sys.executable,
        *launch.split(),
        *plain.split(),
        *flags,
        "--trainer_args",
        "max_steps=5",
        "logging_steps=1",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = run(
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
    mine, theirs = (load_file(out / "adapter_model.safetensors") for out in (tmp_path / "two", one))
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in theirs)
    for here, there in zip(rows(tmp_path / "two"), rows(one), strict=True):
        assert here["loss"] == pytest.approx(there["loss"], abs=1e-4)
