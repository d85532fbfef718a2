"""Class names of Hugging Face `datasets`: a row's class numbers become the names that its features have for them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from florence2.data.tables import Row


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
