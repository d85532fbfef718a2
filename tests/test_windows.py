"""Windows and Macs, as far as Linux can play them: rules for files, missing modules, spawn, consoles, paths."""

import ntpath
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest

from florence2.files import reserved_part
from tests.windows_rules import keep_windows_rules

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rules are played on Linux")
ROOT = Path(__file__).parents[1]


def work(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-X", "warn_default_encoding", "-m", "tests.windows_work", str(folder), *names]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_data_and_predictions_under_the_rules_of_windows(tmp_path: Path) -> None:
    done = work(tmp_path, "convert", "predict")
    assert done.returncode == 0, done.stderr
    assert "a.png and A.png differ by case alone" in done.stderr
    assert "a:b.png: `a:b.png` is no file name on Windows" in done.stderr
    assert "sub/nul.png: `nul.png` is no file name on Windows" in done.stderr


@pytest.mark.long
def test_training_and_exports_under_the_rules_of_windows(tmp_path: Path) -> None:
    done = work(tmp_path, "convert", "train")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_every_module_can_be_imported_where_modules_of_linux_are_missing(tmp_path: Path) -> None:
    done = work(tmp_path, "import")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("open('b', 'w').close(); os.rename('a', 'b')", "a rename"),
        ("f = open('a'); os.remove('a')", "has"),
        ("os.mkdir('d'); f = open('d/a', 'w'); os.rename('d', 'e')", "has"),
        ("f = open('a'); os.fsync(f)", "synchronizes"),
        ("open('a:b', 'w')", "a name that Windows refuses"),
        ("open('A', 'w')", "it is a on Windows"),
        ("exec('import fcntl', {'__name__': 'florence2.files'})", "No module named 'fcntl'"),
        ("exec('import os; os.kill', {'__name__': 'florence2.files'})", "no attribute 'kill'"),
        ("exec('open(\"a\")', {'__name__': 'florence2.files'})", "'encoding' argument not specified"),
    ],
)
def test_rules_refuse_what_windows_refuses(tmp_path: Path, code: str, what: str) -> None:
    (tmp_path / "a").touch()
    start = "import os, sys; from pathlib import Path; from tests.windows_rules import *; "
    words = f"{start} root = Path(sys.argv[1]); os.chdir(root); {keep_windows_rules.__name__}(root); {code}"
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", words, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert what in done.stderr.splitlines()[-1]


NAMES = [
    ("a/b.jpg", ""),
    ("../a.jpg", ""),
    ("a/con.jpg", "con.jpg"),
    ("CON", "CON"),
    ("con .jpg", "con .jpg"),  # spaces before the extension do not count
    ("nul.tar.gz", "nul.tar.gz"),
    ("a\\b?.jpg", "b?.jpg"),
    ("console.jpg", ""),
    ("a.con", ""),
    ("a./b.jpg", "a."),
    ("a /b.jpg", "a "),
    ("COM1", "COM1"),
    ("com10.jpg", ""),
    ("com0.jpg", ""),
    ("LPT³.txt", "LPT³.txt"),
    ("CONIN$", "CONIN$"),
    ("cat\tdog.jpg", "cat\tdog.jpg"),
    ("C:a.jpg", "C:a.jpg"),
    ("猫.jpg", ""),
]


@pytest.mark.parametrize(("name", "part"), NAMES)
def test_reserved_part_is_the_first_that_windows_refuses(name: str, part: str) -> None:
    assert reserved_part(name) == part


@pytest.mark.parametrize(("name", "part"), NAMES)
def test_python_itself_calls_the_same_names_reserved(name: str, part: str) -> None:
    last = PureWindowsPath(name.replace("C:", "C_")).name  # a drive of its own for Python
    if hasattr(ntpath, "isreserved"):
        assert ntpath.isreserved(last) == bool(reserved_part(last))
    elif PureWindowsPath(last).is_reserved():  # Python before 3.13 knows the devices alone
        assert reserved_part(last)


CONSOLE = ((0, "--help"), (0, "train", "--help"), (1, "data", "check", "photos"), (2, "evaluate", "--nonsense"))


def test_output_fits_the_console_of_windows(tmp_path: Path) -> None:
    """A console of Windows has the encoding cp1252, and names may have letters that it lacks."""
    (tmp_path / "photos").mkdir()
    for name in ("猫", "plain"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(b"no image")
        (tmp_path / "photos" / f"{name}.txt").write_text("a caption", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    for code, *words in CONSOLE:
        command = [sys.executable, "-m", "florence2", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        output, log = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
        assert (done.returncode, "Traceback" in log) == (code, False), log
        assert "check" not in words or "\\u732b.jpg" in output
