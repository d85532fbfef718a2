"""Benchmark: processor seconds of `florence2 data check` on large datasets, against another checkout of this project.

    python -m benchmarks.data_check --rival ../old --rows 100000 --num_rounds 3

Both checkouts check the same files, in alternating order. The images are one small JPEG under many names (hard links).
"""

import argparse
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def link_images(folder: Path, number: int) -> None:
    """Write one JPEG and link it under a name for each number."""
    folder.mkdir(parents=True)
    first = folder / "0.jpg"
    Image.new("RGB", (100, 100), "red").save(first)
    for each in range(1, number):
        os.link(first, folder / f"{each}.jpg")


def write_captions(folder: Path, rows: int) -> str:
    """Write a fifth as many images as rows, each with a caption file."""
    number = rows // 5
    link_images(folder, number)
    for each in range(number):
        (folder / f"{each}.txt").write_text(f"a red square, number {each}\n")
    return str(folder)


def write_jsonl(folder: Path, rows: int) -> str:
    """Write rows of captions about a hundredth as many images."""
    number = max(rows // 100, 1)
    link_images(folder, number)
    lines = (json.dumps({"file_name": f"{each % number}.jpg", "text": f"caption {each}"}) for each in range(rows))
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "list.jsonl")


def write_coco(folder: Path, rows: int) -> str:
    """Write annotations, ten for each image."""
    number = max(rows // 10, 1)
    link_images(folder, number)
    images = [{"id": each, "file_name": f"{each}.jpg", "width": 100, "height": 100} for each in range(number)]
    rng = random.Random(0)
    boxes = [
        {
            "id": each,
            "image_id": each % number,
            "category_id": each % 7,
            "bbox": [rng.randrange(70), rng.randrange(60), rng.randrange(5, 30), rng.randrange(5, 40)],
        }
        for each in range(rows)
    ]
    categories = [{"id": each, "name": f"class {each}"} for each in range(7)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return str(folder)


def write_tar(folder: Path, rows: int) -> str:
    """Write a fifth as many samples as rows: an image and a caption."""
    folder.mkdir(parents=True)
    encoded = io.BytesIO()
    Image.new("RGB", (100, 100), "red").save(encoded, "JPEG")
    with tarfile.open(folder / "samples.tar", "w") as tar:
        for each in range(rows // 5):
            for name, content in ((f"{each}.jpg", encoded.getvalue()), (f"{each}.txt", b"a red square %d" % each)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(folder / "samples.tar")


DATASETS: dict[str, Callable[[Path, int], str]] = {
    "captions": write_captions,
    "jsonl": write_jsonl,
    "coco": write_coco,
    "tar": write_tar,
}


def check_seconds(checkout: Path, dataset: str) -> float:
    """Return the processor seconds of `data check` in a checkout; issues are allowed, errors are not."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    words = [sys.executable, "-m", "florence2", "data", "check", dataset]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(words, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1) or not run.stdout:
        raise SystemExit(run.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line for each dataset: the medians of both checkouts, and the median of the ratios of pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival", type=Path, required=True, help="another checkout")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--dataset", nargs="*", choices=DATASETS, default=list(DATASETS))
    options = parser.parse_args()
    print("| dataset | this checkout, s | rival, s | ratio |\n|---|---|---|---|")
    for name in options.dataset:
        with tempfile.TemporaryDirectory() as folder:
            dataset = DATASETS[name](Path(folder) / name, options.rows)
            pairs = []
            for number in range(options.num_rounds):
                order = (ROOT, options.rival.resolve())[:: 1 if number % 2 else -1]
                seconds = {checkout: check_seconds(checkout, dataset) for checkout in order}
                pairs.append((seconds[ROOT], seconds[options.rival.resolve()]))
        ours, rival = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {name} | {ours:.2f} | {rival:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
