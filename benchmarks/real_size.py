"""Training and prediction at real size: one epoch over four images, then four captions, each in its own process.

    uv run python benchmarks/real_size.py [--size base|large]

The checkpoint is in Microsoft's layout, with the real names, shapes, config and tokenizer and with random weights, so
time and memory are real and the captions are noise. Prints a table, and one line of JSON last.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from florence2.demo.dataset import make_dataset

FILES = Path(__file__).parents[1] / "tests" / "fixtures" / "hub"


def write_checkpoint(folder: Path, size: str) -> None:
    """Write a checkpoint with random weights in the files of the hub."""
    folder.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(FILES / f"microsoft-{size}" / name, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FILES / "microsoft-large" / name, folder)
    with gzip.open(FILES / f"microsoft-{size}" / "shapes.json.gz", "rt", encoding="utf-8") as file:
        shapes: dict[str, list[int]] = json.load(file)
    generator = torch.Generator().manual_seed(0)
    state = {name: _random_weights(name, shape, generator) for name, shape in shapes.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _random_weights(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    if "norm" in name:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
    if name.endswith(("bias", "final_logits_bias")):
        return torch.zeros(shape, dtype=torch.float16)
    return (torch.randn(shape, generator=generator) * 0.02).half()


def measure(name: str, arguments: list[str]) -> dict[str, object]:
    """Run a command in its own process and return its duration and peak memory."""
    start = time.monotonic()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "florence2", *arguments], dict(os.environ))
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{name} failed: {' '.join(arguments)}")
    seconds = round(time.monotonic() - start, 1)
    return {"job": name, "seconds": seconds, "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def main() -> None:
    """Measure both jobs and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["base", "large"], default="base")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, images, adapter = folder / "model", make_dataset(folder / "images", num_samples=4), folder / "adapter"
        write_checkpoint(model, size)
        train = ["train", "--dataset", str(images), "--output_dir", str(adapter), "--model_id", str(model)]
        caption = ["predict", "--input_path", str(images), "--output_path", str(folder / "captions.jsonl")]
        rows = [
            measure("train, one epoch of 4 images", [*train, "--epochs", "1"]),
            measure("predict, 4 images, 40 tokens", [*caption, "--model_path", str(adapter), "--max_length", "40"]),
        ]
    print(f"{size}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    for row in rows:
        print(f"{row['job']:34}{row['seconds']:>8} s{row['peak_gib']:>8} GiB")
    print(json.dumps({"size": size, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
