"""Fine-tune Florence-2: the published command, handed to `florence2 train`."""

import sys

from florence2.cli.legacy_cli import TRAIN
from florence2.cli.program import run_program

if __name__ == "__main__":
    run_program(["train", *sys.argv[1:]], published=TRAIN, prog="train_florence.py")
