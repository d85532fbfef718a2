"""From the settings to what is learnt and what is measured: samples found and checked, and made into lessons.

Knows the groups of settings that say which pictures and which words; neither devices nor steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from florence2.config import TrainSettings
from florence2.data.columns import ColumnMapping
from florence2.data.resolve import resolve_dataset
from florence2.data.sample import Sample
from florence2.data.streams.shard_readers import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.validate import check_images, train_val_split
from florence2.errors import UserError
from florence2.log import logger
from florence2.model.processing import Preprocessor, max_target_tokens
from florence2.model.tasks import find_task
from florence2.settings_io import closest_name_hint
from florence2.training.dataset.caption_augmentation import parse_caption_augmentation
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.image_augmentation import parse_image_augmentation
from florence2.training.dataset.sampler import num_draws

FIRST = 32  # samples of a stream that are looked at before it starts


@dataclass(frozen=True)
class TrainingData:
    """What to learn from, how often an epoch draws each of it (None: once), and what to measure on.

    Of a stream, `samples` are the first.
    """

    train: Sequence[Sample]
    weights: Sequence[float] | None = None
    eval: Sequence[Sample] = ()
    stream: SampleStream | None = None


def find_training_data(settings: TrainSettings) -> TrainingData:
    """Find what to learn from and what to measure on; log what was found."""
    data, val = settings.data, settings.data.val_dataset
    if data.streaming:
        stream = _stream(settings)
        logger.info(f"{stream.source.name} is read as it comes, in {stream.source.num_shards:,} parts")
        return TrainingData(stream.first(FIRST), eval=_found(settings, val) if val else [], stream=stream)
    fraction = _fraction(val)
    found = {spec: _found(settings, spec) for spec in data.dataset}
    if len(found) > 1:
        found = {spec: [replace(each, id=f"{spec}/{each.id}") for each in samples] for spec, samples in found.items()}
    home = {sample.id: spec for spec, samples in found.items() for sample in samples}
    samples, held = train_val_split(
        [each for samples in found.values() for each in samples], fraction or 0, settings.training.seed
    )
    if val and fraction is None:
        held = _found(settings, val)
    weights = _weights(data.sampling_weights, samples, home)
    kept = [at for at in range(len(samples)) if weights is None or weights[at] > 0]
    return TrainingData([samples[at] for at in kept], weights and [weights[at] for at in kept], held)


def _stream(settings: TrainSettings) -> SampleStream:
    data = settings.data
    columns = ColumnMapping(data.task, image=data.image_column, text=data.text_column)
    parts = find_sharded_source(data.dataset[0], columns, offline=settings.model.offline)
    return SampleStream(parts, settings.training.seed, data.on_missing)


def _weights(mix: tuple[str, ...], samples: Sequence[Sample], home: Mapping[str, str]) -> list[float] | None:
    """Say how often each sample is drawn in an epoch: the weight of its task times that of its dataset."""
    if not mix:
        return None
    named = [_weight(word) for word in mix]
    datasets, tasks = set(home.values()), {sample.task for sample in samples}
    by_place = {name: weight for name, weight in named if name in datasets}
    by_task = {find_task(name).token: (name, weight) for name, weight in named if name not in datasets}
    for token, (name, _) in by_task.items():
        if token not in tasks:
            known = [*datasets, *(find_task(task).name for task in tasks)]
            raise UserError(
                f"`--sampling_weights {name}` names no dataset here and no task that is learnt",
                closest_name_hint(name, known),
            )
    once = ("", 1.0)
    weights = [by_task.get(each.task, once)[1] * by_place.get(home[each.id], 1.0) for each in samples]
    if num_draws(weights) < 1:
        raise UserError(
            "with `--sampling_weights` an epoch draws no sample at all", "give some task or dataset more weight"
        )
    return weights


def _weight(word: str) -> tuple[str, float]:
    name, _, number = word.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not name or not 0 <= weight < math.inf:
        raise UserError(
            f"`--sampling_weights {word}` is no weight", "write a task or a dataset and a number, such as `od=2`"
        )
    return name, weight


def build_dataset(settings: TrainSettings, material: TrainingData, model: Any, processor: Any) -> Florence2Dataset:
    """Make lessons of samples, as long as the model has positions for."""
    most = max_target_tokens(model.config)
    asked = settings.captions.max_length
    return Florence2Dataset(
        material.train,
        Preprocessor.from_processor(processor),
        parse_caption_augmentation(settings.captions),
        parse_image_augmentation(settings.captions.augment),
        material.weights,
        seed=settings.training.seed,
        max_prompt_length=most,
        max_target_length=most if asked is None else min(asked + 2, most),  # <s> and </s> come on top
    )


def _found(settings: TrainSettings, spec: str) -> list[Sample]:
    data = settings.data
    found = resolve_dataset(
        spec,
        task=data.task,
        dataset_dir=data.dataset_dir,
        recursive=data.recursive,
        caption_extension=data.caption_extension,
        keep_lines=parse_caption_augmentation(settings.captions).enable_wildcard,
        missing=data.on_missing,
        image_column=data.image_column,
        text_column=data.text_column,
        offline=settings.model.offline,
    )
    found = check_images(found, missing=data.on_missing)
    logger.info(found.summary())
    return found.samples


def _fraction(val: str | None) -> float | None:
    try:
        fraction = float(val or "")
    except ValueError:
        return None
    if not 0 < fraction < 1:
        raise UserError(f"`--val_dataset {val}` is no fraction", "give a number between 0 and 1, or a dataset")
    return fraction
