"""Waiting for the page. Playwright's own ``wait_for_function`` compiles text in the page, which our policy forbids."""

from __future__ import annotations

import time


def until(page, expression: str, seconds: float = 20.0) -> object:
    """Ask the page again and again until the JavaScript expression is true; its value. Fails with what it was."""
    ends = time.monotonic() + seconds
    while True:
        value = page.evaluate(expression)
        if value:
            return value
        assert time.monotonic() < ends, f"still {value!r} after {seconds:g} s: {expression}"
        page.wait_for_timeout(20)
