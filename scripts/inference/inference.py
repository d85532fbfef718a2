"""Caption pictures with a fine-tuned Florence-2: the published command, handed to `florence2 predict`."""

import sys

from florence2.cli import run_program
from florence2.legacy_cli import PREDICT

if __name__ == "__main__":
    run_program(["predict", *sys.argv[1:]], published=PREDICT, prog="inference.py")
