"""Files that no image reader expects: pipes, links to themselves, names that are not UTF-8, other extensions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2.cli.program import main
from florence2.data.folders.listing import walk
from florence2.data.image import ImageError, open_image
from florence2.data.resolve import DatasetOptions, resolve_dataset

PREDICT = ["predict", "--model_path", "demo", "--max_length", "4", "--batch_size", "2"]


def save_images(folder: Path, *names: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30), "red").save(folder / "new.png", format="JPEG")
        (folder / "new.png").rename(folder / os.fsdecode(name))
    return folder


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line; a run that hangs fails the test."""
    command = [sys.executable, "-m", "florence2", *map(str, words)]
    return subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, **environment}, check=False)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pipe_is_counted_and_not_opened(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jfif", "c.jpg_large", "d", "IMG_1.heic2")
    os.mkfifo(folder / "x\n\x1b[2J.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    output = tmp_path / "o.jsonl"
    result = run(*PREDICT, "--input_path", folder, "--output_path", output)
    errors = {row["file_name"]: row.get("error") for row in read_rows(output)}
    assert errors.keys() == {"a.jpg", "b.jfif", "loop.jpg"}
    assert errors["a.jpg"] is None
    assert errors["b.jfif"] is None
    assert "loop.jpg cannot be read" in str(errors["loop.jpg"])
    assert result.returncode == 1
    assert (
        b"1 pipe or device, 1 .heic2, 1 .jpg_large, 1 without an extension; the first is x\\n\\x1b[2J.jpg\n"
        in result.stderr
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_output_path_that_cannot_be_written_is_refused_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("gone/o.jsonl")
    for path in ("loop", "link", "photos/a.jpg/o.jsonl"):
        assert main([*PREDICT, "--input_path", str(folder), "--output_path", str(tmp_path / path)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("hint: pass ")
    checkpoint = f"{tmp_path}/\udcff"
    assert main(["train", "--dataset", str(folder), "--model_id", "demo", "--output_dir", checkpoint]) == 2
    assert "is not UTF-8, which tokenizers and safetensors need" in capsys.readouterr().err
    words = [*PREDICT, "--input_path", str(folder), "--output_path", "-", "--sidecar", "../x"]
    assert main(words) == 2
    assert "`--sidecar ../x` is not an extension" in capsys.readouterr().err


def test_pipe_that_a_table_lists_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(ImageError, match="is not a regular file"):
        open_image(tmp_path / "x.jpg")


def test_link_to_a_parent_folder_is_not_followed(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg")
    save_images(folder / "deep", "b.jpg")
    (folder / "deep" / "up").symlink_to(folder)
    found = [listing.id(name) for listing in walk(folder, recursive=True) for name in listing.images()]
    assert found == ["a.jpg", "deep/b.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_name_that_is_not_utf8_is_predicted_resumed_and_trained_on(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", b"caf\xe9.jpg", "b.jpg")
    output = tmp_path / "o.jsonl"
    words = (*PREDICT, "--input_path", folder, "--output_path", output, "--do_sample", "--sidecar", ".txt")
    assert run(*words).returncode == 0
    assert b'"caf\\udce9.jpg"' in output.read_bytes()
    assert {row["file_name"] for row in read_rows(output)} == {"b.jpg", os.fsdecode(b"caf\xe9.jpg")}
    before = output.read_bytes()
    assert b"2 predictions of an earlier run" in run(*words[:-2]).stderr
    assert output.read_bytes() == before
    samples = resolve_dataset(output, DatasetOptions("caption")).samples
    assert [sample.open().size for sample in samples] == [(40, 30)] * 2
    words = ("train", "--dataset", output, "--model_id", "demo", "--output_dir", tmp_path / "r")
    trained = run(*words, "--trainer_args", "max_steps=1")
    assert trained.returncode == 0, trained.stderr
