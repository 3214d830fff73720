"""The page: its files lie in speechgpt/serve/page, and use OpenAI's API alone."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from speechgpt.serve.errors import ApiError

FOLDER = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
NOTHING_ELSE = (  # the page loads nothing from elsewhere, and no other site shows it in a frame
    "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


async def page(_: Request) -> Response:
    """The page."""
    return _file("index.html")


async def page_file(request: Request) -> Response:
    """A file that the page loads. Raises ApiError if there is none of that name."""
    return _file(request.path_params["name"])


def _file(name: str) -> Response:
    path = next((path for path in FOLDER.iterdir() if path.name == name and path.suffix in KINDS), None)
    if path is None:
        raise ApiError(404, f"the page has no file {name!r}")
    kind = f"{KINDS[path.suffix]}; charset=utf-8"
    return Response(path.read_bytes(), media_type=kind, headers={"Content-Security-Policy": NOTHING_ELSE})
