"""The application: the routes of all protocols behind one guard, open to routers of other apps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from florence2 import GenerationConfig, __version__
from florence2.apps.page import static_files
from florence2.apps.serve.images.image_reader import ImageReader
from florence2.apps.serve.model_service import ModelService
from florence2.apps.serve.request_guard import RequestGuard, error_body
from florence2.apps.serve.request_limits import RequestError
from florence2.apps.serve.routes import ollama_routes, openai_routes, predict_routes, responses_routes, status_routes
from florence2.apps.serve.routes.server_state import ServerState
from florence2.apps.serve.site_check import SiteCheck

ROUTERS = (
    status_routes.router,
    openai_routes.router,
    responses_routes.router,
    ollama_routes.router,
    predict_routes.router,
    static_files.router,
)

_REASONS = {  # of Starlette, in place of its own words
    "Not Found": (
        "there is no `{path}`",
        "see /docs; the base URL of OpenAI's clients ends in /v1, that of Ollama's clients in the port",
    ),
    "Method Not Allowed": ("`{path}` does not answer {method}", "see /docs"),
    "There was an error parsing the body": ("the body is not JSON in UTF-8", "see /docs"),
}


def create_app(
    service: ModelService,
    *,
    generation: GenerationConfig | None = None,
    api_key: str | None = None,
    sites: SiteCheck | None = None,
    media_domains: Sequence[str] = (),
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """Create the application of a service, which it closes when it ends.

    Images are fetched from `media_domains` only. `routers` are further routes, which come first; theirs and all others
    get the `ServerState` by `Depends(get_state)`, and the same site check, key, limits, request ids and metrics.
    """
    state = ServerState(service, ImageReader(service.limits, media_domains), generation or GenerationConfig())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.reader.close()
        await service.close()

    app = FastAPI(
        title="florence2",
        version=__version__,
        summary="Captions, boxes, text and masks of images, by Florence-2",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from another server
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = state
    for router in (*routers, *ROUTERS):
        app.include_router(router)
    app.add_exception_handler(RequestError, _send_request_error)
    app.add_exception_handler(RequestValidationError, _send_validation_error)
    app.add_exception_handler(HTTPException, _send_http_error)
    sites = sites or SiteCheck()
    app.add_middleware(RequestGuard, service=service, sites=sites, api_key=api_key)
    if sites.allowed_origins:  # outermost, so that a page may ask without the key what it may send
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sites.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "x-florence2-task"],
        )
    return app


async def _send_request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return JSONResponse(error_body(request.url.path, error), error.status, headers=error.headers)


async def _send_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Name the wrong field; its value may be an image, and is not shown."""
    assert isinstance(error, RequestValidationError)
    message = predict_routes.validation_message(error.errors())
    return JSONResponse(error_body(request.url.path, RequestError(message)), 400)


async def _send_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path
    what, hint = _REASONS.get(str(error.detail), (str(error.detail), ""))
    reason = RequestError(what.format(method=request.method, path=path[:100]), hint, status=error.status_code)
    return JSONResponse(error_body(path, reason), error.status_code, headers=error.headers)
