"""Checkpoints that are whole or not there: written aside, then renamed; damaged ones are passed over.

A checkpoint is transformers' own folder `checkpoint-<step>`. This file knows what must be in it and no more.
"""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from florence2.errors import UserError
from florence2.model.storage.run_metadata import METADATA_FILE

STAGING_PREFIX = ".unfinished"
STATE = "trainer_state.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


def resolve_resume(resume: str, output_dir: Path) -> Path | None:
    """Find the checkpoint that `--resume` means; None starts anew.

    `never` refuses a folder that holds a training, so that nothing is overwritten. A path may be a checkpoint or a
    folder of them.
    """
    if resume == "auto":
        return last_checkpoint(output_dir)
    if resume == "never":
        _refuse_earlier(output_dir)
        return None
    folder = Path(resume).expanduser()
    found = folder if is_valid_checkpoint(folder) else last_checkpoint(folder)
    if found is None:
        what = "is damaged or no checkpoint" if folder.is_dir() else "is not there"
        raise UserError(f"`--resume {resume}` {what}", "name a folder `checkpoint-...`, or pass `--resume auto`")
    return found


def last_checkpoint(output_dir: Path) -> Path | None:
    """Find the checkpoint with the most steps that is not damaged."""
    return next((folder for folder in reversed(list_checkpoints(output_dir)) if is_valid_checkpoint(folder)), None)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the checkpoints of a folder by their steps, sound or not."""
    found = output_dir.glob("checkpoint-*") if output_dir.is_dir() else []
    numbered = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in found if path.is_dir()}
    return sorted((path for path, number in numbered.items() if number), key=steps_of)


def steps_of(folder: Path) -> int:
    """Read the steps from a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


def is_valid_checkpoint(folder: Path) -> bool:
    """Tell whether all that a resume needs is there and can be read to its end."""
    try:
        json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _weights_are_whole(folder) and all(_is_whole_zip(file) for file in folder.glob("*.pt*"))


def staging_dir(output_dir: Path) -> Path:
    """Give a folder to write into; what is whole in it is moved out by `settle`."""
    folder = output_dir / STAGING_PREFIX
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit_checkpoint(written: Path, final: Path) -> None:
    """Move a written checkpoint to its place, its bytes on the disk first."""
    for file in written.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if final.exists():
        shutil.rmtree(final)
    written.replace(final)


def remove_staging(output_dir: Path) -> None:
    """Remove what a kill in the middle of writing has left."""
    shutil.rmtree(output_dir / STAGING_PREFIX, ignore_errors=True)


def _refuse_earlier(output_dir: Path) -> None:
    earlier = list_checkpoints(output_dir)
    if earlier or (output_dir / METADATA_FILE).exists():
        what = earlier[-1].name if earlier else METADATA_FILE
        raise UserError(
            f"`{output_dir}` holds a training already ({what})",
            "pass `--resume auto` to go on with it, or another `--output_dir`",
        )


def _weights_are_whole(folder: Path) -> bool:
    named = [folder / name for name in WEIGHTS if (folder / name).exists()]
    named += folder.glob("model-*.safetensors")
    try:
        for file in named:
            with safe_open(file, framework="np"):
                pass
    except (OSError, SafetensorError):
        return False
    # FSDP and DeepSpeed keep weights in folders of their own.
    return bool(named) or any(path.is_dir() for path in folder.iterdir())


def _is_whole_zip(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
