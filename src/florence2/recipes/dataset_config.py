"""Parsing of the settings that choose, stream and augment the samples of a training."""

from typing import Any

from florence2 import settings_io
from florence2.config import CaptionSettings, TrainSettings
from florence2.model.processing import Preprocessor, max_target_tokens
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
    return {name: settings_io.parse_value(word) for name, word in settings_io.parse_pairs(flag, words).items()}
