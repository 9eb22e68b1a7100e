"""Questions to the page of the tests without a browser."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage

WIDE = {"width": 1280, "height": 800}
TABLET = {"width": 768, "height": 1024}


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


def raw_request(
    site, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None
):
    """A raw request: nothing tidies the path. With the cookie and our own Origin unless headers say otherwise."""
    usual = {"Host": f"127.0.0.1:{site.port}", "Cookie": f"saccade-{site.port}={site.token}", "Origin": site.origin}
    connection = HTTPConnection("127.0.0.1", site.port, timeout=30)
    sent = {key: value for key, value in (usual | (headers or {})).items() if value}
    connection.request(method, path, body, sent, encode_chunked="Transfer-Encoding" in sent)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
