"""Write src/florence2/api.py: the recipes as functions whose keywords are the flags; a test checks that it is fresh."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2 import config
from florence2.settings_io import SettingType

MODULE = Path(__file__).parents[1] / "src" / "florence2" / "api.py"

HEADER = '''# ruff: noqa: A002
"""The recipes as Python functions: every flag of a command is a keyword, with the default of `config.py`.

Written by `python scripts/api.py`. Values of several words take a list, or one word as it is; `key=value` words may be
a mapping, and a path may be a `Path`. The help texts of the flags are in docs/reference/. Importing this module imports
no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from florence2 import config
from florence2.settings_io import settings_from_dict

if TYPE_CHECKING:
    from florence2.data.inspection.convert import ConversionResult
    from florence2.data.inspection.dataset_report import DatasetReport
    from florence2.export.export_result import ExportResult
    from florence2.recipes.shards.predict_status import JobStatus
    from florence2.results.progress import RunSummary
'''


@dataclass(frozen=True)
class ApiFunction:
    """A function of the module: its settings, the recipe that it calls, and what it returns."""

    name: str
    settings: type
    recipe: str
    returns: str
    doc: str


FUNCTIONS = (
    ApiFunction(
        "train",
        config.TrainSettings,
        "florence2.recipes.train:run_train",
        "Path",
        """Fine-tune Florence-2 on images with annotations, and return the folder with the result.

    The result is the checkpoint with the best evaluation where there is a validation set, else the last state.""",
    ),
    ApiFunction(
        "predict",
        config.PredictSettings,
        "florence2.recipes.predict:run_predict",
        "RunSummary",
        """Run a task on every image, write the predictions to `output_path`, and return a summary.""",
    ),
    ApiFunction(
        "predict_status",
        config.StatusSettings,
        "florence2.recipes.shards.predict_status:run_status",
        "JobStatus",
        """Read how far a prediction is from its output.""",
    ),
    ApiFunction(
        "evaluate",
        config.EvaluateSettings,
        "florence2.recipes.evaluate:run_evaluate",
        "dict[str, Any]",
        """Score predictions against references, and return the scores as the JSON file holds them.""",
    ),
    ApiFunction(
        "export",
        config.ExportSettings,
        "florence2.recipes.export:run_export",
        "ExportResult",
        """Write a model in the layout of another program, compare it with the model, and return a summary.""",
    ),
    ApiFunction(
        "check_dataset",
        config.CheckSettings,
        "florence2.recipes.data:run_check",
        "DatasetReport",
        """Count the samples of a dataset and list its errors.""",
    ),
    ApiFunction(
        "preview_dataset",
        config.PreviewSettings,
        "florence2.recipes.data:run_preview",
        "Path",
        """Write an HTML page with images and their targets, and return its path.""",
    ),
    ApiFunction(
        "convert_dataset",
        config.ConvertSettings,
        "florence2.recipes.data:run_convert",
        "ConversionResult",
        """Write a dataset in another format.""",
    ),
)


def render() -> str:
    """Return the source of the module."""
    return HEADER + "".join(map(_function, FUNCTIONS))


def _function(function: ApiFunction) -> str:
    parameters = "".join(f"    {each},\n" for each in sorted(_parameters(function.settings), key=lambda p: "=" in p))
    module, recipe = function.recipe.split(":")
    doc = f'"""{function.doc}"""' if "\n" not in function.doc else f'"""{function.doc}\n    """'
    return f"""

def {function.name}(
    *,
{parameters}) -> {function.returns}:
    {doc}
    settings = settings_from_dict(config.{function.settings.__name__}, locals())
    from {module} import {recipe}

    return {recipe}(settings)
"""


def _parameters(settings: type) -> list[str]:
    """Write the fields of settings and of their groups as parameters."""
    hints = typing.get_type_hints(settings, include_extras=True)
    parameters: list[str] = []
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            parameters += _parameters(typing.cast(type, hint))
        elif field.default is dataclasses.MISSING:
            parameters.append(f"{field.name}: {_annotation(SettingType.of(hint))}")
        else:
            parameters.append(f"{field.name}: {_annotation(SettingType.of(hint))} = {_literal(field.default)}")
    return parameters


def _annotation(setting: SettingType) -> str:
    """Write a type; a tuple of texts is a sequence of texts, or one text."""
    if setting.choices:
        return f"Literal[{', '.join(map(_literal, setting.choices))}]"
    one = "str | PathLike[str]" if setting.is_path else setting.kind.__name__
    many = f"{one} | Sequence[{one}]" + " | Mapping[str, object]" * setting.is_mapping
    return (many if setting.is_tuple else one) + " | None" * setting.is_optional


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"({', '.join(map(_literal, value))})" if isinstance(value, tuple) else repr(value)


if __name__ == "__main__":
    MODULE.write_text(render(), encoding="utf-8")
