"""The work of a user under Windows' rules: `python -X warn_default_encoding -m tests.windows_work FOLDER WORK`.

The start method of processes is spawn, as on Windows and Macs; spawned processes import this module, and so keep the
rules, too.
"""

import io
import multiprocessing
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.windows_rules import keep_windows_rules

ROOT = Path(os.environ.setdefault("WINDOWS_ROOT", sys.argv[1] if len(sys.argv) > 1 else "."))
keep_windows_rules(ROOT)


def run(*words: str, code: int = 0) -> None:
    """Run a command, and end the process where it has another exit code."""
    from florence2.cli.program import main

    if main(words) != code:
        raise SystemExit(f"not {code}: {' '.join(words)}")


def import_all() -> None:
    """Import every module of the package."""
    import importlib
    import pkgutil

    import florence2

    for module in pkgutil.walk_packages(florence2.__path__, "florence2."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def convert() -> None:
    """Convert a dataset to every format, and one with names that Windows does not have."""
    from florence2.demo.dataset import make_dataset

    make_dataset(ROOT / "photos", num_samples=3, seed=1)
    for to in ("jsonl", "coco", "yolo", "shards"):
        run("data", "convert", "photos/od.jsonl", f"as_{to}", "--to", to)
    run("data", "convert", "photos", "as_folder", "--to", "folder")
    crlf = (ROOT / "photos/od.jsonl").read_bytes().replace(b"\n", b"\r\n").replace(b'": "0', b'": ".\\\\0')
    (ROOT / "photos/crlf.jsonl").write_bytes(b"\xef\xbb\xbf" + crlf)
    run("data", "check", "photos/crlf.jsonl")
    image = next((ROOT / "photos").glob("*.png")).read_bytes()
    for shard, names in {"case": ("a.png", "A.png"), "colon": ("a:b.png",), "device": ("sub/nul.png",)}.items():
        with tarfile.open(ROOT / f"{shard}.tar", "w") as tar:
            for name in names:
                for each, content in ((name, image), (str(Path(name).with_suffix(".txt")), b"a boat")):
                    entry = tarfile.TarInfo(each)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        run("data", "convert", f"{shard}.tar", f"from_{shard}", "--to", "jsonl", code=2)


def predict() -> None:
    """Predict to a file, again with other settings, to a dataset, to drawn images, to a folder of shards; evaluate."""
    words = ("predict", "--model_path", "demo", "--input_path", "photos", "--task", "od", "--device", "cpu")
    run(*words, "--output_path", "od.jsonl", "--save_images", "drawn")
    run(*words, "--output_path", "od.jsonl", "--num_beams", "2", "--export", "coco=exported")
    run(*words, "--output_path", "job/")
    run(
        "predict", "--model_path", "demo", "--input_path", "case.tar", "--output_path", "c.jsonl", "--save_images", "ab"
    )
    if len(list((ROOT / "ab").iterdir())) != 2:
        raise SystemExit("one drawing replaced another")
    run("evaluate", "--predictions", "od.jsonl", "--references", "photos/od.jsonl", "--html", "report.html")


def train() -> None:
    """Train with workers and checkpoints, resume over them, and export twice to one folder."""
    words = ("train", "--dataset", "photos", "--model_id", "demo", "--num_workers", "1", "--save_every_n_steps", "2")
    run(*words, "--output_dir", "mine", "--epochs", "1", "--val_dataset", "0.3", "--sample_every_n_steps", "1")
    run(*words, "--output_dir", "mine", "--epochs", "2", "--val_dataset", "0.3", "--resume", "auto")
    run(*words, "--output_dir", "full", "--epochs", "1", "--rank", "0")
    for model, to in (("mine", "microsoft"), ("mine", "microsoft"), ("full", "onnx"), ("full", "onnx")):
        run("export", "--model_path", model, "--to", to, "--output_path", to, "--overwrite")


if __name__ == "__main__":
    os.chdir(ROOT)
    multiprocessing.set_start_method("spawn")
    WORK: dict[str, Callable[[], None]] = {"import": import_all, "convert": convert, "predict": predict, "train": train}
    for name in sys.argv[2:]:
        WORK[name]()
