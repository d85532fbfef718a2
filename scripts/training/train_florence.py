"""Fine-tune Florence-2: the published command, handed to `florence2 train`."""

import sys

from florence2.cli import run_program
from florence2.legacy_cli import TRAIN

if __name__ == "__main__":
    run_program(["train", *sys.argv[1:]], published=TRAIN, prog="train_florence.py")
