"""The review page on many rows, in headless Chromium: start, first cells, frames while scrolling, and one accepted row.

    python -m benchmarks.review_page --num_rows 10000 100000 --num_images 10000

Rows are captions of JPEGs of 1024 x 768 pixels, each a file of its own. Frames are 300 steps from the first row to the
last; a screen shows 60 a second, so 16.7 ms is the least. Other load on the machine distorts the result.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from scripts.page_images import BROWSER, BROWSER_FLAGS, run_command

SCROLL = """async () => {
    const grid = document.getElementById("grid");
    const step = grid.scrollHeight / 300;
    const frames = [];
    let last = performance.now();
    for (let i = 0; i < 300; i++) {
        grid.scrollTop += step;
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        frames.push(now - last);
        last = now;
    }
    frames.sort((a, b) => a - b);
    return [frames[150], frames[285], frames[299], document.querySelectorAll("*").length];
}"""
ALL_LOADED = "[...document.querySelectorAll('.cell img')].every((image) => image.naturalWidth > 0)"


def write_images(folder: Path, number: int) -> None:
    """Write JPEGs that differ in their last bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(20):
        file = io.BytesIO()
        pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((1024, 768)).save(file, "JPEG", quality=85)
        encoded.append(file.getvalue())
    for index in range(number):
        (folder / f"{index:06}.jpg").write_bytes(encoded[index % 20] + b"%d" % index)


def write_rows(path: Path, number: int, num_images: int) -> None:
    """Write a table of captions as `predict` does."""
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            row = {"file_name": f"{index % num_images:06}.jpg", "text": f"caption {index} of an image with some words"}
            file.write(json.dumps({**row, "task": "<CAPTION>", "score": 0.5, "image_dir": "photos"}) + "\n")


def wait_until(page: Any, expression: str) -> float:
    """Wait until an expression holds, and return the seconds that it took."""
    start = time.perf_counter()
    while not page.evaluate(expression):
        time.sleep(0.005)
    return time.perf_counter() - start


def measure(browser: Any, folder: Path, num_rows: int) -> str:
    """Open a table in a new process and a new page, and return one row of the result."""
    start = time.perf_counter()
    with run_command(folder, "review", f"{num_rows}.jsonl") as address:
        started = time.perf_counter() - start
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(".cell")
        cells = time.perf_counter() - start
        wait_until(page, ALL_LOADED)
        p50, p95, most, nodes = page.evaluate(SCROLL)
        thumbnails = wait_until(page, ALL_LOADED)
        page.focus("#grid")
        page.keyboard.press("a")
        accepted = wait_until(page, "document.getElementById('count').textContent.endsWith(', 1 accepted')")
        page.close()
    cells_row = [
        f"{num_rows:,}",
        f"{started:.1f} s",
        f"{cells:.1f} s",
        f"{p50:.1f}, {p95:.1f}, {most:.0f} ms",
        str(nodes),
    ]
    return f"| {' | '.join([*cells_row, f'{thumbnails:.1f} s', f'{1000 * accepted:.0f} ms'])} |"


def main() -> None:
    """Print a table with a row for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--num_images", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        write_images(Path(name) / "photos", options.num_images)
        browser = playwright.chromium.launch(executable_path=BROWSER, args=BROWSER_FLAGS)
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print("| rows | start | first cells | frames p50, p95, longest | elements | thumbnails at the end | accept |")
        print("|---|---|---|---|---|---|---|")
        for number in options.num_rows:
            write_rows(Path(name) / f"{number}.jsonl", number, options.num_images)
            print(measure(browser, Path(name), number))
        browser.close()


if __name__ == "__main__":
    main()
