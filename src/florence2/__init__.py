"""Fine-tune Microsoft's Florence-2 on your own pictures, and run the result over any number of them.

The face of the package. Names are resolved when they are first used: importing `florence2` imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence2.data.sample import Prediction as Prediction
    from florence2.data.sample import Sample as Sample
    from florence2.engine.async_engine import AsyncEngine as AsyncEngine
    from florence2.engine.engine import Engine as Engine
    from florence2.engine.engine_config import EngineConfig as EngineConfig
    from florence2.engine.generation_config import GenerationConfig as GenerationConfig
    from florence2.errors import UserError as UserError
    from florence2.model.load import load as load
    from florence2.model.tasks import Task as Task
    from florence2.recipes.evaluate import evaluate as evaluate
    from florence2.recipes.predict import predict as predict
    from florence2.recipes.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "florence2.engine.async_engine",
    "EngineConfig": "florence2.engine.engine_config",
    "GenerationConfig": "florence2.engine.generation_config",
    "Prediction": "florence2.data.sample",
    "Sample": "florence2.data.sample",
    "Task": "florence2.model.tasks",
    "UserError": "florence2.errors",
    "Engine": "florence2.engine.engine",
    "evaluate": "florence2.recipes.evaluate",
    "load": "florence2.model.load",
    "predict": "florence2.recipes.predict",
    "train": "florence2.recipes.train",
}

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineConfig",
    "GenerationConfig",
    "Prediction",
    "Sample",
    "Task",
    "UserError",
    "evaluate",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `florence2` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
