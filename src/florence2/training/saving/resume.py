"""Resuming a run: its checkpoint, the settings that must not change, the command that continues it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from florence2.devices import dtype_warning, training_dtype
from florence2.errors import CheckpointError, OptionError
from florence2.files import parse_json, require_utf8_path
from florence2.log import count_noun, logger
from florence2.model.storage.run_metadata import METADATA_FILE, read_run_metadata
from florence2.settings_io import setting_words
from florence2.training.saving.checkpoints import STATE, is_valid_checkpoint, last_checkpoint, list_checkpoints

# These settings decide which weights a checkpoint holds, their shapes and those of the optimizer's state.
COMPATIBILITY_KEYS = ("model_id", "revision", "quantize", "freeze", "rank", "target_modules", "lora_args", "optim")
# These decide the order of the samples, which a resumed run continues.
ORDER_KEYS = ("seed", "sampling_weights", "streaming")
# These change the rest of a resumed run, whose result no uninterrupted run has.
_TRAINING_KEYS = (
    *("epochs", "learning_rate", "vision_learning_rate", "lora_plus_ratio", "lr_scheduler_type", "optimizer_args"),
    *("trainer_args", "alpha", "dropout", "model_dropout_args", "max_length", "augment", "caption_args"),
    *("shuffle_captions", "frozen_parts", "caption_dropout", "task"),
)


def resolve_resume(resume: str, output_dir: Path) -> Path | None:
    """Return the checkpoint that `--resume` names, or None to start from the base model.

    `auto` takes the last valid checkpoint of the output folder. `never` raises OptionError if the folder holds a run
    already, so that nothing is overwritten. A path names a checkpoint or a folder of checkpoints.
    """
    require_utf8_path(output_dir)
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
    """Raise OptionError if settings, by flat name, need other weights or another order than a checkpoint's run.

    Other settings that differ are named in the log.
    """
    metadata = read_run_metadata(checkpoint)
    if metadata is None:
        return
    current = json.loads(json.dumps(dict(settings)))
    for name in (*COMPATIBILITY_KEYS, *ORDER_KEYS):
        saved = metadata.settings.get(name, current[name])
        if saved != current[name]:
            raise OptionError(
                f"{checkpoint} was trained with `--{name} {saved}`, not `{current[name]}`",
                "pass the same value, or another `--output_dir`",
            )
    changed = [
        f"`--{name} {current[name]}` instead of {metadata.settings[name]}"
        for name in _TRAINING_KEYS
        if metadata.settings.get(name, current[name]) != current[name]
    ]
    if changed:
        logger.warning(
            f"{checkpoint.name} was trained with other settings: {', '.join(changed)}; no uninterrupted run has the"
            " result of this one, because the learning rate and what else they decide changes at this step"
        )


def check_resume_dtype(checkpoint: Path | None, dtype: torch.dtype, device: torch.device) -> None:
    """Raise OptionError if a checkpoint was trained in another dtype than that of the run that resumes it.

    A checkpoint of an earlier version names its dtype only where `--dtype` was passed.
    """
    metadata = read_run_metadata(checkpoint) if checkpoint else None
    if metadata is None:
        return
    current = str(dtype).removeprefix("torch.")
    saved = metadata.dtype or metadata.settings.get("dtype", "auto")
    if saved == "auto":
        logger.warning(
            f"{checkpoint} does not name the dtype it was trained in; this run goes on in {current}. Earlier versions"
            " trained in float32 on every CPU: pass `--dtype float32` to go on so"
        )
    elif saved != current:
        note = dtype_warning(training_dtype(saved, device), device).removeprefix("note: ")
        raise OptionError(
            f"{checkpoint} was trained in {saved}, and this run would go on in {current} on {device}",
            f"pass `--dtype {saved}`{f' ({note})' if note else ''}, or another `--output_dir` with"
            f" `--model_id {checkpoint}` to train these weights further in {current}",
        )


def check_resume_data(checkpoint: Path | None, data: Mapping[str, Any]) -> None:
    """Raise OptionError if the samples or their number in a step, of `RunMetadata.data`, are not the checkpoint's.

    The order of the samples is continued by their number, so that others would be left out or repeated.
    """
    metadata = read_run_metadata(checkpoint) if checkpoint else None
    saved = metadata.data if metadata else {}
    hint = f"pass another `--output_dir`, with `--model_id {checkpoint}` to train these weights further"
    if saved.get("samples_per_step", data["samples_per_step"]) != data["samples_per_step"]:
        raise OptionError(
            f"a step of {checkpoint} had {count_noun(saved['samples_per_step'], 'sample')}, and now it would have"
            f" {data['samples_per_step']}",
            "choose `--batch_size` and `--gradient_accumulation_steps` with the same product (times the processes)",
        )
    if saved.get("num_samples", data["num_samples"]) != data["num_samples"]:
        raise OptionError(
            f"{checkpoint} was trained on {saved['num_samples']} samples, and the dataset now has"
            f" {data['num_samples']}",
            hint,
        )
    if saved.get("fingerprint", data["fingerprint"]) != data["fingerprint"]:
        raise OptionError(f"the dataset has changed since {checkpoint}: other images or targets", hint)


def check_resume_steps(checkpoint: Path | None, num_steps: int) -> None:
    """Raise OptionError if a checkpoint has more steps than the run that resumes it."""
    if checkpoint is None:
        return
    state = parse_json((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["global_step"] > num_steps:
        raise OptionError(
            f"{checkpoint} has {state['global_step']} steps, and this run would end after {num_steps}",
            "pass more `--epochs`, or the checkpoint as `--model_path` where it is to be used",
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
