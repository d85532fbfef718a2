"""Progress where people watch it: a terminal that is resized, and a notebook."""

import os
import re
import struct
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

SCRIPT = """
import logging, os, sys, time
from florence2.data.sample import Prediction
from florence2.log import log_to_stderr
from florence2.results.progress import PredictProgressBar

with log_to_stderr(), PredictProgressBar(40) as bar:
    for number in range(40):
        bar.update(Prediction(f"{number}.png", "<CAPTION>", text="a dog", num_tokens=2), 3, 16)
        time.sleep(0.03)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such terminals")
def test_bar_fits_a_terminal_that_becomes_narrow() -> None:
    import fcntl
    import pty
    import termios

    def resize(columns: int) -> None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    ours, theirs = pty.openpty()
    resize(110)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stderr=theirs, stdout=theirs, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    screen = b""
    while True:
        try:
            screen += os.read(ours, 65536)
        except OSError:  # the process has ended
            break
        if re.search(rb"[1-9]\d?/40", screen):
            resize(60)
    assert process.wait() == 0
    frames = [re.sub(r"\x1b\[[?\d;]*\w", "", frame).strip("\r\n") for frame in screen.decode().split("\r")]
    widths = [len(frame) for frame in frames if "predictions" in frame]
    assert max(widths) > 60
    assert max(widths[-3:]) <= 60


def test_notebook_shows_one_line_that_is_written_again() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCRIPT.replace("log_to_stderr(), ", ""))])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert {output.name for output in outputs} == {"stderr"}
    text = "".join(output.text for output in outputs)
    assert "40/40" in text.split("\r")[-1]
    assert text.count("\n") == 1
