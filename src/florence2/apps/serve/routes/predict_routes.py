"""The protocol of this project: `/v1/predict` runs any tasks on any images, and answers rows as `captions.jsonl` has.

Images come as multipart uploads, or in JSON as data URIs, base64 text or URLs of allowed hosts.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from florence2 import TaskPipeline
from florence2.apps.serve.model_service import gather_or_cancel
from florence2.apps.serve.request_limits import RequestError, require_text
from florence2.apps.serve.routes.generation_options import generation_config
from florence2.apps.serve.routes.server_state import ServerState, get_state
from florence2.errors import UserError
from florence2.settings_io import closest_name_hint

router = APIRouter(tags=["florence2"])
State = Annotated[ServerState, Depends(get_state)]
MAX_FIELDS = 64


class PredictBody(BaseModel):
    """Images with tasks: a task by name, several, or cascades such as `od+region_to_category`; or a prompt."""

    model_config = ConfigDict(extra="forbid")
    image: str | None = None
    images: list[str] = []
    task: str | list[str] | None = None
    task_input: str = ""
    model: str | None = None
    max_length: int | None = None
    max_tokens: int | None = None
    num_beams: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None


_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": PredictBody.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "task": {"type": "array", "items": {"type": "string"}},
                        "task_input": {"type": "string"},
                        "model": {"type": "string"},
                        "num_beams": {"type": "integer"},
                        "max_length": {"type": "integer"},
                    },
                }
            },
        },
    }
}


@router.post("/v1/predict", summary="Run tasks on images", openapi_extra=_SCHEMA)
async def predict_images(request: Request, state: State) -> JSONResponse:
    """Run every task on every image, and return one row for each prediction."""
    if name := next(iter(request.query_params), None):
        raise RequestError(f"`{name[:60]}` is in the address", "send it as a field of the form or of the JSON")
    body, uploads = await _read_request(request, state.service.limits.max_images)
    sources: list[tuple[str, str | bytes]] = [*uploads, *_named(body)]
    if not sources:
        raise RequestError("the request holds no image", "send `image`, as a file or as base64")
    if len(sources) > state.service.limits.max_images:
        raise RequestError(f"the request holds {len(sources)} images", "send fewer", status=413)
    tasks = [task for task in ([body.task] if isinstance(body.task, str) else body.task or []) if task.strip()]
    require_text(body.model, body.task_input, *tasks, *(name for name, _ in sources))
    model, task_of_model = state.service.find(body.model)
    try:
        pipeline = TaskPipeline.parse(tasks or [task_of_model or model.default_task], body.task_input)
    except UserError as error:
        raise RequestError.of(error) from error
    generation = generation_config(body.model_dump(), state.generation)
    images = [await state.reader.open(model.engine, source, name) for name, source in sources]
    groups = await gather_or_cancel([state.service.predict(model, image, pipeline, generation) for image in images])
    rows = [prediction.to_json() for group in groups for prediction in group]
    label = "+".join("prompt" if task.is_custom else task.name for task in pipeline.tasks)
    headers = state.service.headers(model, label, "name")
    value = {"id": f"pred-{uuid.uuid4().hex}", "model": model.name, "predictions": rows}
    return JSONResponse(value, headers=headers)


async def _read_request(request: Request, max_images: int) -> tuple[PredictBody, list[tuple[str, bytes]]]:
    """Read JSON or a form: its options, and its uploaded images with their names."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return _validated(await _json(request)), []
    uploads: list[tuple[str, bytes]] = []
    values: dict[str, Any] = {}
    try:
        async with request.form(max_files=max_images, max_fields=MAX_FIELDS) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    uploads.append((_file_name(value.filename, len(uploads) + 1), await value.read()))
                elif name in ("task", "images"):
                    values.setdefault(name, []).append(value)
                elif value != "":
                    values[name] = value
    except HTTPException as error:
        raise RequestError(f"the form is not valid: {error.detail}"[:200]) from None
    return _validated(values), uploads


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise RequestError("the body is neither JSON nor a multipart form", "see /docs") from None


def _validated(values: Any) -> PredictBody:
    try:
        return PredictBody.model_validate(values)
    except ValidationError as error:
        raise RequestError(validation_message(error.errors(include_input=False))) from None


def validation_message(errors: Sequence[Any]) -> str:
    """Name the first wrong field and what is wrong with it, without its value."""
    first = errors[0]
    where = ".".join(str(step)[:40] for step in first["loc"] if step != "body")
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return f"the body is not JSON: {reason}, at character {first['loc'][-1]}"[:300]
    if first["type"] == "extra_forbidden":
        return f"`{where}` is not a key of this request; {closest_name_hint(where, list(PredictBody.model_fields))}"
    return f"`{where or 'body'}`: {first['msg']}"[:300]


def _file_name(name: str | None, number: int) -> str:
    """Return the name of an uploaded file, without folders."""
    return PurePosixPath((name or "").replace("\\", "/")).name or f"image-{number}"


def _named(body: PredictBody) -> list[tuple[str, str | bytes]]:
    sources = [*([body.image] if body.image else []), *body.images]
    return [(f"image-{number}", source) for number, source in enumerate(sources, 1)]
