"""Questions to the page of the tests without a browser."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage


@dataclass(frozen=True)
class Fetched:
    status: int
    headers: HTTPMessage
    body: bytes


def fetch(site, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> Fetched:
    """The answer to one who is let in; with a ``body`` it is posted."""
    connection = HTTPConnection("127.0.0.1", site.port, timeout=60)
    known = {"cookie": f"saccade-{site.port}={site.token}", "origin": site.origin}
    connection.request("GET" if body is None else "POST", path, body=body, headers=known | (headers or {}))
    answer = connection.getresponse()
    found = Fetched(answer.status, answer.headers, answer.read())
    connection.close()
    return found


def ask(site, path: str) -> tuple[int, str]:
    found = fetch(site, path)
    return found.status, found.body.decode()
