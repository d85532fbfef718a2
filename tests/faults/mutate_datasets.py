"""Reads mutated datasets, and reports each that ends otherwise than with a `UserError`, a report or samples.

    python -m tests.faults.mutate_datasets FOLDER FIRST_SEED LAST_SEED

Each seed copies one of the datasets in FOLDER, or of a table of each kind with the same images, changes 1 to 8 of its
rows (a JSON object, a line of a text, some bytes of a file of any kind), checks it as `data check` does, lists its
samples as training does, and streams them. A reader that needs more than `SECONDS` of a processor is reported, too.
Prints a JSON object.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

from florence2.api import check_dataset
from florence2.config import DEFAULT_TASK
from florence2.data.columns import ColumnMapping
from florence2.data.hub import is_saved_dataset
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.streams.tars.tar_source import find_shards
from florence2.errors import UserError
from tests.faults.mutations import limit_memory, mutate_file

SPARE_MEMORY = 3 << 30
SECONDS = 30
NUM_CHANGES = (1, 1, 2, 4, 8)
# Datasets that are named by a file or folder inside them.
SPECS = {
    "icdar_datumaro": "default",
    "kohya": "meta_cap.json",
    "llava": "train.json",
    "ms_swift": "train.jsonl",
    "ocr_lines": "train.jsonl",
    "table_json": "metadata.json",
    "trl": "train.jsonl",
}


class TooSlowError(BaseException):
    """Reports a reader that needs more than `SECONDS` of a processor; no reader catches it."""


def main(folder: Path, first: int, last: int) -> dict[str, Any]:
    """Try the seeds `first` to `last` - 1, and return how they ended, for each dataset."""
    signal.signal(signal.SIGPROF, raise_too_slow)
    endings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        originals = Path(shutil.copytree(folder, Path(scratch) / "originals"))  # on the file system of the links
        write_tables(originals)
        datasets = sorted(path for path in originals.iterdir() if path.is_dir())
        for dataset in datasets:
            for read in READERS:  # none is refused, and libraries are loaded
                read(dataset / SPECS.get(dataset.name, ""))
        limit_memory(SPARE_MEMORY)
        for seed in range(first, last):
            source = datasets[seed % len(datasets)]
            copy = Path(shutil.copytree(source, Path(scratch) / source.name, copy_function=os.link))
            try:
                failures += try_readers(seed, copy, endings[source.name])
            finally:
                shutil.rmtree(copy)
    return {"endings": sum(endings.values(), Counter()), "datasets": endings, "failures": failures}


def raise_too_slow(*_: object) -> None:
    """Interrupt a reader."""
    raise TooSlowError


def write_tables(corpus: Path) -> None:
    """Write a table of each kind and a saved dataset into the corpus, with its images."""
    rows = [{"file_name": f"{name}.png", "text": f"a {name}<loc_5>", "task": "caption"} for name in "ab"]
    parquet = import_module("pyarrow.parquet")
    table = import_module("pyarrow").Table.from_pylist(rows)
    lines = [",".join(row.values()) for row in rows]
    contents = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "csv": "\n".join([",".join(rows[0]), *lines]),
        "json": json.dumps(rows),
    }
    for kind in (*contents, "parquet", "saved"):
        path = corpus / f"table_{kind}"
        path.mkdir()
        if kind == "saved":
            datasets = import_module("datasets")
            datasets.disable_progress_bars()
            images = [{"image": str(corpus / "docvqa" / row["file_name"]), "text": row["text"]} for row in rows]
            saved = datasets.Dataset.from_list(images).cast_column("image", datasets.Image())
            saved.save_to_disk(path)
            continue
        for row in rows:
            shutil.copy(corpus / "docvqa" / row["file_name"], path)
        if kind == "parquet":
            parquet.write_table(table, path / "metadata.parquet")
        else:
            (path / f"metadata.{kind}").write_text(contents[kind], encoding="utf-8")


def try_readers(seed: int, copy: Path, endings: Counter[str]) -> list[str]:
    """Change a file of a dataset, read it in every way, count how they ended, and return what should not happen."""
    rng, failures, changes = random.Random(seed), [], []
    for _ in range(rng.choice(NUM_CHANGES)):
        path = rng.choice(annotation_files(copy))
        replace_link(path)
        changes.append(f"{path.relative_to(copy.parent)}: {mutate_file(rng, path)}"[:400])
    endings["rows changed"] += len(changes)
    mutation = f"seed {seed}, {'; '.join(changes)}"
    for read in READERS:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            endings[read(copy / SPECS.get(copy.name, ""))] += 1
        except UserError as error:
            endings["refused"] += 1
            if "\n" in error.what + error.hint:
                failures.append(f"{mutation}: several lines: {error.what[:200]!r}")
        except BaseException as error:
            failures.append(f"{mutation}: {read.__name__}: {type(error).__name__}: {error}"[:4000])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return failures


def replace_link(path: Path) -> None:
    """Replace a link to a file by a copy of its own."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


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


def stream_samples(dataset: Path) -> str:
    """Read an epoch as training with `--streaming` does, where shards are read by this project."""
    if not is_saved_dataset(dataset) and not find_shards(str(dataset)):
        return "is not streamed"
    source = find_sharded_source(str(dataset), ColumnMapping(DEFAULT_TASK), offline=True)
    for sample in SampleStream(source).epoch(0):
        assert isinstance(sample.target, str), sample.target
    return "is streamed"


READERS = (check, list_samples, stream_samples)

if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), indent=1))
