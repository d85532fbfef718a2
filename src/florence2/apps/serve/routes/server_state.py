"""What the routes of a server use, and how a route gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from florence2 import TASKS, GenerationConfig, InputType
from florence2.apps.serve.images.image_reader import ImageReader
from florence2.apps.serve.model_service import TASK_SEPARATOR, ModelService


@dataclass(frozen=True, eq=False)
class ServerState:
    """The models, the reader of images, and the generation config of requests that name none."""

    service: ModelService
    reader: ImageReader
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def model_names(self) -> list[str]:
        """List the names of the models, then those with a task that needs no input behind a colon."""
        names = list(self.service.models)
        tasks = [task.name for task in TASKS if task.input_type is InputType.NOTHING]
        return names + [f"{name}{TASK_SEPARATOR}{task}" for name in names for task in tasks]


def get_state(request: Request) -> ServerState:
    """Return the state of the application that answers a request."""
    return cast(ServerState, request.app.state.server)
