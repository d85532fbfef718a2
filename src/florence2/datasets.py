"""Prediction for users of Hugging Face `datasets`: `florence2.datasets.map(dataset, ...)` adds columns to a dataset.

The module has the name of the library; inside the package imports are absolute, so that `import datasets` is the
library. Nothing is imported before the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from florence2.config import DEFAULT_TASK


def map(  # noqa: A001
    dataset: Any,
    *,
    model_path: str,
    task: str = DEFAULT_TASK,
    task_input: str = "",
    image_column: str = "image",
    input_column: str | None = None,
    column_prefix: str = "",
    generation: Mapping[str, Any] | None = None,
    revision: str | None = None,
    offline: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
) -> Any:
    """Add the predictions of a task to a `Dataset` at once, or to an `IterableDataset` as it is read.

    The columns are those of `florence2.ray.predict`, and so is what `image_column` holds, but for pixels. Each split of
    a `DatasetDict` is mapped. The images of a whole `Dataset` run in one continuous batch; an
    `IterableDataset` is predicted in batches of 256 rows; it ends at an image that `datasets` cannot decode, unless the
    column is cast to `Image(decode=False)`. `batch_size` is the number of images that are predicted at a time.
    """
    from florence2.recipes.cluster.map_dataset import map_dataset

    options = {name: value for name, value in locals().items() if name not in ("dataset", "map_dataset")}
    return map_dataset(dataset, **options)
