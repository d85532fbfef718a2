"""The settings of a training run, resolved once: every string is parsed here, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from florence2.config import CaptionSettings, LoraSettings, TrainSettings
from florence2.data.resolve import DatasetOptions
from florence2.devices import depends_on_model_size, pick_device, training_dtype
from florence2.model.load import count_checkpoint_parameters, load
from florence2.model.processing import Preprocessor, max_target_tokens
from florence2.model.tasks import find_task, warn_about_prompt
from florence2.recipes.training_setup.train_evaluation import EvaluationConfig
from florence2.settings_io import settings_from_dict, settings_to_dict
from florence2.training.arguments import BatchConfig, Interval, RunConfig, parse_trainer_args
from florence2.training.dataset.caption_augmentation import CaptionAugmentation, parse_caption_augmentation
from florence2.training.dataset.image_augmentation import ImageAugmentation, parse_image_augmentation
from florence2.training.dataset.streaming import check_streaming
from florence2.training.dataset.training_data import (
    DatasetBuilder,
    TrainingData,
    TrainingDataConfig,
    parse_sampling_weights,
    parse_val_dataset,
)
from florence2.training.optimizer.optimizer_config import OptimizerConfig, parse_optimizer_args
from florence2.training.optimizer.registry import check_name
from florence2.training.performance.compile import check_can_compile
from florence2.training.prepare_model import LoraOptions, check_can_quantize, parse_dropout_rates, parse_lora_args
from florence2.training.saving.resume import (
    check_resume_compatible,
    check_resume_dtype,
    resolve_resume,
    train_command,
)
from florence2.training.trackers import resolve_trackers


@dataclass(frozen=True)
class BaseModel:
    """The model that training starts from; `dtype` is that of its weights, `dropout` replaces rates of its config."""

    name: str
    revision: str | None
    offline: bool
    dtype: torch.dtype
    quantize: bool
    dropout: Mapping[str, float]

    def count_parameters(self) -> int:
        """Count the parameters by the model's config."""
        return count_checkpoint_parameters(self.name, self.revision, self.offline)

    def load(self, device: torch.device) -> tuple[Any, Any]:
        """Load model and processor onto a device; an adapter is not merged."""
        return load(
            self.name,
            dtype=self.dtype,
            device=device,
            revision=self.revision,
            offline=self.offline,
            merge=False,
            quantize=self.quantize,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class AugmentationConfig:
    """How samples become examples; `max_length` limits the tokens of a target."""

    captions: CaptionAugmentation
    images: ImageAugmentation
    max_length: int | None
    seed: int

    def dataset_builder(self, data: TrainingData, model: Any, processor: Any) -> DatasetBuilder:
        """Create the builder of the training dataset and the evaluation dataset."""
        return DatasetBuilder(
            data,
            Preprocessor.from_processor(processor),
            self.captions,
            self.images,
            seed=self.seed,
            model_max_length=max_target_tokens(model.config),
            max_length=self.max_length,
        )


@dataclass(frozen=True)
class TrainingSpec:
    """What a training run does.

    `settings` holds the settings by flat name, for the record of the run. `checkpoint` is where the run resumes.
    `dtype` is that of the computation. `freeze` names a component of the model. `preview` counts samples to print
    instead of training.
    """

    settings: Mapping[str, Any]
    output_dir: Path
    checkpoint: Path | None
    device: torch.device
    dtype: torch.dtype
    base: BaseModel
    lora: LoraOptions | None
    freeze: str
    data: TrainingDataConfig
    augmentation: AugmentationConfig
    run: RunConfig
    evaluation: EvaluationConfig
    sample_interval: Interval
    auto_batch: bool
    gradient_checkpointing: bool
    compile: bool
    preview: int

    @classmethod
    def resolve(cls, settings: TrainSettings) -> Self:
        """Parse all flags, check them against each other, and find the checkpoint to resume from."""
        training, saving, model = settings.training, settings.saving, settings.model
        flags, output_dir = settings_to_dict(settings), Path(saving.output_dir).expanduser()
        device = pick_device(settings.compute.device)
        dtype = training_dtype(settings.compute.dtype, device)
        lora, run = _lora_options(settings.lora), _run_config(settings)
        # Trainable weights are float32; the base under LoRA needs no more than the dtype of the computation.
        weights_dtype = dtype if lora else torch.float32
        dropout = parse_dropout_rates(model.model_dropout_args)
        captions = _caption_augmentation(settings.captions)
        spec = cls(
            settings=flags,
            output_dir=output_dir,
            checkpoint=resolve_resume(saving.resume, output_dir),
            device=device,
            dtype=dtype,
            base=BaseModel(
                model.model_id, settings.hub.revision, settings.hub.offline, weights_dtype, model.quantize, dropout
            ),
            lora=lora,
            freeze=model.freeze,
            data=_data_config(settings, captions),
            augmentation=AugmentationConfig(
                captions,
                parse_image_augmentation(settings.captions.augment),
                settings.captions.max_length,
                training.seed,
            ),
            run=run,
            evaluation=EvaluationConfig(saving.eval_metrics, saving.eval_samples, saving.early_stopping),
            sample_interval=Interval(saving.sample_every_n_epochs, saving.sample_every_n_steps),
            auto_batch=training.auto_batch,
            gradient_checkpointing=training.gradient_checkpointing,
            compile=training.compile,
            preview=settings.captions.preview,
        )
        spec._check()
        spec = spec._with_default_dtype()
        check_resume_dtype(spec.checkpoint, spec.dtype, device)
        return spec

    def with_batch(self, batch: BatchConfig) -> Self:
        """Return the run with the batches that were found to fit into memory."""
        return replace(self, run=replace(self.run, batch=batch), settings={**self.settings, **vars(batch)})

    def _with_default_dtype(self) -> Self:
        """Return the run in the default dtype for the size of its base model, which its config tells."""
        if not depends_on_model_size(self.settings["dtype"], self.device):
            return self
        dtype = training_dtype(self.settings["dtype"], self.device, self.base.count_parameters())
        return replace(self, dtype=dtype, base=replace(self.base, dtype=dtype if self.lora else torch.float32))

    def resume_command(self) -> str:
        """Return the command that resumes the run."""
        defaults = settings_from_dict(TrainSettings, {"dataset": "", "output_dir": ""})
        return train_command({**self.settings, "resume": "auto"}, settings_to_dict(defaults))

    def _check(self) -> None:
        """Refuse flags that contradict each other, the device or the checkpoint."""
        warn_about_prompt(find_task(self.data.options.task))
        check_name(self.run.optimizer.name)
        check_streaming(
            self.data,
            self.run.trainer_args,
            self.lora.args if self.lora else {},
            saves_by_epoch=self.run.save_interval.epochs is not None,
            samples_by_epoch=self.sample_interval.epochs is not None,
        )
        if self.base.quantize:
            check_can_quantize(self.lora, self.device)
        if self.compile:
            check_can_compile(self.freeze, self.device)
        if self.checkpoint is not None:
            check_resume_compatible(self.checkpoint, self.settings)


def _lora_options(lora: LoraSettings) -> LoraOptions | None:
    """Return the options of a new LoRA, or None if all weights are trained."""
    args = parse_lora_args(lora.lora_args)
    return LoraOptions(lora.rank, lora.alpha, lora.dropout, lora.target_modules, args) if lora.rank else None


def _caption_augmentation(captions: CaptionSettings) -> CaptionAugmentation:
    return parse_caption_augmentation(
        captions.caption_args,
        shuffle=captions.shuffle_captions,
        keep_tokens=captions.frozen_parts,
        tag_dropout=captions.caption_dropout,
    )


def _data_config(settings: TrainSettings, captions: CaptionAugmentation) -> TrainingDataConfig:
    data, source = settings.data, settings.source
    options = DatasetOptions(
        data.task,
        dataset_dir=source.dataset_dir,
        recursive=source.recursive,
        caption_extension=data.caption_extension,
        keep_lines=captions.enable_wildcard,
        on_missing=data.on_missing,
        image_column=source.image_column,
        text_column=source.text_column,
        offline=settings.hub.offline,
        keep_answers=bool(settings.saving.eval_metrics),
    )
    return TrainingDataConfig(
        data.dataset,
        options,
        sampling_weights=parse_sampling_weights(data.sampling_weights),
        streaming=data.streaming,
        val_dataset=parse_val_dataset(data.val_dataset),
        seed=settings.training.seed,
        decode_all=settings.model.freeze == "vision",  # image features are computed of all images first
    )


def _run_config(settings: TrainSettings) -> RunConfig:
    training, saving = settings.training, settings.saving
    return RunConfig(
        saving.output_dir,
        training.epochs,
        training.seed,
        BatchConfig(training.batch_size, training.gradient_accumulation_steps),
        OptimizerConfig(
            training.optim,
            training.learning_rate,
            training.lr_scheduler_type,
            parse_optimizer_args(training.optimizer_args),
            training.vision_learning_rate,
            training.lora_plus_ratio,
        ),
        Interval(saving.save_every_n_epochs, saving.save_every_n_steps),
        resolve_trackers(saving.log_with),
        settings.data.num_workers,
        settings.data.streaming,
        parse_trainer_args(saving.trainer_args),
    )
