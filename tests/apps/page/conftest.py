"""Headless Chromium for the tests of pages; they are skipped where it is absent."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from florence2.demo.dataset import make_dataset
from tests.apps.page.live_page import read_table

BROWSER = Path("/usr/bin/chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
FLAGS.append("--host-resolver-rules=MAP *.example 127.0.0.1")  # names that their owners point at this machine


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER.exists():
        pytest.skip(f"{BROWSER} is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A page that fails the test where its scripts fail."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(10_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert not errors, errors


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A `captions.jsonl` as `predict` writes it, beside its images: captions and objects of six images."""
    folder = tmp_path / "photos"
    make_dataset(folder, num_samples=6, seed=1)
    rows = []
    for name in ("caption", "od"):
        for number, row in enumerate(read_table(folder / f"{name}.jsonl")):
            score = 0.1 + number / 10
            if name == "od":  # the text of a detection is improbable, its objects may be certain
                row["answer"]["scores"] = [score, *[0.99] * (len(row["answer"]["labels"]) - 1)]
                score /= 100
            rows.append({**row, "num_tokens": 9, "score": score, "image_dir": "photos", "run_id": "abc"})
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
