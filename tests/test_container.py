"""The container file names what exists, and what it runs gives a `florence2` that works."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "container" / "Containerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in FILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_container_file_names_what_exists() -> None:
    by_name: dict[str, list[str]] = {}
    for name, rest in instructions():
        by_name.setdefault(name, []).append(rest)
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "USER", "ENV", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert set(by_name) <= known
    copied = [word for rest in by_name["COPY"] if "--from" not in rest for word in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    allowed = (FILE.with_name("Containerfile.dockerignore")).read_text("utf-8").split()
    assert {f"!{name}" for name in copied} == {line for line in allowed if line.startswith("!")}
    [extras] = [rest.partition("=")[2].split(",") for rest in by_name["ARG"] if rest.startswith("EXTRAS=")]
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    version = re.match(r"python:3\.(\d+)-slim", by_name["FROM"][-1])
    assert version
    assert f"Programming Language :: Python :: 3.{version[1]}" in PROJECT["classifiers"]
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert by_name["USER"] == ["florence2"]
    assert by_name["ENTRYPOINT"] == ['["florence2"]']
    assert "florence2" in PROJECT["scripts"]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="the lines are of a shell on Linux")
def test_lines_of_the_container_file_install_a_command_that_runs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    environment = os.environ | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "EXTRAS": "serve,evaluate",
        "TORCH_INDEX": "",
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    of_tests = {"PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1"}  # the dependencies are those of the tests
    for name, rest in instructions():
        if name == "RUN" and not rest.startswith("useradd"):
            line = rest.replace("/wheels", str(tmp_path / "wheels"))
            added = of_tests if "pip install" in line else {}
            subprocess.run(["sh", "-euc", line], cwd=ROOT, env=environment | added, check=True)
    outside = environment | {"PYTHONPATH": environment["PYTHONPATH"].replace(str(ROOT), "")}
    done = subprocess.run([scripts / "florence2", "--version"], env=outside, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PROJECT["version"]
