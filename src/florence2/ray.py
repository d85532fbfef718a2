"""Prediction inside a pipeline of Ray Data: `florence2.ray.predict(dataset, ...)` maps one Ray dataset to another.

The module has the name of Ray's own; inside the package imports are absolute, so that `import ray` is Ray. Nothing is
imported before the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from florence2.config import DEFAULT_TASK


def predict(
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
    max_in_flight: int | None = None,
    num_engines: int | None = None,
) -> Any:
    """Add the predictions of a task to the rows of a Ray dataset, lazily; rows keep their other columns.

    `image_column` holds encoded bytes, `{bytes, path}`, a path, an address, or pixels (height, width, 3) as
    `ray.data.read_images` reads them; `input_column` the task's input, where each row has its own. `generation` are
    fields of `GenerationConfig`. New columns: `text`, `answer` (JSON of the boxes, quads or polygons, else null),
    `num_tokens`, `score`, `error`, each after `column_prefix`; a column that exists already is refused. Each of
    `num_engines` actors (default: one for each GPU or group of cores) has at most `max_in_flight` images.
    """
    from florence2.recipes.cluster.row_actor import predict_rows

    options = {name: value for name, value in locals().items() if name not in ("dataset", "predict_rows")}
    return predict_rows(dataset, **options)
