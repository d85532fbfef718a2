"""The state of the server: `/`, `/health` and `/metrics`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from florence2 import __version__
from florence2.apps.serve.routes.server_state import ServerState, get_state

router = APIRouter(tags=["status"])
State = Annotated[ServerState, Depends(get_state)]


@router.get("/", summary="Say what this server is", response_class=PlainTextResponse)
async def describe_server(state: State) -> str:
    """Name the server, its models and its pages."""
    return f"florence2 {__version__} serves {', '.join(state.service.models)}; see /docs\n"


@router.get("/health", summary="Say whether the server answers")
async def report_health(state: State, response: Response) -> dict[str, Any]:
    """Return the number of requests in work, and the models; status 503 where an engine has stopped."""
    has_stopped = any(model.engine.has_stopped for model in state.service.models.values())
    response.status_code = 503 if has_stopped else 200
    return {
        "status": "stopped" if has_stopped else "ok",
        "models": list(state.service.models),
        "requests_in_work": state.service.num_requests,
        "pending_predictions": sum(model.engine.num_pending for model in state.service.models.values()),
    }


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def report_metrics(state: State) -> PlainTextResponse:
    """Write the metrics."""
    return PlainTextResponse(state.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
