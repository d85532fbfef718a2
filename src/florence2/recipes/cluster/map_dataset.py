"""Predictions as columns of a dataset of Hugging Face `datasets`, by an engine in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from florence2.config import HubSettings
from florence2.data.folders.dataset_features import without_decoding
from florence2.data.sample import Prediction, Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.errors import OptionError
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.recipes.cluster.row_actor import RowOptions, parse_generation, to_columns
from florence2.recipes.create_engine import ModelSource

_STREAM_BATCH = 256


def map_dataset(
    dataset: Any,
    *,
    model_path: str,
    generation: Mapping[str, Any] | None,
    revision: str | None,
    offline: bool,
    device: str | None,
    dtype: Any,
    batch_size: int | None,
    image_column: str,
    **options: Any,
) -> Any:
    """Add the predictions to a dataset; see `florence2.datasets.map`."""
    import datasets

    rows = RowOptions(image_column=image_column, **options)
    if isinstance(dataset, dict):  # of splits
        splits = list(dataset.values())
    elif isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        splits = [dataset]
    else:
        raise OptionError(f"the dataset is a {type(dataset).__name__}", "pass a dataset of `datasets`")
    splits = [each if each.features else each._resolve_features() for each in splits]
    for split in splits:
        rows.check_columns(list(split.features))
    model = ModelSource.resolve(model_path, HubSettings(revision, offline), dtype)
    config = EngineConfig(generation=parse_generation(generation), batch_size=batch_size)
    predictor = DatasetPredictor(model, device, config, rows)
    mapped = [_map_split(datasets, split, predictor, rows) for split in splits]
    return type(dataset)(dict(zip(dataset, mapped, strict=True))) if isinstance(dataset, dict) else mapped[0]


def _map_split(datasets: Any, split: Any, predictor: DatasetPredictor, rows: RowOptions) -> Any:
    added = _features(datasets, rows)
    if isinstance(split, datasets.IterableDataset):
        features = datasets.Features({**split.features, **added})
        return split.map(predictor.add_columns, batched=True, batch_size=_STREAM_BATCH, features=features)
    encoded = split.with_format(None)
    if isinstance(split.features[rows.image_column], datasets.Image):
        encoded = without_decoding(encoded, rows.image_column)
    columns = datasets.Dataset.from_dict(to_columns(predictor.predict(encoded), rows), features=added)
    if not len(split):  # which `concatenate_datasets` leaves out
        features = datasets.Features({**split.features, **added})
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return datasets.concatenate_datasets([split, columns], axis=1)


def _features(datasets: Any, rows: RowOptions) -> Any:
    text, number = datasets.Value("string"), datasets.Value("float64")
    types = (text, text, datasets.Value("int32"), number, text)
    return datasets.Features(dict(zip(rows.columns, types, strict=True)))


class DatasetPredictor:
    """Predicts rows in order; the model is loaded once, for the first row."""

    def __init__(self, model: ModelSource, device: str | None, config: EngineConfig, options: RowOptions) -> None:
        self._source, self._device, self._config, self._options = model, device, config, options
        self._loaded: tuple[Any, Any] | None = None

    def add_columns(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the new columns of a batch."""
        names = list(batch)
        return to_columns(
            self.predict([dict(zip(names, row, strict=True)) for row in zip(*batch.values(), strict=True)]),
            self._options,
        )

    def predict(self, rows: Any) -> list[Prediction]:
        """Predict rows, and return the predictions in their order."""
        self._loaded = self._loaded or self._source.load(self._device)
        classes = ClassSplitter(self._options.pipeline)
        by_id: dict[str, Prediction] = {}
        with Engine(*self._loaded, self._config) as engine:
            for prediction in classes.merge(engine.run(classes.split(self._samples(rows)))):
                by_id[prediction.file_name] = prediction
        return [by_id[f"row {index}"] for index in range(len(by_id))]

    def _samples(self, rows: Any) -> Iterator[Sample]:
        return (self._options.sample(index, row) for index, row in enumerate(rows))
