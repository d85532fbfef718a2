"""The application of `florence2 review`: the page, its images, and the changes of rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from florence2 import FileChangedError, UserError, __version__
from florence2.apps.page import static_files
from florence2.apps.page.page_guard import PageGuard, make_token
from florence2.apps.page.review_session import ChangesBody, ReplaceBody, ReviewSession
from florence2.apps.page.thumbnails import Thumbnails
from florence2.files import to_json

GRID_SIDE = 320
EDITOR_SIDE = 1600
AskRow = Callable[[Any], dict[str, Any]]


class RowsResponse(JSONResponse):
    """JSON with names of files that are not UTF-8, as escapes."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return to_json(content).encode()


def create_review_app(session: ReviewSession, ask_row: AskRow | None = None, token: str | None = None) -> FastAPI:
    """Create the application of a review; `ask_row` predicts a row again, where a model is loaded."""
    token = token or make_token()
    thumbnails = Thumbnails()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        thumbnails.close()

    app = FastAPI(
        title="florence2 review",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        default_response_class=RowsResponse,
    )
    app.include_router(static_files.router)
    _add_reading(app, session, thumbnails, token, can_ask=ask_row is not None)
    _add_writing(app, session, ask_row)
    app.add_exception_handler(UserError, _send_error)
    app.add_exception_handler(RequestValidationError, _send_invalid)
    app.add_middleware(PageGuard, token=token)
    return app


def _add_reading(app: FastAPI, session: ReviewSession, thumbnails: Thumbnails, token: str, *, can_ask: bool) -> None:
    @app.get("/")
    def send_page() -> HTMLResponse:
        return static_files.html_page("review.html", token=token, can_ask="yes" if can_ask else "")

    @app.get("/review/rows")
    def send_rows() -> RowsResponse:
        return RowsResponse(session.rows(), headers={"cache-control": "no-store"})

    @app.get("/review/images/{index}")
    async def send_image(index: int, large: bool = False) -> Response:
        row = session.row(index)
        if row is None or row.image is None:
            raise HTTPException(404, "the row has no image")
        data = await thumbnails.jpeg(row.image, EDITOR_SIDE if large else GRID_SIDE)
        headers = {"cache-control": "private, max-age=3600", "cross-origin-resource-policy": "same-origin"}
        return Response(data, media_type="image/jpeg", headers=headers)


def _add_writing(app: FastAPI, session: ReviewSession, ask_row: AskRow | None) -> None:
    @app.post("/review/changes")
    def change_rows(body: ChangesBody) -> dict[str, Any]:
        return session.change(body)

    @app.post("/review/replace")
    def replace_words(body: ReplaceBody) -> dict[str, Any]:
        return session.replace(body)

    @app.post("/review/undo")
    def undo_change() -> dict[str, Any]:
        return session.undo()

    @app.post("/review/reload")
    def reload_files() -> dict[str, Any]:
        return session.reload()

    @app.post("/review/ask/{index}")
    def predict_again(index: int) -> dict[str, Any]:
        row = session.row(index)
        if ask_row is None or row is None:
            raise UserError("no model is loaded", "start `florence2 review` with `--model_path`")
        return ask_row(row)


async def _send_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UserError)
    status = 409 if isinstance(error, FileChangedError) else 400
    return JSONResponse({"error": error.what, "hint": error.hint}, status)


async def _send_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return JSONResponse({"error": f"`{where}`: {first['msg']}", "hint": "reload the page"}, 422)
