"""`python -m florence2`, so that `accelerate launch -m florence2 train ...` works."""

from florence2.cli.program import run_program

if __name__ == "__main__":
    run_program()
