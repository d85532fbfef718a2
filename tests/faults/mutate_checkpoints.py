"""Loads mutated checkpoints, and reports each that ends otherwise than with a `UserError` or a model that predicts.

    python -m tests.faults.mutate_checkpoints FOLDER FIRST_SEED LAST_SEED

Each seed copies one of the checkpoints in FOLDER, changes one of its files, loads it and predicts an image. The
memory of the process is limited to 2 GiB more than it needs for an intact checkpoint. Prints a JSON object.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.data.sample import Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import UserError
from florence2.model.load import load
from tests.faults.mutations import limit_memory, mutate_file

SPARE_MEMORY = 2 << 30
IMAGE = Image.new("RGB", (40, 30), (200, 10, 10))


def main(folder: Path, first: int, last: int) -> dict[str, Any]:
    """Try the seeds `first` to `last` - 1, and return how they ended."""
    checkpoints = sorted(path for path in folder.iterdir() if path.is_dir())
    for checkpoint in checkpoints:
        assert load_and_predict(checkpoint) == "predicts", checkpoint
    limit_memory(SPARE_MEMORY)
    endings: Counter[str] = Counter()
    failures = []
    for seed in range(first, last):
        with tempfile.TemporaryDirectory() as name:
            copy = Path(name) / "checkpoint"
            mutation = mutate(random.Random(seed), checkpoints, copy)
            try:
                endings[load_and_predict(copy)] += 1
            except UserError as error:
                endings["refused"] += 1
                if "\n" in error.what + error.hint:
                    failures.append(f"seed {seed}, {mutation}: several lines: {error.what}")
            except BaseException as error:
                failures.append(f"seed {seed}, {mutation}: {type(error).__name__}: {str(error)[:300]}")
    return {"endings": endings, "failures": failures}


def load_and_predict(folder: Path) -> str:
    """Load a checkpoint and predict an image with it."""
    model, processor = load(folder, device="cpu", offline=True)
    config = EngineConfig(GenerationConfig(max_length=8), batch_size=1, num_workers=1)
    with Engine(model, processor, config) as engine:
        [prediction] = engine.run([Sample("a.png", IMAGE, "od")])
    return "predicts" if prediction.error is None else "an error for the image"


def mutate(rng: random.Random, checkpoints: list[Path], copy: Path) -> str:
    """Copy a checkpoint, change one file of the copy, and return what was changed."""
    source = rng.choice(checkpoints)
    shutil.copytree(source, copy)
    path = rng.choice(sorted(path for path in copy.iterdir() if path.is_file()))
    name = f"{source.name}/{path.name}"
    if rng.random() < 0.05:
        path.unlink()
        return f"{name} removed"
    return f"{name}: {mutate_file(rng, path)}"


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), indent=1))
