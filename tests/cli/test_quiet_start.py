"""Nothing but florence2 speaks: no line of a library on stderr, none at all with `--quiet`."""

import subprocess
import sys
from pathlib import Path

from florence2.demo.dataset import make_dataset
from tests.tiny import save_tiny

TRAIN = "train --dataset photos --model_id tiny --output_dir mine --trainer_args max_steps=1"
PREDICT = "predict --model_path mine --input_path photos --output_path"
SCRIPT = f"""
import sys
from florence2.cli.program import main

def run(words):
    print(f"$ {{words}}", file=sys.stderr)
    assert main(words.split()) == 0

run("{TRAIN}")
run("{PREDICT} loud.jsonl")
run("{PREDICT} quiet.jsonl --quiet")
run("{TRAIN} --quiet".replace("mine", "again"))
print("$ Python", file=sys.stderr)
import florence2
florence2.Florence2("mine")("photos/0000.png")
"""


def test_no_line_of_a_library_comes_before_ours_nor_after(tmp_path: Path) -> None:
    make_dataset(tmp_path / "photos", num_samples=2, seed=1)
    save_tiny(tmp_path / "tiny")
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    train, predict, *quiet = [part.splitlines()[1:] for part in done.stderr.split("$ ")[1:]]
    assert train[0] == "2 samples from 2 images in photos/"
    assert [line.split()[0] for line in train[1:5]] == ["2", "LoRA", "about", "curves,"]
    assert train[-1].startswith("saved mine (steps 1, ")
    assert [line.split()[0] for line in predict] == ["time:", "2", "the"]
    assert quiet == [[], [], []]
    assert (tmp_path / "quiet.jsonl").read_bytes().count(b"\n") == 2
