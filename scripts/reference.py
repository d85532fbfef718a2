"""Write the `--help` texts of all commands to docs/reference/; a test checks that they are fresh."""

import os
import subprocess
import sys
from pathlib import Path

from florence2.cli import COMMANDS

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES = sorted({name.split()[0] for name in COMMANDS})


def page(name: str) -> str:
    """Return the page of a command or of a group of commands, such as `data`."""
    return "\n".join(_help(command) for command in COMMANDS if command.split()[0] == name)


def _help(command: str) -> str:
    """Return the help of a command as a terminal of 100 columns shows it."""
    words = [sys.executable, "-m", "florence2", *command.split(), "--help"]
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    text = subprocess.run(words, env=plain, capture_output=True, check=True, encoding="utf-8").stdout
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"# `florence2 {command}`\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(page(name), encoding="utf-8")
