"""Checkpoint folders of transformers, `checkpoint-<step>`: list, validate, write atomically."""

import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from florence2.files import parse_json

STAGING_PREFIX = ".unfinished"
STATE = "trainer_state.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


def last_checkpoint(output_dir: Path) -> Path | None:
    """Return the valid checkpoint with the most steps."""
    return next((folder for folder in reversed(list_checkpoints(output_dir)) if is_valid_checkpoint(folder)), None)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the checkpoints of a folder by their steps, valid or not."""
    folders = [path for path in output_dir.glob("checkpoint-*") if path.is_dir()] if output_dir.is_dir() else []
    return sorted((path for path in folders if re.fullmatch(r"checkpoint-\d+", path.name)), key=steps_of)


def steps_of(folder: Path) -> int:
    """Return the number of steps in a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


def is_valid_checkpoint(folder: Path) -> bool:
    """Return whether a checkpoint is complete: every file that resuming needs exists and is readable."""
    try:
        parse_json((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _has_complete_weights(folder) and all(_is_complete_zip(file) for file in folder.glob("*.pt*"))


def staging_dir(output_dir: Path) -> Path:
    """Make the folder that a checkpoint is written into before `commit_checkpoint` moves it."""
    folder = output_dir / STAGING_PREFIX
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit_checkpoint(written: Path, final: Path) -> None:
    """Move a complete checkpoint to its final path, after its bytes are on the disk."""
    for file in written.rglob("*"):
        if file.is_file():
            with file.open("rb+") as opened:  # Windows synchronizes no file that is open for reading
                os.fsync(opened.fileno())
    if final.exists():
        shutil.rmtree(final)
    written.replace(final)


def remove_staging(output_dir: Path) -> None:
    """Remove the files of a checkpoint that a kill has interrupted."""
    shutil.rmtree(output_dir / STAGING_PREFIX, ignore_errors=True)


def _has_complete_weights(folder: Path) -> bool:
    files = [folder / name for name in WEIGHTS if (folder / name).exists()]
    files += folder.glob("model-*.safetensors")
    try:
        for file in files:
            with safe_open(file, framework="np"):
                pass
    except (OSError, SafetensorError):
        return False
    # FSDP and DeepSpeed write weights into subfolders.
    return bool(files) or any(path.is_dir() for path in folder.iterdir())


def _is_complete_zip(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
