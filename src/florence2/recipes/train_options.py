"""Options of training, parsed from the settings of `florence2 train`."""

from typing import Any

from florence2.config import CaptionSettings, TrainSettings
from florence2.devices import pick_device
from florence2.model.processing import Preprocessor, max_target_tokens
from florence2.model.tasks import find_task
from florence2.settings_io import parse_pairs, parse_value, settings_from_dict, settings_to_dict
from florence2.training.arguments import BatchConfig, Interval, RunConfig, parse_trainer_args
from florence2.training.dataset.caption_augmentation import CaptionAugmentation, parse_caption_augmentation
from florence2.training.dataset.image_augmentation import parse_image_augmentation
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
from florence2.training.saving.resume import train_command
from florence2.training.trackers import resolve_trackers


def check_options(settings: TrainSettings) -> None:
    """Raise UserError for an option that cannot be used, before anything is read."""
    find_task(settings.data.task)
    parse_image_augmentation(settings.captions.augment)
    check_streaming_settings(settings)
    check_name(settings.training.optim)
    lora = lora_options(settings)
    if settings.model.quantize:
        check_can_quantize(lora, pick_device(settings.model.device))
    if settings.training.compile:
        check_can_compile(settings.model.freeze, pick_device(settings.model.device))
    parse_dropout_rates(settings.model.model_dropout_args)
    run_config(settings)


def lora_options(settings: TrainSettings) -> LoraOptions | None:
    """Return the options of a new LoRA, or None if all weights are trained."""
    lora = settings.lora
    if lora.rank == 0:
        return None
    return LoraOptions(lora.rank, lora.alpha, lora.dropout, lora.target_modules, parse_lora_args(lora.lora_args))


def run_config(settings: TrainSettings) -> RunConfig:
    """Return what the training arguments are made of; parses `--optimizer_args` and `--trainer_args`."""
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


def resume_command(settings: TrainSettings) -> str:
    """Return the command that resumes a run."""
    defaults = settings_from_dict(TrainSettings, {"dataset": "", "output_dir": ""})
    return train_command(settings_to_dict(settings) | {"resume": "auto"}, settings_to_dict(defaults))


def _parse_captions(captions: CaptionSettings) -> CaptionAugmentation:
    """Parse the options of caption augmentation."""
    return parse_caption_augmentation(
        captions.caption_args,
        shuffle=captions.shuffle_captions,
        keep_tokens=captions.frozen_parts,
        tag_dropout=captions.caption_dropout,
    )


def parse_data_config(settings: TrainSettings) -> TrainingDataConfig:
    """Parse the options that choose the samples."""
    data = settings.data
    return TrainingDataConfig(
        data.dataset,
        data.task,
        dataset_dir=data.dataset_dir,
        sampling_weights=parse_sampling_weights(data.sampling_weights),
        streaming=data.streaming,
        val_dataset=parse_val_dataset(data.val_dataset),
        image_column=data.image_column,
        text_column=data.text_column,
        recursive=data.recursive,
        caption_extension=data.caption_extension,
        keep_lines=_parse_captions(settings.captions).enable_wildcard,
        on_missing=data.on_missing,
        offline=settings.model.offline,
        seed=settings.training.seed,
    )


def dataset_builder(settings: TrainSettings, data: TrainingData, model: Any, processor: Any) -> DatasetBuilder:
    """Make the builder of the training dataset and the evaluation dataset."""
    return DatasetBuilder(
        data,
        Preprocessor.from_processor(processor),
        _parse_captions(settings.captions),
        parse_image_augmentation(settings.captions.augment),
        seed=settings.training.seed,
        model_max_length=max_target_tokens(model.config),
        max_length=settings.captions.max_length,
    )


def check_streaming_settings(settings: TrainSettings) -> None:
    """Refuse settings that `--streaming` cannot be combined with."""
    saving = settings.saving
    check_streaming(
        parse_data_config(settings),
        _parse_args("--trainer_args", saving.trainer_args),
        _parse_args("--lora_args", settings.lora.lora_args),
        saves_by_epoch=saving.save_every_n_epochs is not None,
        samples_by_epoch=saving.sample_every_n_epochs is not None,
    )


def _parse_args(flag: str, words: tuple[str, ...]) -> dict[str, Any]:
    return {name: parse_value(word) for name, word in parse_pairs(flag, words).items()}
