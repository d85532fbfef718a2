"""Readers under inputs that are guided by coverage, for a moment: `tests.faults.fuzz` runs for longer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("atheris")
ROOT = Path(__file__).parents[2]


def fuzz(reader: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.fuzz", reader, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout, run.stderr[-2000:]
    result: dict[str, Any] = json.loads(run.stdout)
    return result


@pytest.mark.parametrize("reader", ["answer", "coco"])
def test_reader_survives_what_reaches_new_code(reader: str) -> None:
    result = fuzz(reader, "--runs", "500")
    assert result["finds"] == {}
    assert result["executions"] == 500
    assert result["new inputs"] > 3


@pytest.mark.long
@pytest.mark.parametrize("reader", ["jsonl", "csv", "json", "coco", "yolo", "voc", "labelme", "tar"])
def test_dataset_reader_survives_for_minutes(reader: str) -> None:
    assert fuzz(reader, "--seconds", "180")["finds"] == {}


@pytest.mark.long
@pytest.mark.parametrize("reader", ["locations", "prompt", "answer", "config", "adapter", "settings"])
def test_other_reader_survives_for_minutes(reader: str) -> None:
    assert fuzz(reader, "--seconds", "180")["finds"] == {}
