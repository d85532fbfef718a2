"""Features of Hugging Face `datasets`: the columns of images, and the names of classes in place of their numbers."""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from florence2.data.tables import Row, prefer_images
from florence2.errors import DatasetError


def name_classes(rows: Iterable[Row], features: Mapping[str, Any]) -> Iterator[Row]:
    """Replace the class numbers of rows with their names, in nested columns too."""
    has_names = {name: feature for name, feature in features.items() if "ClassLabel" in repr(feature)}
    for row in rows:
        yield {name: _to_names(value, has_names.get(name)) for name, value in row.items()} if has_names else row


def _to_names(value: Any, feature: Any) -> Any:
    if value is None or feature is None:
        return value
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    element = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if element is not None:
        is_columns = isinstance(value, dict)  # a sequence of structs, which is a struct of sequences
        return _to_names(value, {key: [element[key]] for key in value}) if is_columns else _each(value, element)
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _to_names(each, feature.get(key)) for key, each in value.items()}
    return value


def _each(values: Iterable[Any], feature: Any) -> list[Any]:
    return [_to_names(value, feature) for value in values]


def cast_encoded_images(dataset: Any) -> Any:
    """Make columns of encoded images that are plain bytes, or structs with `bytes`, or lists of these, images."""
    datasets, binary = import_module("datasets"), ("binary", "large_binary")
    image = datasets.Image(decode=False)
    for column, feature in (dataset.features or {}).items():
        item = getattr(feature, "feature", None)
        if isinstance(item, dict) and "bytes" in item and _is_image_list(feature):
            dataset = dataset.cast_column(column, datasets.List(image))
        elif getattr(feature, "dtype", "") in binary or (isinstance(feature, dict) and "bytes" in feature):
            dataset = dataset.cast_column(column, image)
    return dataset


def without_decoding(part: Any, column: str) -> Any:
    """Return the dataset with the images of a column left encoded."""
    datasets = import_module("datasets")
    image = datasets.Image(decode=False)
    return part.cast_column(column, datasets.List(image) if _is_image_list(part.features[column]) else image)


def _is_image_list(feature: Any) -> bool:
    """Return whether each row of a column has a list of images, of which one is read."""
    item = getattr(feature, "feature", None)
    return type(item).__name__ == "Image" or (isinstance(item, dict) and "bytes" in item)


def find_image_column(part: Any, name: str, image_column: str | None, *, has_lists: bool = False) -> str:
    """Return the given column if it contains images, else one that does: `image` and the like, else the first.

    With `has_lists`, it may contain lists of images.
    """
    types = {column: type(feature).__name__ for column, feature in part.features.items()}
    candidates = prefer_images(column for column, type_name in types.items() if type_name == "Image")
    if has_lists:
        candidates += prefer_images(column for column, feature in part.features.items() if _is_image_list(feature))
    column = image_column or next(iter(candidates), "")
    if column in candidates:
        return column
    missing = f"column `{image_column}` of images" if image_column else "column of images"
    listed = ", ".join(f"`{column}` ({type_name})" for column, type_name in types.items())
    raise DatasetError(f"dataset `{name}` has no {missing}; it has {listed}", "pass its name as --image_column")
