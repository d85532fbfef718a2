"""The published commands, word for word, on real pictures: real processes, real files.

A tiny random model stands where the guide names a model of the hub, and folders of the test where it says `/path/to`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from florence2.demo.dataset import make_dataset
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[1]

BASIC_TRAINING = """
uv run python scripts/training/train_florence.py \
    --dataset /path/to/dataset \
    --output_dir ./checkpoints \
    --model_id microsoft/Florence-2-base-ft
"""
ADVANCED_TRAINING = """
uv run python scripts/training/train_florence.py \
    --dataset /path/to/dataset \
    --output_dir ./advanced \
    --batch_size 4 \
    --learning_rate 1e-4 \
    --gradient_checkpointing \
    --log_with wandb
"""
BASIC_INFERENCE = """
uv run python scripts/inference/inference.py \
    --model_path ./checkpoints \
    --input_path /path/to/images \
    --output_path captions.jsonl
"""
ADVANCED_INFERENCE = """
uv run python scripts/inference/inference.py \
    --model_path ./checkpoints \
    --input_path image.jpg \
    --do_sample \
    --temperature 0.8 \
    --top_p 0.9
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    make_dataset(folder / "dataset", num_samples=6, seed=1)
    make_dataset(folder / "images", num_samples=3, seed=2)
    image = next(p for p in (folder / "images").iterdir() if p.suffix in {".jpg", ".png"})
    (folder / "image.jpg").write_bytes(image.read_bytes())
    save_tiny(folder / "tiny")
    return folder


def run(folder: Path, command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the guide, with the test's names for the guide's."""
    words = command.split()
    names = {
        "microsoft/Florence-2-base-ft": "tiny",
        "/path/to/dataset": "dataset",
        "/path/to/images": "images",
    }
    assert words[:3] == ["uv", "run", "python"]
    words = [sys.executable, str(ROOT / words[3]), *(names.get(word, word) for word in words[4:])]
    if "train_florence.py" in words[1]:
        words += [] if "--model_id" in words else ["--model_id", "tiny"]
        words += ["--epochs", "1"]
    else:
        words += ["--max_length", "8"]
    return subprocess.run(words, cwd=folder, env=environment() | more, capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    # A tracker that ran in this process, for another test, leaves the way to its service behind.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {**clean, "HF_HUB_OFFLINE": "1"}


def test_the_guide_from_first_to_last_command(folder: Path) -> None:
    trained = run(folder, BASIC_TRAINING)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == ""
    assert (folder / "checkpoints" / "adapter_model.safetensors").exists()

    captioned = run(folder, BASIC_INFERENCE)
    assert captioned.returncode == 0, captioned.stderr
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3
    assert {row["task"] for row in rows} == {"<MORE_DETAILED_CAPTION>"}
    assert all((folder / row["image_dir"] / row["file_name"]).exists() for row in rows)

    sampled = run(folder, ADVANCED_INFERENCE)
    assert sampled.returncode == 0, sampled.stderr
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4, "the answers of the first run are kept"


def test_advanced_training_logs_to_wandb(folder: Path) -> None:
    trained = run(folder, ADVANCED_TRAINING, WANDB_MODE="offline", WANDB_SILENT="true")
    assert trained.returncode == 0, trained.stderr
    assert (folder / "advanced" / "adapter_model.safetensors").exists()
    assert list(folder.rglob("*.wandb")), "no offline run was left"
