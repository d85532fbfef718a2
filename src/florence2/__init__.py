"""Fine-tune Microsoft's Florence-2 on your own images, and run the result on any number of them.

The public names of the package are imported on first use: `import florence2` imports no torch.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence2.api import evaluate as evaluate
    from florence2.api import predict as predict
    from florence2.api import train as train
    from florence2.data.decoding.decode_image import ImageTooLargeError as ImageTooLargeError
    from florence2.data.image import ImageError as ImageError
    from florence2.data.image import OpenedImage as OpenedImage
    from florence2.data.image import image_size as image_size
    from florence2.data.sample import Prediction as Prediction
    from florence2.data.sample import Sample as Sample
    from florence2.engine.async_engine import AsyncEngine as AsyncEngine
    from florence2.engine.engine import Engine as Engine
    from florence2.engine.engine_config import EngineConfig as EngineConfig
    from florence2.engine.generation_config import GenerationConfig as GenerationConfig
    from florence2.errors import CheckpointError as CheckpointError
    from florence2.errors import DatasetError as DatasetError
    from florence2.errors import DeviceMemoryError as DeviceMemoryError
    from florence2.errors import MissingPackageError as MissingPackageError
    from florence2.errors import OptionError as OptionError
    from florence2.errors import UserError as UserError
    from florence2.export.runtime.load_exported import load_exported as load_exported
    from florence2.florence2_model import Florence2 as Florence2
    from florence2.model.adapter.reused_weights import reuse_weights as reuse_weights
    from florence2.model.answer import Answer as Answer
    from florence2.model.geometry import GeometryKind as GeometryKind
    from florence2.model.load import load as load
    from florence2.model.storage.run_metadata import read_run_metadata as read_run_metadata
    from florence2.model.tasks import TASKS as TASKS
    from florence2.model.tasks import InputType as InputType
    from florence2.model.tasks import OutputType as OutputType
    from florence2.model.tasks import Task as Task
    from florence2.model.tasks import find_task as find_task
    from florence2.model.tasks import split_prompt as split_prompt
    from florence2.pipeline.class_splitter import ClassSplitter as ClassSplitter
    from florence2.pipeline.task_pipeline import TaskPipeline as TaskPipeline
    from florence2.recipes.create_engine import ModelSource as ModelSource
    from florence2.recipes.create_engine import load_for_inference as load_for_inference
    from florence2.results.editing.editable_dataset import EditableDataset as EditableDataset
    from florence2.results.editing.editable_row import ChangedObject as ChangedObject
    from florence2.results.editing.editable_row import EditableRow as EditableRow
    from florence2.results.editing.editable_row import RowChange as RowChange
    from florence2.results.editing.edited_files import FileChangedError as FileChangedError
    from florence2.results.editing.word_replacement import WordReplacement as WordReplacement
    from florence2.results.result import Result as Result
    from florence2.training.dataset.collator import Florence2Collator as Florence2Collator
    from florence2.training.dataset.florence2_dataset import Florence2Dataset as Florence2Dataset
    from florence2.training.trainer import Florence2Trainer as Florence2Trainer

__version__ = "0.1.0"

_MODULE_OF = {
    "Answer": "florence2.model.answer",
    "AsyncEngine": "florence2.engine.async_engine",
    "ChangedObject": "florence2.results.editing.editable_row",
    "CheckpointError": "florence2.errors",
    "ClassSplitter": "florence2.pipeline.class_splitter",
    "DatasetError": "florence2.errors",
    "DeviceMemoryError": "florence2.errors",
    "EditableDataset": "florence2.results.editing.editable_dataset",
    "EditableRow": "florence2.results.editing.editable_row",
    "Engine": "florence2.engine.engine",
    "EngineConfig": "florence2.engine.engine_config",
    "FileChangedError": "florence2.results.editing.edited_files",
    "Florence2": "florence2.florence2_model",
    "Florence2Collator": "florence2.training.dataset.collator",
    "Florence2Dataset": "florence2.training.dataset.florence2_dataset",
    "Florence2Trainer": "florence2.training.trainer",
    "GenerationConfig": "florence2.engine.generation_config",
    "GeometryKind": "florence2.model.geometry",
    "ImageError": "florence2.data.image",
    "ImageTooLargeError": "florence2.data.decoding.decode_image",
    "InputType": "florence2.model.tasks",
    "MissingPackageError": "florence2.errors",
    "ModelSource": "florence2.recipes.create_engine",
    "OpenedImage": "florence2.data.image",
    "OptionError": "florence2.errors",
    "OutputType": "florence2.model.tasks",
    "Prediction": "florence2.data.sample",
    "Result": "florence2.results.result",
    "RowChange": "florence2.results.editing.editable_row",
    "Sample": "florence2.data.sample",
    "TASKS": "florence2.model.tasks",
    "Task": "florence2.model.tasks",
    "TaskPipeline": "florence2.pipeline.task_pipeline",
    "UserError": "florence2.errors",
    "WordReplacement": "florence2.results.editing.word_replacement",
    "evaluate": "florence2.api",
    "find_task": "florence2.model.tasks",
    "image_size": "florence2.data.image",
    "load": "florence2.model.load",
    "load_for_inference": "florence2.recipes.create_engine",
    "load_exported": "florence2.export.runtime.load_exported",
    "predict": "florence2.api",
    "read_run_metadata": "florence2.model.storage.run_metadata",
    "reuse_weights": "florence2.model.adapter.reused_weights",
    "split_prompt": "florence2.model.tasks",
    "train": "florence2.api",
}

__all__ = [
    "TASKS",
    "Answer",
    "AsyncEngine",
    "ChangedObject",
    "CheckpointError",
    "ClassSplitter",
    "DatasetError",
    "DeviceMemoryError",
    "EditableDataset",
    "EditableRow",
    "Engine",
    "EngineConfig",
    "FileChangedError",
    "Florence2",
    "Florence2Collator",
    "Florence2Dataset",
    "Florence2Trainer",
    "GenerationConfig",
    "GeometryKind",
    "ImageError",
    "ImageTooLargeError",
    "InputType",
    "MissingPackageError",
    "ModelSource",
    "OpenedImage",
    "OptionError",
    "OutputType",
    "Prediction",
    "Result",
    "RowChange",
    "Sample",
    "Task",
    "TaskPipeline",
    "UserError",
    "WordReplacement",
    "evaluate",
    "find_task",
    "image_size",
    "load",
    "load_exported",
    "load_for_inference",
    "predict",
    "read_run_metadata",
    "reuse_weights",
    "split_prompt",
    "train",
]


def _is_not_of_kernels(record: logging.LogRecord) -> bool:
    return "kernels-community" not in record.getMessage()


# peft imports bitsandbytes where it is installed, which warns of kernels that only `--quantize` would run.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_not_of_kernels)

_SUBMODULES = ("datasets", "ray")  # their names are those of the libraries that they serve


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"florence2.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module `florence2` has no attribute `{name}`")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF, *_SUBMODULES])
