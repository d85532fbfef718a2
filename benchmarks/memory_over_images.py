"""Memory of `florence2 predict` over very many images: of the process and of those that decode, as table and picture.

    python -m benchmarks.memory_over_images
    python -m benchmarks.memory_over_images --num_images 2000 --picture memory.png

Runs the command itself on small JPEG, PNG, WebP and GIF files (links to 40 different ones) in folders of 1,000; one
in a thousand is damaged. The model is a random one that costs little (`tests.tiny`); `--model_path` takes another.
While it runs, the memory of its processes (what each shares with no other one) and its open files are read every two
seconds, and written to `--record` line by line; `--draw` makes table and picture of such a file. Prints the table and a
line of JSON; `--write` writes both to a dated file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw, ImageFont

from benchmarks.processor import processor_name

RESULTS = Path(__file__).parent / "results"
FORMATS = ("jpg", "png", "webp", "gif")
NUM_FILES = 40
IMAGES_PER_FOLDER = 1000
INTERVAL = 2.0  # seconds
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 420, 80, 20, 40, 70
COLOURS = {"the process": (38, 103, 178), "its decoder processes": (214, 93, 14)}
INK, GRID = (40, 40, 40), (225, 228, 232)
MIB = 2**20
Row = dict[str, Any]


def main() -> None:
    """Make the images, run the command, and write down its memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=100_000)
    parser.add_argument("--model_path", help="default: a tiny random model")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/memory_over_images.png"))
    parser.add_argument("--record", type=Path, help="default: a temporary file")
    parser.add_argument("--draw", action="store_true", help="run nothing, and read `--record`")
    parser.add_argument("--write", action="store_true", help=f"also write a dated file into {RESULTS.name}/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = options.record or Path(folder) / "record.jsonl"
        summary: Row = {}
        if not options.draw:
            make_images(Path(folder) / "images", options.num_images)
            model = options.model_path or save_model(Path(folder) / "model")
            summary = run(Path(folder), model, options.num_images, record)
        rows = [json.loads(line) for line in record.open(encoding="utf-8")]
    draw(rows).save(options.picture)
    text = "\n".join(table(rows))
    report = json.dumps({"command": " ".join(sys.argv[1:]), "device": processor_name(), **summary})
    print(f"{text}\n{report}")
    if options.write:
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        title = f"# Memory of prediction over {rows[-1]['done']:,} images: {processor_name()}"
        (RESULTS / f"{date}-memory-over-images.md").write_text(f"{title}\n\n{text}\n\n```json\n{report}\n```\n")


def save_model(folder: Path) -> str:
    """Write the tiny model."""
    from tests.tiny import save_tiny

    return str(save_tiny(folder))


def make_images(folder: Path, number: int) -> None:
    """Make a folder of folders of links to small images, one in a thousand of them damaged."""
    (folder / "files").mkdir(parents=True)
    files = [make_image(folder / "files" / f"{index:02}.{FORMATS[index % 4]}", index) for index in range(NUM_FILES)]
    damaged = folder / "files" / "damaged.jpg"
    damaged.write_bytes(files[0].read_bytes()[:200])
    for index in range(number):
        source = damaged if index % 1000 == 999 else files[index % NUM_FILES]
        target = folder / f"{index // IMAGES_PER_FOLDER:04}" / f"{index:07}{source.suffix}"
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # the file system has no links, or as many of this file as it can
            shutil.copyfile(source, target)
    shutil.rmtree(folder / "files")


def make_image(path: Path, index: int) -> Path:
    """Write an image of 50 to 200 pixels a side."""
    image = Image.effect_noise((50 + index * 37 % 150, 50 + index * 53 % 150), 60).convert("RGB")
    image.save(path)
    return path


def run(folder: Path, model: str, number: int, record: Path) -> Row:
    """Run the command, write down what is read while it runs, and return a summary of its end."""
    output, log = folder / "captions.jsonl", folder / "log"
    words = ["--model_path", model, "--input_path", folder / "images", "--recursive", "--output_path", output]
    command = [sys.executable, "-m", "florence2", "predict", *map(str, words), "--max_length", "2", "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
    with record.open("w", encoding="utf-8") as written:
        for row in watch(psutil.Process(process.pid), output):
            print(json.dumps(row), file=written, flush=True)
    lines = [json.loads(line) for line in output.open(encoding="utf-8")]
    assert process.wait() in (0, 1), log.read_text()[-3000:]
    assert len({row["file_name"] for row in lines}) == len(lines) == number, log.read_text()[-3000:]
    errors = sum("error" in row for row in lines)
    return {"images": number, "errors": errors, "minutes": round(row["seconds"] / 60, 1)}


def watch(process: psutil.Process, output: Path) -> Iterator[Row]:
    """Yield the memory of a process and of its children until it ends."""
    start, position, done = time.monotonic(), 0, 0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if output.exists():
            with output.open("rb") as file:
                file.seek(position)
                content = file.read()
            position, done = position + len(content), done + content.count(b"\n")
        try:
            if done:
                yield {"seconds": time.monotonic() - start, "done": done, **read_memory(process)}
        except psutil.Error:
            continue  # a process ended in between
        time.sleep(INTERVAL)


def read_memory(process: psutil.Process) -> Row:
    """Return MiB of a process and of its children, its open files and the number of its children."""
    children = process.children(recursive=True)
    return {
        "the process": process.memory_full_info().uss / MIB,
        "its decoder processes": sum(child.memory_full_info().uss for child in children) / MIB,
        "open files": process.num_fds(),
        "processes": len(children),
    }


def table(rows: list[Row]) -> list[str]:
    """Return the medians of the twentieth of the run that ends at each part, and the largest values, as Markdown."""
    lines = [
        "| images done | the process, MiB | its decoder processes, MiB | their number | open files |",
        "|---" * 5 + "|",
    ]
    total = rows[-1]["done"]
    for part in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        chosen = [row for row in rows if part - 0.05 <= row["done"] / total <= part] or rows[-1:]
        lines.append(format_row(f"{part * total:,.0f}", chosen, statistics.median))
    lines.append(format_row("largest", rows, max))
    return lines


def format_row(name: str, rows: list[Row], choose: Any) -> str:
    """Return one row of the table."""
    names = (*COLOURS, "processes", "open files")
    return f"| {name} | " + " | ".join(f"{choose([row[each] for row in rows]):.0f}" for each in names) + " |"


def draw(rows: list[Row]) -> Image.Image:
    """Draw the memory of the process and of its decoder processes over the images that are done."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    total = rows[-1]["done"]
    top = max(row[name] for row in rows for name in COLOURS) * 1.15

    def position(done: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * done / total
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    for step in range(0, int(top) + 1, 100):
        y = position(0, step)[1]
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        pen.text((LEFT - 8, y), f"{step} MiB" if step else "0", fill=INK, anchor="rm", font=font)
    for part in range(0, 11, 2):
        x, y = position(total * part / 10, 0)
        pen.text((min(x, WIDTH - 45), y + 12), f"{total * part // 10:,} images", fill=INK, anchor="mm", font=font)
    for number, (name, colour) in enumerate(COLOURS.items()):
        pen.line([position(row["done"], row[name]) for row in rows], fill=colour, width=2)
        x = LEFT + 260 * number
        pen.rectangle((x, HEIGHT - 28, x + 14, HEIGHT - 14), fill=colour)
        pen.text((x + 20, HEIGHT - 21), name, fill=INK, anchor="lm", font=font)
    return image


if __name__ == "__main__":
    main()
