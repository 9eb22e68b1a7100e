"""The page as an application, and the process that serves it. No torch here or below."""

from __future__ import annotations

import mimetypes
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from saccade.errors import SaccadeError, UsageError
from saccade.web import embedding_map, explorer, images, regions, runs, slides, text
from saccade.web.catalog import Catalog
from saccade.web.discover import encodable
from saccade.web.security import Gate, Keys
from saccade.web.work_queue import WorkQueue

STATIC = Path(__file__).parent / "static"
DEFAULT_PORT = 8420
# One router a page.
ROUTERS: tuple[Callable[[Catalog], APIRouter], ...] = (
    explorer.router,
    slides.router,
    regions.router,
    text.router,
    embedding_map.router,
    runs.router,
    images.router,
)


def create_app(catalog: Catalog, keys: Keys) -> ASGIApp:
    """The page behind its gate."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for router in ROUTERS:
        app.include_router(router(catalog), prefix="/api")
    app.include_router(_files())
    app.add_exception_handler(SaccadeError, _error_response)
    return Gate(WorkQueue(app), keys)


def _files() -> APIRouter:
    """The static files, from a table made at the start: other names do not exist."""
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
    # Windows keeps these types in its registry, where other programs may have changed them.
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".wasm": "application/wasm"}
    router = APIRouter()

    @router.get("/")
    def shell() -> Response:
        return FileResponse(files["index.html"], media_type="text/html")

    @router.get("/static/{name:path}")
    def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        suffix = files[name].suffix
        kind = types.get(suffix) or mimetypes.types_map.get(suffix) or "application/octet-stream"
        return FileResponse(files[name], media_type=kind)

    return router


def _error_response(request: Request, error: Exception) -> JSONResponse:
    """An error as JSON, with the parts of the message."""
    assert isinstance(error, SaccadeError)
    parts = {"what": error.what, "got": error.got, "expected": error.expected, "hint": error.hint}
    return JSONResponse({key: encodable(str(value)) for key, value in parts.items() if value is not None}, 400)


# --- serving --------------------------------------------------------------------------------------


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket; port None takes the default port or, if it is in use, any free one.

    Raises
    ------
    UsageError
        The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failed: OSError | None = None
    for candidate in (DEFAULT_PORT, 0) if port is None else (port,):
        # asyncio disables Nagle's algorithm (40 ms per response) only where the protocol is given.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            sock.listen(128)
        except OSError as error:
            sock.close()
            failed = error
            continue
        return sock
    raise UsageError(
        f"cannot listen on {host}" + (f", port {port}" if port else ""),
        got=failed.strerror if failed else None,
        hint="leave out --port to take a free one" if port else "name an address of this machine",
    )


def serve(app: ASGIApp, sock: socket.socket) -> None:
    """Answer until Ctrl-C. Open event streams get one second to end."""
    server(app).run(sockets=[sock])


def server(app: ASGIApp) -> uvicorn.Server:
    # Proxy headers can be forged, and an access log would contain the token.
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
