"""Write the screenshots of the pages, docs/images/page.png and review.png, from generated images in a real browser."""

import io
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from florence2 import predict
from florence2.demo.dataset import make_dataset

IMAGES = Path(__file__).parents[1] / "docs" / "images"
BROWSER = "/usr/bin/chromium"
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def wait_for(host: str, port: int) -> None:
    """Wait until a server accepts connections."""
    for _ in range(200):
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing answers at {host}:{port}")


@contextmanager
def run_command(folder: Path, *words: str) -> Iterator[str]:
    """Run a command of florence2 that serves a page, in a folder; yield its address."""
    command = [sys.executable, "-m", "florence2", *words, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                if found := re.search(r"http://([\d.]+):(\d+)", line):
                    wait_for(found[1], int(found[2]))
                    yield found[0]
                    break
            else:
                raise RuntimeError("".join(lines))
        finally:
            process.terminate()


def show_ask_view(page: Any, address: str, images: list[Path]) -> None:
    """Drop images and detect objects on one of them."""
    page.goto(address)
    page.wait_for_selector("#task option", state="attached")
    page.set_input_files("#files", [str(path) for path in images])
    page.wait_for_selector("#answer:not([hidden])")
    page.select_option("#task", "od")
    page.wait_for_selector(".canvas .shape")


def show_review(page: Any, address: str) -> None:
    """Filter, accept some rows, and open the objects of one in the editor."""
    page.goto(address)
    page.wait_for_selector(".cell img[src]")
    for _ in range(4):
        page.keyboard.press("a")
        page.wait_for_timeout(150)
        page.keyboard.press("ArrowRight")
    page.select_option("#task", "od")
    page.wait_for_timeout(200)
    page.focus("#grid")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(".editor .shape")
    page.focus("#objects [data-role=select]")
    page.wait_for_timeout(600)


def save_screenshot(page: Any, path: Path) -> None:
    """Write a screenshot with a palette, which takes a third of the bytes."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Write both screenshots."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name) / "photos"
        make_dataset(folder, num_samples=40, seed=100)
        table = folder.parent / "captions.jsonl"
        predict(model_path="demo", input_path=str(folder), output_path=str(table), task=["caption", "od"], device="cpu")
        browser = playwright.chromium.launch(executable_path=BROWSER, args=BROWSER_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        with run_command(folder.parent, "serve", "--model_path", "demo", "--device", "cpu") as address:
            show_ask_view(page, address, sorted(folder.glob("*.png"))[4:12])
            save_screenshot(page, IMAGES / "page.png")
        with run_command(folder.parent, "review", "captions.jsonl") as address:
            show_review(page, address)
            save_screenshot(page, IMAGES / "review.png")
        browser.close()


if __name__ == "__main__":
    main()
