"""Configuration of a run, and transformers' training arguments made of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import SchedulerType

from florence2.errors import OptionError
from florence2.settings_io import closest_name_hint, parse_options
from florence2.training.optimizer.optimizer_config import ONECYCLE, OptimizerConfig

WARMUP_FRACTION = 0.03  # of the steps
MAX_GRAD_NORM = 1.0
STREAM_SAVES = 5  # checkpoints of a run on a stream, which has no epochs

# A flag sets each of these training arguments, so `--trainer_args` does not.
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
# The trainer depends on the values of these.
RESERVED_ARGUMENTS = (
    "remove_unused_columns",
    "label_names",
    "disable_tqdm",
    "predict_with_generate",
    "group_by_length",
)


@dataclass(frozen=True)
class Interval:
    """How often something happens: every so many epochs, every so many optimizer steps, both or neither."""

    epochs: int | None = None
    steps: int | None = None

    @property
    def is_set(self) -> bool:
        """Return whether there is an interval at all."""
        return self.epochs is not None or self.steps is not None


@dataclass(frozen=True)
class BatchConfig:
    """Samples of one forward pass on one device, and how many of those make an optimizer step."""

    batch_size: int
    gradient_accumulation_steps: int = 1

    @property
    def samples_per_step(self) -> int:
        """Count the samples of an optimizer step on one device."""
        return self.batch_size * self.gradient_accumulation_steps


@dataclass(frozen=True)
class RunConfig:
    """What transformers' training arguments are made of.

    `trackers` are names of transformers' integrations, `trainer_args` further fields of `Seq2SeqTrainingArguments`.
    """

    output_dir: str
    epochs: float
    seed: int
    batch: BatchConfig
    optimizer: OptimizerConfig
    save_interval: Interval = field(default_factory=Interval)
    trackers: Sequence[str] = ()
    num_workers: int = 0
    is_streaming: bool = False
    trainer_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_steps(self) -> int:
        """Return the number of steps that ends the run, or -1 if its epochs end it."""
        return int(self.trainer_args.get("max_steps", -1))


@dataclass(frozen=True)
class StepCount:
    """Length of a run in optimizer steps, over all processes."""

    num_samples: int
    num_processes: int
    batch: BatchConfig
    steps_per_epoch: int
    steps: int

    @property
    def samples_per_step(self) -> int:
        """Count the samples of an optimizer step on all devices."""
        return self.batch.samples_per_step * self.num_processes


def count_steps(run: RunConfig, num_samples: int, num_processes: int = 1) -> StepCount:
    """Count the steps of a run over so many samples an epoch."""
    batches = math.ceil(num_samples / (run.batch.batch_size * num_processes))
    steps_per_epoch = max(math.ceil(batches / run.batch.gradient_accumulation_steps), 1)
    steps = run.max_steps if run.max_steps > 0 else math.ceil(steps_per_epoch * run.epochs)
    return StepCount(num_samples, num_processes, run.batch, steps_per_epoch, steps)


def training_arguments(
    run: RunConfig,
    num_samples: int,
    *,
    has_eval: bool,
    device: torch.device,
    dtype: torch.dtype,
    best_metric: tuple[str, bool] = ("loss", False),
) -> Seq2SeqTrainingArguments:
    """Make transformers' training arguments of a run over so many samples an epoch.

    `has_eval` is whether there are samples to evaluate on. `best_metric` names the metric of the best checkpoint and
    whether higher is better.
    """
    _check_first_gpu(device)
    save_interval = run.save_interval
    if run.is_streaming and save_interval.steps is None:
        save_interval = replace(save_interval, steps=max(run.max_steps // STREAM_SAVES, 1))
    values: dict[str, Any] = {
        "output_dir": run.output_dir,
        "num_train_epochs": run.epochs,
        "per_device_train_batch_size": run.batch.batch_size,
        "per_device_eval_batch_size": run.batch.batch_size,
        "gradient_accumulation_steps": run.batch.gradient_accumulation_steps,
        "learning_rate": run.optimizer.learning_rate,
        "lr_scheduler_type": _scheduler(run.optimizer),
        "warmup_steps": WARMUP_FRACTION,
        "max_grad_norm": MAX_GRAD_NORM,
        "seed": run.seed,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "dataloader_num_workers": run.num_workers,
        "dataloader_pin_memory": device.type == "cuda",
        "report_to": list(run.trackers),
        "run_name": Path(run.output_dir).name,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "disable_tqdm": True,
        "hub_strategy": "end",
        "metric_for_best_model": f"eval_{best_metric[0]}",
        "greater_is_better": best_metric[1],
        "ddp_find_unused_parameters": False,
    } | _save_strategy(save_interval, count_steps(run, num_samples), has_eval)
    try:
        args = Seq2SeqTrainingArguments(**(values | dict(run.trainer_args)))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"transformers rejects these settings: {reason}", "see `--trainer_args`") from error
    if args.accelerator_config.dispatch_batches or args.accelerator_config.split_batches:
        what = "each process makes its own batches (`accelerator_config`)"
        raise OptionError(what, "remove `dispatch_batches` and `split_batches` from `--trainer_args`")
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs need a process each, not a thread each
    return args


def parse_trainer_args(words: Sequence[str]) -> dict[str, Any]:
    """Parse the `key=value` words of `--trainer_args`."""
    args = parse_options("--trainer_args", tuple(words), [item.name for item in fields(Seq2SeqTrainingArguments)])
    for name in args:
        if name in FLAG_OF_ARGUMENT:
            raise OptionError(f"`--trainer_args {name}` has its own flag", f"use `{FLAG_OF_ARGUMENT[name]}`")
        if name == "hub_token":  # settings are saved and sent to trackers
            raise OptionError("a token must not be saved with the settings", "run `hf auth login`, or set HF_TOKEN")
        if name in RESERVED_ARGUMENTS:
            raise OptionError(f"`--trainer_args {name}` is set by florence2", "remove it")
    return args


def _check_first_gpu(device: torch.device) -> None:
    if device.index:
        raise OptionError(
            f"training runs on the first visible GPU, not on `{device}`",
            f"set CUDA_VISIBLE_DEVICES={device.index} and pass `--device cuda`",
        )


def _scheduler(optimizer: OptimizerConfig) -> str:
    """Return the schedule that transformers makes; `onecycle` is made by the trainer."""
    name = optimizer.lr_scheduler_type
    known = [ONECYCLE, *(kind.value for kind in SchedulerType)]
    if name.lower() not in known:
        raise OptionError(f"`--lr_scheduler_type {name}` is not known", closest_name_hint(name.lower(), known))
    return "constant" if optimizer.uses_one_cycle else name.lower()


def _save_strategy(interval: Interval, length: StepCount, has_eval: bool) -> dict[str, Any]:
    """Choose when to log, save and evaluate; the callback `SaveEveryNEpochs` counts epochs."""
    unit = "epoch" if interval.steps is None else "steps"
    values: dict[str, Any] = {
        "logging_strategy": "steps",
        "logging_steps": max(length.steps // 200, 1),
        "save_strategy": unit,
        "save_total_limit": None if interval.is_set else 2,
        "eval_strategy": unit if has_eval else "no",
        "load_best_model_at_end": has_eval,
    }
    if interval.steps is not None:
        values |= {"save_steps": interval.steps, "eval_steps": interval.steps}
    return values
