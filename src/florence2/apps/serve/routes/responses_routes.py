"""OpenAI's newer protocol: `/v1/responses`, which has the same questions and answers in another form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict

from florence2.apps.serve.chat.chat_answers import ChatAnswer, ChatCall
from florence2.apps.serve.chat.chat_messages import read_messages
from florence2.apps.serve.chat.json_answers import JsonFormat
from florence2.apps.serve.request_limits import RequestError
from florence2.apps.serve.routes.generation_options import generation_config
from florence2.apps.serve.routes.openai_routes import ChatMessage
from florence2.apps.serve.routes.server_state import ServerState, get_state

router = APIRouter(tags=["OpenAI"])
State = Annotated[ServerState, Depends(get_state)]


class ResponseBody(BaseModel):
    """A request for a response; unknown keys are ignored, and nothing is stored."""

    model_config = ConfigDict(extra="allow")
    input: str | list[ChatMessage]
    model: str | None = None
    stream: bool | None = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: dict[str, Any] | None = None


@router.post("/v1/responses", summary="Ask about an image, in the newer form", response_model=None)
@router.post("/responses", include_in_schema=False, response_model=None)
async def create_response(body: ResponseBody, state: State) -> Response:
    """Answer input with an image; the words choose the task, which the headers name."""
    messages = [] if isinstance(body.input, str) else [message.model_dump() for message in body.input]
    options = {**body.model_dump(), "max_tokens": body.max_output_tokens}
    call = await ChatCall.prepare(
        state.service,
        state.reader,
        read_messages(messages),
        model_name=body.model,
        generation=generation_config(options, state.generation),
        json_format=JsonFormat.parse((body.text or {}).get("format")),
    )
    head = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time())}
    head |= {"model": call.model.name, "error": None, "parallel_tool_calls": False, "tool_choice": "none", "tools": []}
    if body.stream:
        return StreamingResponse(_events(call, head), media_type="text/event-stream", headers=call.headers)
    return JSONResponse(_response(head, await call.run()), headers=call.headers)


async def _events(call: ChatCall, head: dict[str, Any]) -> AsyncIterator[str]:
    """Yield server-sent events: the response, its message and its text begin, the pieces, and all of them end."""
    number = -1

    def event(kind: str, **values: Any) -> str:
        nonlocal number
        number += 1
        data = {"type": kind, "sequence_number": number, **values}
        return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"

    message_id = _message_id(head)
    of_message = {"output_index": 0}
    of_text = {**of_message, "item_id": message_id, "content_index": 0}
    begun = {**head, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", **of_message, item=_message(message_id, [], "in_progress"))
    yield event("response.content_part.added", **of_text, part=_text(""))
    try:
        async for piece in call.stream():
            if isinstance(piece, str):
                yield event("response.output_text.delta", **of_text, delta=piece, logprobs=[])
                continue
            content = _text(piece.content)
            yield event("response.output_text.done", **of_text, text=piece.content, logprobs=[])
            yield event("response.content_part.done", **of_text, part=content)
            yield event("response.output_item.done", **of_message, item=_message(message_id, [content]))
            response = _response(head, piece)
            yield event(f"response.{response['status']}", response=response)
    except RequestError as error:
        reason = {"code": "server_error", "message": error.message}
        yield event("response.failed", response={**begun, "status": "failed", "error": reason})


def _response(head: dict[str, Any], answer: ChatAnswer) -> dict[str, Any]:
    reason = {"reason": "max_output_tokens"} if answer.is_truncated else None
    return {
        **head,
        "status": "incomplete" if answer.is_truncated else "completed",
        "incomplete_details": reason,
        "output": [_message(_message_id(head), [_text(answer.content)])],
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answer.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }


def _message_id(head: dict[str, Any]) -> str:
    return f"msg_{head['id'].removeprefix('resp_')}"


def _message(message_id: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    return {"type": "message", "id": message_id, "role": "assistant", "status": status, "content": content}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
