"""Ollama's protocol: `/api/generate`, `/api/chat`, `/api/tags` and what its clients ask before."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict

from florence2 import __version__
from florence2.apps.serve.chat.chat_answers import ChatAnswer, ChatCall
from florence2.apps.serve.chat.chat_messages import ChatPrompt, read_messages
from florence2.apps.serve.chat.json_answers import JsonFormat
from florence2.apps.serve.request_limits import RequestError, require_text
from florence2.apps.serve.routes.generation_options import generation_config, stop_words
from florence2.apps.serve.routes.openai_routes import ChatMessage
from florence2.apps.serve.routes.server_state import ServerState, get_state

router = APIRouter(prefix="/api", tags=["Ollama"])
State = Annotated[ServerState, Depends(get_state)]
NDJSON = "application/x-ndjson"
DEFAULT_TAG = ":latest"
Fields = Callable[[str], dict[str, Any]]


class OllamaBody(BaseModel):
    """What generate and chat have in common; unknown keys are ignored."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    stream: bool | None = True
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None


class GenerateBody(OllamaBody):
    """A prompt with images as base64 text."""

    prompt: str | None = ""
    images: list[str] | None = None


class OllamaChatBody(OllamaBody):
    """Messages with images as base64 text."""

    messages: list[ChatMessage] = []


class ShowBody(BaseModel):
    """The name of a model, under its new or its old key."""

    model: str | None = None
    name: str | None = None


@router.get("/version", summary="Version of the server")
async def get_version() -> dict[str, str]:
    """Return the version of this package, which is none of Ollama's."""
    return {"version": __version__}


@router.get("/tags", summary="List the models")
async def list_tags(state: State) -> dict[str, Any]:
    """List the models, then each with its tasks as tags."""
    return {"models": [_tag(state, name) for name in state.model_names()]}


@router.get("/ps", summary="List the models in memory")
async def list_running(state: State) -> dict[str, Any]:
    """List all models, as all are in memory."""
    return {"models": [_tag(state, name) for name in state.service.models]}


@router.post("/show", summary="Describe a model")
async def show_model(body: ShowBody, state: State) -> dict[str, Any]:
    """Say that a model reads images."""
    row = _tag(state, state.service.find(body.model or body.name)[0].name)
    names = {"general.architecture": "florence2", "general.basename": row["name"]}
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": row["details"],
        "model_info": names,
        "capabilities": ["completion", "vision"],
        "modified_at": row["modified_at"],
    }


@router.post("/generate", summary="Ask about an image", response_model=None)
async def generate_text(body: GenerateBody, state: State) -> Response:
    """Answer a prompt about an image, as JSON lines unless `stream` is false."""
    if not body.prompt and not body.images:  # a client loads a model ahead of its first request
        return _loaded(body, state, {"response": ""})
    if not body.images:
        raise RequestError("the request holds no image", "send `images`, base64 text")
    prompt = ChatPrompt(body.prompt or "", tuple(body.images))
    return await _answer(body, state, prompt, lambda text: {"response": text})


@router.post("/chat", summary="Ask about an image in a chat", response_model=None)
async def chat(body: OllamaChatBody, state: State) -> Response:
    """Answer messages with an image, as JSON lines unless `stream` is false."""
    if not body.messages:
        return _loaded(body, state, {"message": _message("")})
    prompt = read_messages([message.model_dump() for message in body.messages])
    return await _answer(body, state, prompt, lambda text: {"message": _message(text)})


async def _answer(body: OllamaBody, state: ServerState, prompt: ChatPrompt, fields: Fields) -> Response:
    start = time.perf_counter_ns()
    call = await ChatCall.prepare(
        state.service,
        state.reader,
        prompt,
        model_name=body.model,
        generation=generation_config(body.options or {}, state.generation),
        json_format=JsonFormat.parse(body.format),
        stop=stop_words(body.options or {}),
    )
    name = body.model or call.model.name
    if body.stream is not False:
        return StreamingResponse(_lines(call, name, fields, start), media_type=NDJSON, headers=call.headers)
    answer = await call.run()
    return JSONResponse(_last(answer, name, fields(answer.content), start), headers=call.headers)


async def _lines(call: ChatCall, name: str, fields: Fields, start: int) -> AsyncIterator[str]:
    try:
        async for piece in call.stream():
            if isinstance(piece, str):
                yield _line({"model": name, "created_at": _now(), **fields(piece), "done": False})
            else:
                yield _line(_last(piece, name, fields(""), start))
    except RequestError as error:
        yield _line({"error": error.message})


def _last(answer: ChatAnswer, name: str, fields: dict[str, Any], start: int) -> dict[str, Any]:
    """Return the last line of an answer, or all of it; the times are those of the whole request."""
    duration = time.perf_counter_ns() - start
    return {
        "model": name,
        "created_at": _now(),
        **fields,
        "done": True,
        "done_reason": answer.finish_reason,
        "total_duration": duration,
        "load_duration": 0,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": 0,
        "eval_count": answer.completion_tokens,
        "eval_duration": duration,
    }


def _loaded(body: OllamaBody, state: ServerState, fields: dict[str, Any]) -> Response:
    require_text(body.model)
    name = body.model or state.service.default.name
    return JSONResponse({"model": name, "created_at": _now(), **fields, "done": True, "done_reason": "load"})


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _tag(state: ServerState, name: str) -> dict[str, Any]:
    """Describe a model as Ollama does; a name without a tag gets the default one."""
    full_name = name if ":" in name else f"{name}{DEFAULT_TAG}"
    return {
        "name": full_name,
        "model": full_name,
        "modified_at": datetime.fromtimestamp(state.service.started, UTC).isoformat(),
        "size": state.service.find(name)[0].num_bytes,
        "digest": hashlib.sha256(full_name.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": "florence2",
            "families": ["florence2"],
            "parameter_size": "",
            "quantization_level": "",
        },
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _line(value: dict[str, Any]) -> str:
    return f"{json.dumps(value, ensure_ascii=False)}\n"
