"""Finding and checking the training samples and the evaluation samples, and building the datasets of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from florence2.data.columns import ColumnMapping
from florence2.data.decoding.checked_images import CheckedImages
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import Sample
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.validate import check_images, train_val_split
from florence2.errors import OptionError
from florence2.log import count_noun, logger
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task
from florence2.settings_io import closest_name_hint
from florence2.training.callbacks.training_progress import count_progress
from florence2.training.dataset.caption_augmentation import CaptionAugmentation
from florence2.training.dataset.florence2_dataset import FeatureSource, Florence2Dataset
from florence2.training.dataset.image_augmentation import ImageAugmentation
from florence2.training.dataset.sampler import num_draws

PROGRESS_INTERVAL = 64  # images between two updates of the progress
NUM_PREVIEW_SAMPLES = 32  # samples that are read from a stream before training starts


@dataclass(frozen=True)
class TrainingDataConfig:
    """The choice of the samples that a run trains on and evaluates on.

    `options` apply to every dataset. `sampling_weights` maps names of tasks and of datasets to the number of times an
    epoch draws each of their samples. `val_dataset` is a dataset, or the fraction of the training images that is used
    for evaluation. With `decode_all` every image is decoded before the first step, instead of header and end alone.
    """

    datasets: tuple[str, ...]
    options: DatasetOptions
    sampling_weights: Mapping[str, float] = field(default_factory=dict)
    streaming: bool = False
    val_dataset: str | float | None = None
    seed: int = 0
    decode_all: bool = False


@dataclass(frozen=True)
class TrainingData:
    """The samples that a run trains on and evaluates on.

    `weights` holds the number of times an epoch draws each training sample; None draws each once. With a `stream`,
    `train` holds only its first samples.
    """

    train: Sequence[Sample]
    weights: Sequence[float] | None = None
    eval: Sequence[Sample] = ()
    stream: SampleStream | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Count the samples that an epoch draws."""
        return len(self.train) if self.weights is None else num_draws(self.weights)


@dataclass(frozen=True)
class DatasetBuilder:
    """Builds the training dataset and the evaluation dataset of a run.

    `model_max_length` is the number of positions of the model. `max_length` limits the tokens of a target, without
    `<s>` and `</s>`.
    """

    data: TrainingData
    preprocessor: Preprocessor
    caption_augmentation: CaptionAugmentation = field(default_factory=CaptionAugmentation)
    image_augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)
    seed: int = 0
    model_max_length: int | None = None
    max_length: int | None = None

    def train_dataset(
        self, total_steps: int | None = None, samples_per_step: int = 1, features: FeatureSource | None = None
    ) -> Florence2Dataset:
        """Build the dataset of the training samples; `total_steps` resolves a fractional token warmup."""
        return Florence2Dataset(
            self.data.train,
            self.preprocessor,
            self._captions(total_steps),
            self.image_augmentation,
            self.data.weights,
            seed=self.seed,
            max_prompt_length=self.model_max_length,
            max_target_length=self._max_target_length(),
            samples_per_step=samples_per_step,
            features=features,
        )

    def eval_dataset(self, total_steps: int | None = None, features: FeatureSource | None = None) -> Florence2Dataset:
        """Build the dataset of the evaluation samples, without random augmentation."""
        return Florence2Dataset(
            self.data.eval,
            self.preprocessor,
            self._captions(total_steps),
            self.image_augmentation,
            seed=self.seed,
            max_prompt_length=self.model_max_length,
            max_target_length=self._max_target_length(),
            features=features,
            augment=False,
        )

    def _captions(self, total_steps: int | None) -> CaptionAugmentation:
        captions = self.caption_augmentation
        return captions if total_steps is None else captions.with_total_steps(total_steps)

    def _max_target_length(self) -> int | None:
        limits = [self.model_max_length, None if self.max_length is None else self.max_length + 2]
        return min((limit for limit in limits if limit is not None), default=None)


def parse_sampling_weights(words: Sequence[str]) -> dict[str, float]:
    """Parse `--sampling_weights name=number` into weights by the name of a task or a dataset."""
    return dict(_parse_weight(word) for word in words)


def parse_val_dataset(word: str | None) -> str | float | None:
    """Parse `--val_dataset` into a fraction, where it is a number, or the name of a dataset."""
    if not word:
        return None
    try:
        fraction = float(word)
    except ValueError:
        return word
    if not 0 < fraction < 1:
        raise OptionError(
            f"`--val_dataset {word}` is not a fraction", "pass a number between 0 and 1, or the name of a dataset"
        )
    return fraction


def find_training_data(config: TrainingDataConfig) -> TrainingData:
    """Find and check the samples; log one line for each dataset."""
    val = config.val_dataset
    if config.streaming:
        stream = _open_stream(config)
        logger.info(f"{stream.source.name} is streamed from {stream.source.num_shards:,} shards")
        samples = stream.first(NUM_PREVIEW_SAMPLES)
        return TrainingData(samples, eval=_load_samples(val, config) if isinstance(val, str) else [], stream=stream)
    samples, dataset_of = _load_datasets(config)
    samples, val_samples = train_val_split(samples, val if isinstance(val, float) else 0, config.seed)
    if isinstance(val, str):
        val_samples = _load_samples(val, config)
    weights = _sample_weights(config.sampling_weights, samples, dataset_of)
    if weights is None:
        return TrainingData(samples, eval=val_samples)
    positive = [index for index, weight in enumerate(weights) if weight > 0]
    return TrainingData([samples[index] for index in positive], [weights[index] for index in positive], val_samples)


def _parse_weight(word: str) -> tuple[str, float]:
    name, _, number = word.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not name or not 0 <= weight < math.inf:
        raise OptionError(
            f"`--sampling_weights {word}` is not a weight", "pass a task or a dataset and a number, such as `od=2`"
        )
    return name, weight


def _open_stream(config: TrainingDataConfig) -> SampleStream:
    options = config.options
    columns = ColumnMapping(options.task, image=options.image_column, text=options.text_column)
    source = find_sharded_source(config.datasets[0], columns, offline=options.offline)
    return SampleStream(source, config.seed, options.on_missing)


def _load_datasets(config: TrainingDataConfig) -> tuple[list[Sample], dict[str, str]]:
    """Load the samples of all datasets, and the dataset of each sample id; of several, the ids start with the name."""
    samples: list[Sample] = []
    dataset_of: dict[str, str] = {}
    for name in dict.fromkeys(config.datasets):
        loaded = _load_samples(name, config)
        if len(set(config.datasets)) > 1:
            loaded = [replace(sample, id=f"{name}/{sample.id}") for sample in loaded]
        samples += loaded
        dataset_of |= dict.fromkeys((sample.id for sample in loaded), name)
    return samples, dataset_of


def _load_samples(name: str, config: TrainingDataConfig) -> list[Sample]:
    resolved = resolve_dataset(name, config.options)
    known = CheckedImages.of_dataset(name)
    with count_progress("checking images", len({sample.id for sample in resolved.samples}), 0) as advance:
        resolved = check_images(
            resolved,
            on_missing=config.options.on_missing,
            decode_all=config.decode_all,
            checked_images=known,
            progress=lambda number: None if number % PROGRESS_INTERVAL else advance(PROGRESS_INTERVAL),
        )
    if known.num_unchanged:
        logger.info(f"{count_noun(known.num_unchanged, 'image')} unchanged since an earlier check, and not opened")
    logger.info(resolved.summary())
    return list(resolved.samples)


def _sample_weights(
    weight_by_name: Mapping[str, float], samples: Sequence[Sample], dataset_of: Mapping[str, str]
) -> list[float] | None:
    """Multiply, for each sample, the weight of its task by the weight of its dataset."""
    if not weight_by_name:
        return None
    datasets, tasks = set(dataset_of.values()), {sample.task for sample in samples}
    by_dataset = {name: weight for name, weight in weight_by_name.items() if name in datasets}
    by_task: dict[str, float] = {}
    for name, weight in weight_by_name.items():
        if name in datasets:
            continue
        token = find_task(name).token
        if token not in tasks:
            known = [*datasets, *(find_task(task).name for task in tasks)]
            raise OptionError(
                f"`--sampling_weights {name}` is neither a dataset nor a task of the samples",
                closest_name_hint(name, known),
            )
        by_task[token] = weight
    weights = [by_task.get(each.task, 1.0) * by_dataset.get(dataset_of[each.id], 1.0) for each in samples]
    if num_draws(weights) < 1:
        raise OptionError(
            "with `--sampling_weights` an epoch draws no sample", "pass a higher weight for a task or a dataset"
        )
    return weights
