"""Caption pictures with a fine-tuned Florence-2: the published command, handed to `florence2 predict`."""

import sys

from florence2.cli.legacy_cli import PREDICT
from florence2.cli.program import run_program

if __name__ == "__main__":
    run_program(["predict", *sys.argv[1:]], published=PREDICT, prog="inference.py")
