"""The folder of an export: complete or absent, whatever happens while it is written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from florence2.errors import OptionError, UserError
from florence2.export.export_folder import EXPORT_FILE, export_folder
from florence2.files import WriteLock

MODEL = Path("/nowhere/model")
# Writes half of an export and says so, then waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from florence2.export.export_folder import export_folder
with export_folder(Path(sys.argv[1]), overwrite=True, model_path=Path("/nowhere/model")) as folder:
    (folder / "model.safetensors").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)
"""


def write_export(path: Path, text: str, *, overwrite: bool = False) -> None:
    with export_folder(path, overwrite=overwrite, model_path=MODEL) as folder:
        (folder / EXPORT_FILE).write_text(text)


def kill_writer(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)


def test_folder_appears_at_the_end_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with export_folder(path, overwrite=False, model_path=MODEL) as folder:
        (folder / EXPORT_FILE).write_text("{}")
        assert not path.exists()
    assert sorted(each.name for each in path.parent.iterdir()) == ["b"]
    assert [each.name for each in path.iterdir()] == [EXPORT_FILE]


def test_files_have_the_rights_of_the_folder(tmp_path: Path) -> None:
    with export_folder(tmp_path / "a", overwrite=False, model_path=MODEL) as folder:
        (folder / "weights").touch(mode=0o600)
    assert (tmp_path / "a" / "weights").stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o666


def test_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        export_folder(tmp_path / "a" / "b", overwrite=False, model_path=MODEL) as folder,
    ):
        (folder / EXPORT_FILE).write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_only_an_export_is_replaced_and_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_export(path, "old")
    with pytest.raises(OptionError, match="exists already"):
        write_export(path, "new")
    with pytest.raises(ZeroDivisionError), export_folder(path, overwrite=True, model_path=MODEL):
        1 / 0  # noqa: B018
    assert (path / EXPORT_FILE).read_text() == "old"
    write_export(path, "new", overwrite=True)
    assert (path / EXPORT_FILE).read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_other_content_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="is not an export"):
        write_export(tmp_path / "photos", "new", overwrite=True)
    with pytest.raises(OptionError, match="is a file"):
        write_export(tmp_path / "file", "new", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_export(tmp_path / "file" / "out", "new")
    write_export(tmp_path / "empty", "new")
    assert {each.name for each in tmp_path.iterdir()} == {"photos", "file", "empty"}


def test_exported_model_is_not_replaced(tmp_path: Path) -> None:
    write_export(tmp_path / "out", "old")
    for model_path in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        model_path.mkdir(exist_ok=True)
        with (
            pytest.raises(OptionError, match="holds the model that is exported"),
            export_folder(tmp_path / "out", overwrite=True, model_path=model_path),
        ):
            pass
    assert (tmp_path / "out" / EXPORT_FILE).read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGKILL")
def test_killed_export_is_cleaned_up_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_export(path, "old")
    kill_writer(path)
    assert (path / EXPORT_FILE).read_text() == "old"
    assert (tmp_path / ".out.unfinished" / "model.safetensors").read_bytes() == b"half"
    write_export(path, "new", overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert [each.name for each in path.iterdir()] == [EXPORT_FILE]


def test_export_that_was_killed_between_its_renames_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_export(path, "old")
    path.rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.unfinished").mkdir()
    with pytest.raises(OptionError, match="exists already"):
        write_export(path, "new")
    assert (path / EXPORT_FILE).read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
from florence2.cli.program import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
sys.exit(main(["export", "--model_path", "demo", "--output_path", {str(tmp_path / "out")!r}]))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines() == [
        f"error: there is no space for `{tmp_path / 'out'}`; nothing was written",
        "hint: free some space, or pass another `--output_path`",
    ]
    assert list(tmp_path.iterdir()) == []


def test_two_exports_do_not_write_one_folder(tmp_path: Path) -> None:
    lock = WriteLock(tmp_path / "out")
    try:
        with pytest.raises(OptionError, match="another export writes"):
            write_export(tmp_path / "out", "new")
    finally:
        lock.release()
    assert list(tmp_path.iterdir()) == []
