"""Write the `--help` pages of all commands to docs/reference/; a test checks that they are fresh."""

import os
import subprocess
import sys
from pathlib import Path

from florence2.cli import COMMANDS

PAGES = Path(__file__).parents[1] / "docs" / "reference"


def page(command: str) -> str:
    """Give one command's page: its help as a reader of a 100-column terminal sees it."""
    words = [sys.executable, "-m", "florence2", command, "--help"]
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    text = subprocess.run(words, env=plain, capture_output=True, check=True, encoding="utf-8").stdout
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"# `florence2 {command}`\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name in COMMANDS:
        (PAGES / f"{name}.md").write_text(page(name), encoding="utf-8")
