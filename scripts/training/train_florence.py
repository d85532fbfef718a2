"""Fine-tune Florence-2: the published command, handed to `florence2 train`."""

import sys

from florence2.cli import main
from florence2.legacy_cli import TRAIN

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], published=TRAIN, prog="train_florence.py"))
