"""The files of the pages: HTML, one style sheet, and modules that a browser runs as they are."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "static"
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
router = APIRouter(include_in_schema=False)


@router.get("/page/static/{name}")
async def send_static_file(name: str) -> FileResponse:
    """Send a module or the style sheet; no other file has an address."""
    path = FOLDER / Path(name).name
    if path.suffix not in _MEDIA_TYPES or not path.is_file():
        raise HTTPException(404, "there is no such file")
    return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix], headers=SECURITY_HEADERS)


@router.get("/docs")
async def send_api_page() -> HTMLResponse:
    """Send the page that shows the OpenAPI description of the server; it loads nothing from elsewhere."""
    return html_page("api.html")


def html_page(name: str, **values: str) -> HTMLResponse:
    """Return a page with values for its `{{name}}` marks."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    for mark, value in values.items():
        text = text.replace("{{" + mark + "}}", value)
    return HTMLResponse(text, headers=SECURITY_HEADERS)
