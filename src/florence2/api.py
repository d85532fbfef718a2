# ruff: noqa: A002
"""The recipes as Python functions: every flag of a command is a keyword, with the default of `config.py`.

Written by `python scripts/api.py`. Values of several words take a list, or one word as it is; `key=value` words may be
a mapping, and a path may be a `Path`. The help texts of the flags are in docs/reference/. Importing this module imports
no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from florence2 import config
from florence2.settings_io import settings_from_dict

if TYPE_CHECKING:
    from florence2.data.inspection.convert import ConversionResult
    from florence2.data.inspection.dataset_report import DatasetReport
    from florence2.export.export_result import ExportResult
    from florence2.recipes.shards.predict_status import JobStatus
    from florence2.results.progress import RunSummary


def train(
    *,
    dataset: str | PathLike[str] | Sequence[str | PathLike[str]],
    output_dir: str | PathLike[str],
    sampling_weights: str | Sequence[str] | Mapping[str, object] = (),
    streaming: bool = False,
    val_dataset: str | PathLike[str] | None = None,
    caption_extension: str = ".txt",
    on_missing: Literal["error", "skip"] = "error",
    task: str = "more_detailed_caption",
    num_workers: int = 0,
    save_every_n_epochs: int | None = None,
    save_every_n_steps: int | None = None,
    sample_every_n_epochs: int | None = None,
    sample_every_n_steps: int | None = None,
    eval_metrics: str | Sequence[str] = (),
    eval_samples: int = 100,
    early_stopping: int | None = None,
    resume: str | PathLike[str] = "never",
    log_with: str = "none",
    trainer_args: str | Sequence[str] | Mapping[str, object] = (),
    dataset_dir: str | PathLike[str] | None = None,
    recursive: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    model_id: str | PathLike[str] = "microsoft/Florence-2-base-ft",
    quantize: bool = False,
    freeze: Literal["none", "vision", "language"] = "none",
    model_dropout_args: str | Sequence[str] | Mapping[str, object] = (),
    revision: str | None = None,
    offline: bool = False,
    device: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    rank: int = 4,
    alpha: float = 4,
    dropout: float = 0.25,
    target_modules: str | Sequence[str] = ("qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
    lora_args: str | Sequence[str] | Mapping[str, object] = (),
    epochs: float = 5,
    batch_size: int = 1,
    gradient_accumulation_steps: int = 1,
    auto_batch: bool = False,
    learning_rate: float = 0.0001,
    optim: str = "adamw_torch_fused",
    optimizer_args: str | Sequence[str] | Mapping[str, object] = (),
    lr_scheduler_type: str = "warmup_stable_decay",
    vision_learning_rate: float | None = None,
    lora_plus_ratio: float | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    seed: int = 42,
    shuffle_captions: bool = False,
    frozen_parts: int = 0,
    caption_dropout: float = 0.0,
    caption_args: str | Sequence[str] | Mapping[str, object] = (),
    augment: str | Sequence[str] | Mapping[str, object] = (),
    max_length: int | None = None,
    preview: int = 0,
) -> Path:
    """Fine-tune Florence-2 on images with annotations, and return the folder with the result.

    The result is the checkpoint with the best evaluation where there is a validation set, else the last state.
    """
    settings = settings_from_dict(config.TrainSettings, locals())
    from florence2.recipes.train import run_train

    return run_train(settings)


def predict(
    *,
    model_path: str | PathLike[str],
    input_path: str | PathLike[str],
    base_model: str | PathLike[str] | None = None,
    task: str | Sequence[str] = (),
    task_input: str = "",
    recursive: bool = False,
    output_path: str | PathLike[str] = "captions.jsonl",
    overwrite_output: bool = False,
    sidecar: str | None = None,
    if_exists: Literal["skip", "overwrite", "append", "prepend"] = "skip",
    export: str | Sequence[str] | Mapping[str, object] = (),
    save_images: str | PathLike[str] | None = None,
    prefix: str = "",
    suffix: str = "",
    max_length: int = 256,
    num_beams: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    min_score: float = 0.0,
    generation_args: str | Sequence[str] | Mapping[str, object] = (),
    revision: str | None = None,
    offline: bool = False,
    device: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"] = "auto",
    devices: str | None = None,
    batch_size: int | None = None,
    engine: Literal["continuous", "generate"] = "continuous",
    compile: Literal["auto", "on", "off"] = "auto",
    num_workers: int = 2,
    image_workers: Literal["processes", "threads"] = "processes",
    full_decode: bool = False,
    cluster: str | None = None,
    max_in_flight: int | None = None,
) -> RunSummary:
    """Run a task on every image, write the predictions to `output_path`, and return a summary."""
    settings = settings_from_dict(config.PredictSettings, locals())
    from florence2.recipes.predict import run_predict

    return run_predict(settings)


def predict_status(
    *,
    status: str | PathLike[str],
) -> JobStatus:
    """Read how far a prediction is from its output."""
    settings = settings_from_dict(config.StatusSettings, locals())
    from florence2.recipes.shards.predict_status import run_status

    return run_status(settings)


def evaluate(
    *,
    references: str | PathLike[str],
    task: str | None = None,
    dataset_dir: str | PathLike[str] | None = None,
    recursive: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    predictions: str | PathLike[str] | None = None,
    compare: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    model_path: str | PathLike[str] | None = None,
    base_model: str | PathLike[str] | None = None,
    text_metrics: Literal["auto", "caption", "ocr", "answer"] = "auto",
    missing_predictions: Literal["wrong", "skip"] = "wrong",
    meteor: bool = False,
    bootstrap_samples: int = 1000,
    output_path: str | PathLike[str] = "-",
    html: str | PathLike[str] | None = None,
    num_worst: int = 12,
    max_length: int = 256,
    num_beams: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    min_score: float = 0.0,
    generation_args: str | Sequence[str] | Mapping[str, object] = (),
    revision: str | None = None,
    offline: bool = False,
    device: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"] = "auto",
    devices: str | None = None,
    batch_size: int | None = None,
    engine: Literal["continuous", "generate"] = "continuous",
    compile: Literal["auto", "on", "off"] = "auto",
    num_workers: int = 2,
    image_workers: Literal["processes", "threads"] = "processes",
    full_decode: bool = False,
) -> dict[str, Any]:
    """Score predictions against references, and return the scores as the JSON file holds them."""
    settings = settings_from_dict(config.EvaluateSettings, locals())
    from florence2.recipes.evaluate import run_evaluate

    return run_evaluate(settings)


def export(
    *,
    model_path: str | PathLike[str],
    output_path: str | PathLike[str],
    base_model: str | PathLike[str] | None = None,
    to: Literal["transformers", "microsoft", "adapter-microsoft", "onnx", "openvino"] = "transformers",
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "q4"] = "auto",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    images: str | PathLike[str] | None = None,
    push_to_hub: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> ExportResult:
    """Write a model in the layout of another program, compare it with the model, and return a summary."""
    settings = settings_from_dict(config.ExportSettings, locals())
    from florence2.recipes.export import run_export

    return run_export(settings)


def check_dataset(
    *,
    dataset: str | PathLike[str],
    task: str = "more_detailed_caption",
    offline: bool = False,
    dataset_dir: str | PathLike[str] | None = None,
    recursive: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    model_id: str | PathLike[str] | None = None,
    json: bool = False,
) -> DatasetReport:
    """Count the samples of a dataset and list its errors."""
    settings = settings_from_dict(config.CheckSettings, locals())
    from florence2.recipes.data import run_check

    return run_check(settings)


def preview_dataset(
    *,
    dataset: str | PathLike[str],
    task: str = "more_detailed_caption",
    offline: bool = False,
    dataset_dir: str | PathLike[str] | None = None,
    recursive: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    output: str | PathLike[str] = "data.html",
    num_samples: int = 32,
    seed: int = 0,
) -> Path:
    """Write an HTML page with images and their targets, and return its path."""
    settings = settings_from_dict(config.PreviewSettings, locals())
    from florence2.recipes.data import run_preview

    return run_preview(settings)


def convert_dataset(
    *,
    dataset: str | PathLike[str],
    output: str | PathLike[str],
    task: str = "more_detailed_caption",
    offline: bool = False,
    dataset_dir: str | PathLike[str] | None = None,
    recursive: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    to: Literal["jsonl", "coco", "yolo", "folder", "shards"] = "jsonl",
    link_mode: Literal["link", "copy"] = "link",
    min_score: float = 0.0,
) -> ConversionResult:
    """Write a dataset in another format."""
    settings = settings_from_dict(config.ConvertSettings, locals())
    from florence2.recipes.data import run_convert

    return run_convert(settings)
