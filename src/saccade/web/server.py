"""The page as an application, and the process that serves it. Nothing here or below imports torch."""

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
from saccade.web.catalog import Desk
from saccade.web.discover import spelt
from saccade.web.security import Gate, Keys

STATIC = Path(__file__).parent / "static"
USUAL_PORT = 8420
# One router a page.
ROUTERS: tuple[Callable[[Desk], APIRouter], ...] = (
    explorer.router,
    slides.router,
    regions.router,
    text.router,
    embedding_map.router,
    runs.router,
    images.router,
)


def create_app(desk: Desk, keys: Keys) -> ASGIApp:
    """The page behind its gate."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for router in ROUTERS:
        app.include_router(router(desk), prefix="/api")
    app.include_router(_files())
    app.add_exception_handler(SaccadeError, _said)
    return Gate(app, keys)


def _files() -> APIRouter:
    """The page's own files, from a table made at the start: a name that is not in it does not exist."""
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}
    # Windows keeps types in its registry, where another program may have written nonsense.
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


def _said(request: Request, error: Exception) -> JSONResponse:
    """What a person can act on, as the command line would say it."""
    assert isinstance(error, SaccadeError)
    known = {"what": error.what, "got": error.got, "expected": error.expected, "hint": error.hint}
    return JSONResponse({key: spelt(str(value)) for key, value in known.items() if value is not None}, 400)


# --- serving --------------------------------------------------------------------------------------


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket. ``port`` None takes the usual one or, where that is taken, any that is free.

    Raises UsageError where the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failed: OSError | None = None
    for wanted in (USUAL_PORT, 0) if port is None else (port,):
        # The protocol is named: asyncio turns off Nagle's waiting, 40 ms an answer, only where it is.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, wanted))
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
    # Neither proxies' headers nor access lines: the first can lie about who asks, the second would log the token.
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
