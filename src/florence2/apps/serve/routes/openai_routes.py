"""OpenAI's protocol: `/v1/chat/completions` and `/v1/models`, also without `/v1`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from florence2.apps.serve.chat.chat_answers import ChatAnswer, ChatCall
from florence2.apps.serve.chat.chat_messages import read_messages
from florence2.apps.serve.chat.json_answers import JsonFormat
from florence2.apps.serve.request_limits import RequestError
from florence2.apps.serve.routes.generation_options import generation_config, stop_words
from florence2.apps.serve.routes.server_state import ServerState, get_state

router = APIRouter(tags=["OpenAI"])
State = Annotated[ServerState, Depends(get_state)]


class ChatMessage(BaseModel):
    """One message of a chat; the image may be in the content or beside it."""

    model_config = ConfigDict(extra="allow")
    role: str = "user"
    content: str | list[Any] | dict[str, Any] | None = None


class ChatCompletionBody(BaseModel):
    """A chat request; unknown keys are ignored."""

    model_config = ConfigDict(extra="allow")
    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    n: int | None = 1
    response_format: dict[str, Any] | None = None
    task: str | None = None
    task_input: str = ""


@router.get("/v1/models", summary="List the models, and the tasks that can be named as models")
@router.get("/models", include_in_schema=False)
async def list_models(state: State) -> dict[str, Any]:
    """List the models, then each with its tasks behind a colon."""
    created = int(state.service.started)
    names = state.model_names()
    rows = [{"id": name, "object": "model", "created": created, "owned_by": "florence2"} for name in names]
    return {"object": "list", "data": rows}


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(model_id: str, state: State) -> dict[str, Any]:
    """Return a model by its name."""
    if model_id not in state.model_names():
        raise RequestError(f"`{model_id[:60]}` is not a model of this server", "see `/v1/models`", status=404)
    return {"id": model_id, "object": "model", "created": int(state.service.started), "owned_by": "florence2"}


@router.post("/v1/chat/completions", summary="Ask about an image", response_model=None)
@router.post("/chat/completions", include_in_schema=False, response_model=None)
async def complete_chat(body: ChatCompletionBody, state: State) -> Response:
    """Answer a chat with an image; the words choose the task, which the headers name."""
    if body.n not in (None, 1):
        raise RequestError(f"`n` is {body.n}", "send 1: a model answers one way")
    call = await ChatCall.prepare(
        state.service,
        state.reader,
        read_messages([message.model_dump() for message in body.messages]),
        model_name=body.model,
        generation=generation_config(body.model_dump(), state.generation),
        json_format=JsonFormat.parse(body.response_format),
        stop=stop_words(body.model_dump()),
        task=body.task,
        task_input=body.task_input,
    )
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": call.model.name}
    if body.stream:
        has_usage = bool((body.stream_options or {}).get("include_usage"))
        events = _events(call, head, has_usage=has_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=call.headers)
    answer = await call.run()
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.content, "refusal": None},
        "logprobs": None,
        "finish_reason": answer.finish_reason,
    }
    value = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}
    return JSONResponse(value, headers=call.headers)


async def _events(call: ChatCall, head: dict[str, Any], *, has_usage: bool) -> AsyncIterator[str]:
    """Yield server-sent events: the role, the pieces of the text, the end, the usage if asked for, and `[DONE]`."""

    def event(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if has_usage else {}
        return _sse({**head, "object": "chat.completion.chunk", "choices": [choice], **usage})

    yield event({"role": "assistant", "content": ""})
    try:
        async for piece in call.stream():
            if isinstance(piece, str):
                yield event({"content": piece})
                continue
            yield event({}, piece.finish_reason)
            if has_usage:
                yield _sse({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(piece)})
    except RequestError as error:
        yield _sse({"error": {"message": error.message, "type": "server_error", "param": None, "code": error.status}})
    yield "data: [DONE]\n\n"


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(answer: ChatAnswer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
