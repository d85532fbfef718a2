"""The command `florence2 review` in a process of its own, and predictions asked again on the page."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import florence2
from florence2.apps.page.run_review import load_model
from florence2.cli.program import main
from florence2.config import InferenceSettings, ReviewSettings
from florence2.data.resolve import DatasetOptions, resolve_dataset
from tests.apps.page.live_page import TOKEN, serve_review, wait_for_rows, wait_until

PROGRAM = """
import sys
from florence2.cli.program import main
code = main(sys.argv[1:])
assert not {"torch", "transformers"} & set(sys.modules), "a model was imported"
sys.exit(code)
"""


def test_the_command_serves_without_a_model_until_a_signal(table: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "review", str(table), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"12 rows of (.*) at (http://127\.0\.0\.1:\d+)", line)
        assert found, line + process.stderr.read()
        page = httpx.get(found[2], timeout=20)
        token = re.search(r'name="token" content="([^"]+)"', page.text)
        assert token
        change = {"changes": [{"row": 2, "version": 0, "text": "from the page"}]}
        response = httpx.post(f"{found[2]}/review/changes", json=change, headers={"x-florence2-token": token[1]})
        assert response.status_code == 200
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0, rest
    targets = converted_targets(table)
    assert targets["0002.png"] == "from the page"


def converted_targets(table: Path) -> dict[str, str]:
    converted = table.parent / "converted"
    assert main(["data", "convert", str(table), str(converted), "--to", "jsonl"]) == 0
    samples = resolve_dataset(converted, DatasetOptions("caption")).samples
    return {Path(sample.id).name: str(sample.target) for sample in samples if sample.task == "<CAPTION>"}


def test_what_cannot_start_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["review", str(tmp_path / "absent"), "--port", "0"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["review", str(tmp_path), "--port", "70000"]) == 2
    assert "--port" in capsys.readouterr().err


def test_a_model_predicts_a_row_again(page, table: Path) -> None:
    settings = ReviewSettings(str(table), model_path="demo", compute=InferenceSettings(device="cpu", dtype="float32"))
    ask_row = load_model(settings)
    image = table.parent / "photos" / "0000.png"
    with serve_review(table, ask_row=ask_row) as url:
        answer = httpx.post(f"{url}/review/ask/6", headers={"x-florence2-token": TOKEN, "content-length": "0"}).json()
        model = florence2.Florence2("demo", device="cpu", dtype="float32")
        expected = model(image, "od")
        assert answer["text"] == expected.text
        assert [each["label"] for each in answer["objects"]] == expected.labels
        page.goto(url)
        page.wait_for_selector(".cell")
        page.focus("#grid")
        page.keyboard.press("Enter")
        page.fill("#text", "nonsense")
        page.click("#ask")
        caption = model(image, "caption").text
        wait_until(page, f"document.getElementById('text').value === {caption!r}")
        page.fill("#text", caption + "!")
        page.click("#save")
        wait_for_rows(table, lambda rows: rows[0]["text"] == caption + "!")
    model.close()
