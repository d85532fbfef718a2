"""Resuming a run: its checkpoint, the settings that must not change, the command that continues it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2.errors import CheckpointError, OptionError
from florence2.model.storage.run_metadata import METADATA_FILE, read_run_metadata
from florence2.settings_io import setting_words
from florence2.training.saving.checkpoints import is_valid_checkpoint, last_checkpoint, list_checkpoints

# These settings decide which weights a checkpoint holds, their shapes and those of the optimizer's state.
COMPATIBILITY_KEYS = ("model_id", "revision", "quantize", "freeze", "rank", "target_modules", "lora_args", "optim")


def resolve_resume(resume: str, output_dir: Path) -> Path | None:
    """Return the checkpoint that `--resume` names, or None to start from the base model.

    `auto` takes the last valid checkpoint of the output folder. `never` raises OptionError if the folder holds a run
    already, so that nothing is overwritten. A path names a checkpoint or a folder of checkpoints.
    """
    if resume == "auto":
        return last_checkpoint(output_dir)
    if resume == "never":
        _require_unused(output_dir)
        return None
    folder = Path(resume).expanduser()
    checkpoint = folder if is_valid_checkpoint(folder) else last_checkpoint(folder)
    if checkpoint is None:
        what = "is damaged or no checkpoint" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"`--resume {resume}` {what}", "pass a folder `checkpoint-...`, or pass `--resume auto`")
    return checkpoint


def check_resume_compatible(checkpoint: Path, settings: Mapping[str, Any]) -> None:
    """Raise OptionError if settings, by flat name, need other weights than a checkpoint holds."""
    metadata = read_run_metadata(checkpoint)
    if metadata is None:
        return
    current = json.loads(json.dumps(dict(settings)))
    for name in COMPATIBILITY_KEYS:
        saved = metadata.settings.get(name, current[name])
        if saved != current[name]:
            raise OptionError(
                f"{checkpoint} was trained with `--{name} {saved}`, not `{current[name]}`",
                "pass the same value, or another `--output_dir`",
            )


def train_command(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Write settings, by flat name, as a command line; settings that equal their default do not appear."""
    words = ["florence2", "train"]
    for name, value in settings.items():
        if value != defaults[name]:
            words += setting_words(name, value)
    return shlex.join(words)


def _require_unused(output_dir: Path) -> None:
    checkpoints = list_checkpoints(output_dir)
    if checkpoints or (output_dir / METADATA_FILE).exists():
        name = checkpoints[-1].name if checkpoints else METADATA_FILE
        raise OptionError(
            f"`{output_dir}` holds a run already ({name})",
            "pass `--resume auto` to resume it, or another `--output_dir`",
        )
