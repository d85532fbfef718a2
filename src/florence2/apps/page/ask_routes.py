"""The ask view of `florence2 serve`: an image, a task, and the answer drawn on it. It asks `/v1/predict`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from florence2 import TASKS, find_task
from florence2.apps.page import static_files
from florence2.apps.serve.model_service import ServedModel
from florence2.apps.serve.routes.server_state import ServerState, get_state
from florence2.apps.serve.routes.status_routes import describe_server

router = APIRouter(include_in_schema=False)
State = Annotated[ServerState, Depends(get_state)]


@router.get("/")
async def send_start_page(request: Request, state: State) -> Response:
    """Send the page to browsers, and the server's name to other clients, which only look whether it runs."""
    if "text/html" in request.headers.get("accept", ""):
        return static_files.html_page("ask.html")
    return Response(await describe_server(state), media_type="text/plain", headers={"vary": "accept"})


@router.get("/page/tasks")
async def list_tasks(state: State) -> dict[str, Any]:
    """Return the tasks with what they take and answer, and the models, each with its own task or prompt."""
    tasks = [
        {"name": task.name, "input": task.input_type.value, "output": task.output_type.value, "prompt": task.prompt}
        for task in TASKS
    ]
    models = [{"name": model.name, "task": _task_name(model)} for model in state.service.models.values()]
    return {"tasks": tasks, "models": models}


def _task_name(model: ServedModel) -> str:
    """Return the name of the task that a model was trained on, or its prompt."""
    task = find_task(model.default_task)
    return task.prompt if task.is_custom else task.name
