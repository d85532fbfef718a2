"""From our settings to transformers' own: one table of what a flag is called there, and the open door for the rest.

Knows names and values; the model is handed in only where an optimizer asks for its parameters.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType

from florence2.config import SavingSettings, TrainingSettings, TrainSettings
from florence2.errors import UserError
from florence2.settings_io import closest_name_hint, parse_options

WARMUP_FRACTION = 0.03  # share of the training in which the learning rate grows
MAX_GRAD_NORM = 1.0
STREAM_SAVES = 5  # checkpoints of a training on a stream, which has no epochs to be saved after
ONECYCLE = "onecycle"

# What transformers calls our flags; `--trainer_args` refuses these names, because a knob has one home.
FLAG_OF_ARGUMENT = {
    "output_dir": "--output_dir",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "learning_rate": "--learning_rate",
    "optim": "--optim",
    "optim_args": "--optimizer_args",
    "lr_scheduler_type": "--lr_scheduler_type",
    "seed": "--seed",
    "bf16": "--dtype",
    "fp16": "--dtype",
    "use_cpu": "--device",
    "torch_compile": "--compile",
    "gradient_checkpointing": "--gradient_checkpointing",
    "activation_checkpointing": "--gradient_checkpointing",
    "dataloader_num_workers": "--num_workers",
    "report_to": "--log_with",
    "resume_from_checkpoint": "--resume",
    "metric_for_best_model": "--eval_metrics",
    "greater_is_better": "--eval_metrics",
}
# What the trainer counts on.
RESERVED_ARGUMENTS = (
    "remove_unused_columns",
    "label_names",
    "disable_tqdm",
    "predict_with_generate",
    "group_by_length",
)


@dataclass(frozen=True)
class StepCount:
    """How long the training is: steps of the optimizer, all processes together."""

    num_samples: int
    num_processes: int
    batch_size: int
    gradient_accumulation_steps: int
    steps_per_epoch: int
    steps: int

    @property
    def samples_per_step(self) -> int:
        """Count the samples of one step."""
        return self.batch_size * self.gradient_accumulation_steps * self.num_processes


def count_steps(learning: TrainingSettings, images: int, processes: int, max_steps: int = -1) -> StepCount:
    """Count the steps of a training over so many samples."""
    batches = math.ceil(images / (learning.batch_size * processes))
    each = max(math.ceil(batches / learning.gradient_accumulation_steps), 1)
    steps = max_steps if max_steps > 0 else math.ceil(each * learning.epochs)
    return StepCount(images, processes, learning.batch_size, learning.gradient_accumulation_steps, each, steps)


def training_arguments(
    settings: TrainSettings,
    images: int,
    *,
    has_eval: bool,
    device: torch.device,
    dtype: torch.dtype,
    best_metric: tuple[str, bool] = ("loss", False),
) -> Seq2SeqTrainingArguments:
    """Word the settings as transformers' training arguments.

    `measured` says whether there is something to measure, `best_by` which score tells the best and whether it rises.
    """
    learning, saving = settings.training, settings.saving
    door = _extra_args(saving)
    values: dict[str, Any] = {
        "output_dir": saving.output_dir,
        "num_train_epochs": learning.epochs,
        "per_device_train_batch_size": learning.batch_size,
        "per_device_eval_batch_size": learning.batch_size,
        "gradient_accumulation_steps": learning.gradient_accumulation_steps,
        "learning_rate": learning.learning_rate,
        "lr_scheduler_type": _scheduler(learning.lr_scheduler_type),
        "warmup_steps": WARMUP_FRACTION,
        "max_grad_norm": MAX_GRAD_NORM,
        "seed": learning.seed,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "dataloader_num_workers": settings.data.num_workers,
        "dataloader_pin_memory": device.type == "cuda",
        "report_to": resolve_trackers(saving.log_with),
        "run_name": Path(saving.output_dir).name,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "disable_tqdm": True,
        "hub_strategy": "end",
        "metric_for_best_model": f"eval_{best_metric[0]}",
        "greater_is_better": best_metric[1],
        "ddp_find_unused_parameters": False,
    }
    if device.index:
        raise UserError(
            f"training runs on the first GPU that it sees, not on `{device}`",
            f"set CUDA_VISIBLE_DEVICES={device.index} and pass `--device cuda`",
        )
    if settings.data.streaming and saving.save_every_n_steps is None:
        saving = replace(saving, save_every_n_steps=max(int(door.get("max_steps", 1)) // STREAM_SAVES, 1))
    values |= _save_strategy(saving, count_steps(learning, images, 1, int(door.get("max_steps", -1))), has_eval)
    try:
        made = Seq2SeqTrainingArguments(**(values | door))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"transformers refuses these settings: {reason}", "see `--trainer_args`") from error
    if made.accelerator_config.dispatch_batches or made.accelerator_config.split_batches:
        what = "batches are made by each process for itself, and are not cut (`accelerator_config`)"
        raise UserError(what, "leave `dispatch_batches` and `split_batches` out of `--trainer_args`")
    made._n_gpu = min(made.n_gpu, 1)  # more GPUs are more processes, never threads of one
    return made


def resolve_trackers(log_with: str) -> list[str]:
    """Name the trackers that are meant by `--log_with`; refuse what is unknown or not installed."""
    if log_with == "none":
        return []
    if log_with == "all":
        return list(get_available_reporting_integrations())
    names = log_with.split(",")
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["all", "none", *INTEGRATION_TO_CALLBACK]
            raise UserError(f"`--log_with {name}` is not known", closest_name_hint(name, known))
        if name not in get_available_reporting_integrations():
            package = {"comet_ml": "comet_ml", "azure_ml": "azureml-sdk"}.get(name, name)
            raise UserError(f"`--log_with {name}` needs the package {package}", f"run `pip install {package}`")
    return names


def _extra_args(saving: SavingSettings) -> dict[str, Any]:
    known = [field.name for field in fields(Seq2SeqTrainingArguments)]
    given = parse_options("--trainer_args", saving.trainer_args, known)
    for name in given:
        if name in FLAG_OF_ARGUMENT:
            raise UserError(f"`--trainer_args {name}` has a flag of its own", f"use `{FLAG_OF_ARGUMENT[name]}`")
        if name == "hub_token":  # settings are kept, and sent along
            raise UserError("a token is no setting to be kept", "run `hf auth login`, or set HF_TOKEN")
        if name in RESERVED_ARGUMENTS:
            raise UserError(f"`--trainer_args {name}` cannot be changed here", "leave it out")
    return given


def _scheduler(name: str) -> str:
    known = [ONECYCLE, *(kind.value for kind in SchedulerType)]
    if name.lower() not in known:
        raise UserError(f"`--lr_scheduler_type {name}` is not known", closest_name_hint(name.lower(), known))
    return "constant" if name.lower() == ONECYCLE else name.lower()


def _save_strategy(saving: SavingSettings, length: StepCount, measured: bool) -> dict[str, Any]:
    """Say how often to log, save and measure; epochs are counted by `Rhythm`."""
    by_steps = saving.save_every_n_steps is not None
    asked = by_steps or saving.save_every_n_epochs is not None
    values: dict[str, Any] = {
        "logging_strategy": "steps",
        "logging_steps": max(length.steps // 200, 1),
        "save_strategy": "steps" if by_steps else "epoch",
        "save_total_limit": None if asked else 2,
        "eval_strategy": ("steps" if by_steps else "epoch") if measured else "no",
        "load_best_model_at_end": measured,
    }
    if by_steps:
        values |= {"save_steps": saving.save_every_n_steps, "eval_steps": saving.save_every_n_steps}
    return values
