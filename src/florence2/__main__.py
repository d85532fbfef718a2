"""`python -m florence2`, so that `accelerate launch -m florence2 train ...` works."""

import sys

from florence2.cli import main

if __name__ == "__main__":
    sys.exit(main())
