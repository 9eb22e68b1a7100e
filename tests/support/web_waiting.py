"""Waiting for the page. Playwright's own ``wait_for_function`` compiles text in the page, which our policy forbids."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator


def until(page, expression: str, seconds: float = 20.0) -> object:
    """Ask the page again and again until the JavaScript expression is true; its value. Fails with what it was."""
    ends = time.monotonic() + seconds
    while True:
        value = page.evaluate(expression)
        if value:
            return value
        assert time.monotonic() < ends, f"still {value!r} after {seconds:g} s: {expression}"
        page.wait_for_timeout(20)


class Late:
    """The first answer to a question comes after all others: keeps its request until ``let_go``.

    address   a glob of Playwright for the addresses meant
    """

    def __init__(self, page, address: str):
        self.page = page
        self.kept = None
        page.route(address, self._take)

    def _take(self, route) -> None:
        if self.kept is None:
            self.kept = route
        else:
            route.continue_()

    def let_go(self) -> None:
        """Answer now, and wait until the page has had its time with the answer."""
        with self.page.expect_event("requestfinished", lambda request: request == self.kept.request):
            self.kept.continue_()
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")


class Held:
    """All answers to some questions come only after ``let_go``.

    address   a glob of Playwright for the addresses meant
    """

    def __init__(self, page, address: str):
        self.kept: list | None = []
        page.route(address, self._take)

    def _take(self, route) -> None:
        if self.kept is None:
            route.continue_()
        else:
            self.kept.append(route)

    def let_go(self) -> None:
        kept, self.kept = self.kept, None
        for route in kept:
            route.continue_()


@contextlib.contextmanager
def refused(page, address: str) -> Iterator[None]:
    """Within it some questions are answered by a server that is out of order.

    address   a glob of Playwright for the addresses meant
    """
    said = json.dumps({"what": "the server is out of order"})
    page.route(address, lambda route: route.fulfill(status=500, content_type="application/json", body=said))
    yield
    page.unroute(address)


def waited_for(page) -> str:
    """What the page says that it waits for; fails where it says nothing, or has no heading."""
    until(
        page,
        "document.querySelector('.page h1')?.innerText && document.querySelector('.page [role=status]')?.innerText",
    )
    return page.locator(".page [role=status]").first.inner_text()
