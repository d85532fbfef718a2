"""The command line as a process: config files, and output that nobody reads or that a full disk refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from florence2.cli.program import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder whose report and captions are longer than the buffers of stdout and of a pipe."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(400):
        Image.new("RGB", (4, 4)).save(folder / f"{number}-{'x' * 230}.png")
    (folder / f"0-{'x' * 230}.txt").write_text("a black image", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", "rank: 8\ncompile: true\noffline: false\n"), ("a.toml", "rank = 8\ncompile = true\n")],
)
def test_command_line_wins_over_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    from florence2.recipes import train

    runs = []
    monkeypatch.setattr(train, "main", lambda settings: runs.append(settings) or 0)
    (tmp_path / name).write_text(text, encoding="utf-8")
    for words in ([], ["--rank", "2"]):
        config = ["--config", str(tmp_path / name)]
        assert main(["train", "--dataset", "d", "--output_dir", "o", *words, *config]) == 0
    assert [(each.lora.rank, each.training.compile, each.hub.offline) for each in runs] == [
        (8, True, False),
        (2, True, False),
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--config", "list.yaml"], "list.yaml contains no `flag: value` lines"),
        (["--config", "unknown.yaml"], "`rnak` in unknown.yaml is not a setting"),
        (["--config", "damaged.yaml"], "damaged.yaml is not valid"),
        (["--config"], "`--config` has no value"),
        (["--config="], "`--config` has no value"),
    ],
)
def test_config_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"list": "- rank", "unknown": "rnak: 8", "damaged": "rank: [8"}.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "--dataset", "d", "--output_dir", "o", *words]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such pipes")
@pytest.mark.parametrize("words", [["train", "--help"], ["data", "check", "photos", "--json"]], ids=" ".join)
def test_reader_that_ends_early_ends_the_command_without_a_traceback(photos: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "florence2", *words]
    with subprocess.Popen(command, cwd=photos.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_output_that_a_full_disk_refuses_is_an_error(photos: Path) -> None:
    image = next(photos.glob("0-*.png"))
    (photos / "one.jsonl").write_text(json.dumps({"file_name": image.name, "text": "a"}), encoding="utf-8")
    command = [sys.executable, "-m", "florence2", "data", "check", "one.jsonl"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, cwd=photos, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: No space left on device")
