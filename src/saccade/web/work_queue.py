"""Pictures, attention and searches wait in a queue, so that lists, job states and static files are answered at once.

An endpoint runs in one of the 40 threads of the server. Without a queue 300 requests for tiles take them all, and the
next request for a small file waits for seconds; each also holds its pixels in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade.base.machine import usable_cores

AT_ONCE = max(2, usable_cores())
MOST = 512  # requests that wait
LIGHT = re.compile(
    r"/api/(runs(/[^/]+(/report)?)?|live|images|slides|(attention|sentences)/models|map|map/embed/.*"
    r"|.*/(job|cancel)|slides/[^/]+/features|regions/[^/]+/attention)"
)
"""Paths below ``/api`` that are answered from memory or small files; states of jobs among them."""


def is_heavy(path: str) -> bool:
    """Whether a request computes or reads pixels or vectors.

    Examples
    --------
    >>> is_heavy("/api/slides/a/zoom/3/0/1"), is_heavy("/api/runs"), is_heavy("/static/page.js")
    (True, False, False)
    """
    return path.startswith("/api/") and LIGHT.fullmatch(path) is None


class WorkQueue:
    """An ASGI application around the page: ``at_once`` heavy requests are answered, ``most`` wait, others get 503."""

    def __init__(self, app: ASGIApp, at_once: int = AT_ONCE, most: int = MOST):
        self.app, self.most, self.waiting = app, most, 0
        self._free = asyncio.Semaphore(at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_heavy(scope["path"]):
            await self.app(scope, receive, send)
            return
        if self.waiting >= self.most:
            busy = JSONResponse({"what": "the page has too much to do; try again in a few seconds"}, 503)
            busy.headers["retry-after"] = "5"
            await busy(scope, receive, send)
            return
        async with self._turn(scope, receive) as still_wanted:
            if still_wanted:
                given = _after_empty_body(receive) if scope["method"] == "GET" else receive
                await self.app(scope, given, send)

    @contextlib.asynccontextmanager
    async def _turn(self, scope: Scope, receive: Receive) -> AsyncIterator[bool]:
        """Wait for a free place; False where the browser has gone in the meantime, as after moving on in a slide."""
        acquire = asyncio.ensure_future(self._free.acquire())
        gone = asyncio.ensure_future(_disconnected(receive)) if scope["method"] == "GET" else None
        self.waiting += 1
        try:
            await asyncio.wait({acquire, gone} if gone else {acquire}, return_when=asyncio.FIRST_COMPLETED)
            left = gone is not None and gone.done()
        finally:
            self.waiting -= 1
            for waiter in (acquire, gone):
                if waiter is not None and not waiter.done():
                    waiter.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await waiter
        try:
            yield not left and not acquire.cancelled()
        finally:
            if not acquire.cancelled():
                self._free.release()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _after_empty_body(receive: Receive) -> Receive:
    """The messages of a request whose (empty) body was received already."""
    pending: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def given() -> Message:
        return pending.pop() if pending else await receive()

    return given
