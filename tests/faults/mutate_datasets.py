"""Reads mutated datasets, and reports each that ends otherwise than with a `UserError`, a report or samples.

    python -m tests.faults.mutate_datasets FOLDER FIRST_SEED LAST_SEED

Each seed copies one of the datasets in FOLDER, changes one of its files, checks it as `data check` does, and lists its
samples as training does. Prints a JSON object.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any

from florence2.api import check_dataset
from florence2.config import DEFAULT_TASK
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import UserError
from tests.faults.mutations import mutate_file

MEMORY = 3 << 30
SECONDS = 30


def main(folder: Path, first: int, last: int) -> dict[str, Any]:
    """Try the seeds `first` to `last` - 1, and return how they ended."""
    datasets = sorted(path for path in folder.iterdir() if path.is_dir())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    endings: Counter[str] = Counter()
    failures = []
    for seed in range(first, last):
        rng = random.Random(seed)
        source = datasets[seed % len(datasets)]
        with tempfile.TemporaryDirectory() as name:
            copy = Path(shutil.copytree(source, Path(name) / source.name))
            path = rng.choice(annotation_files(copy))
            mutation = f"{path.relative_to(name)}: {mutate_file(rng, path)}"
            for read in (check, list_samples):
                try:
                    endings[read(copy)] += 1
                except UserError as error:
                    endings["refused"] += 1
                    if "\n" in error.what + error.hint:
                        failures.append(f"seed {seed}, {mutation}: several lines: {error.what[:200]!r}")
                except BaseException as error:
                    failures.append(f"seed {seed}, {mutation}: {read.__name__}: {type(error).__name__}: {error}"[:500])
    return {"endings": endings, "failures": failures}


def annotation_files(dataset: Path) -> list[Path]:
    """Return the files other than images; all files where there are only images."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    return [path for path in files if path.suffix.lower() not in {".jpg", ".png", ".jpeg"}] or files


def check(dataset: Path) -> str:
    """Check a dataset as `data check` does."""
    report = check_dataset(dataset=str(dataset), offline=True)
    json.dumps(report.to_json(), allow_nan=False)
    return "has issues" if report.issues else "has none"


def list_samples(dataset: Path) -> str:
    """List the samples as training does."""
    resolved = resolve_dataset(str(dataset), DatasetOptions(DEFAULT_TASK, offline=True))
    for sample in resolved.samples:
        assert sample.target is None or isinstance(sample.target, str), sample.target
        assert isinstance(sample.input, str)
        assert all(map(isfinite, map(float, sample.size())))
    return "has samples"


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), indent=1))
