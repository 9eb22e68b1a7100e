"""The gate in front of the page: authentication, request limits and the content security policy.

Against other web pages in the same browser: Host must be ours (DNS rebinding), Origin and Sec-Fetch-Site must be ours
(forms, scripts and pictures of other sites). Against other users of the machine: a random token that is valid once
and is replaced by a cookie; the browser gets it in a file that only its owner can read. Against hostile names in the
data: a content security policy that runs only our own files.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD_PATH, UPLOAD_BYTES, BODY_BYTES = "/api/uploads", 32 * 2**20, 2**20
SAFE_METHODS = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report is one file with its styles and pictures inside; in a sandbox without permissions nothing in it can run.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Keys:
    """The address of the page, the secret of its cookie and the tokens that are exchanged for it, each once.

    Parameters
    ----------
    host, port
        Listening address.
    announce
        Receives a new address once the last one has been used.
    """

    host: str
    port: int
    announce: Callable[[str], None] | None = None
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    _tokens: set[str] = field(default_factory=set, repr=False)

    @property
    def cookie(self) -> str:
        # Cookies are shared between ports: two pages on one machine must not overwrite each other's.
        return f"saccade-{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the page."""
        address = _address(self.host)
        return self.host == "localhost" or (address is not None and address.is_loopback)

    @property
    def origin(self) -> str:
        """The address to open: this machine's name where every address is listened on."""
        address = _address(self.host)
        host = socket.gethostname() if address is not None and address.is_unspecified else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def new_url(self) -> str:
        """An address with a token that lets one browser in."""
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        return f"{self.origin}/?token={token}"

    def valid(self, given: str) -> bool:
        """Whether a token was issued and not used."""
        return any(_equal(given, token) for token in self._tokens)

    def use(self, token: str) -> None:
        """End a token, whose bearer gets the cookie."""
        self._tokens.discard(token)
        if self.announce is not None and not self._tokens:
            self.announce(self.new_url())

    def misdirected(self, authority: str) -> str:
        """The answer to a request for another name or port."""
        host, _, port = authority.rpartition(":")
        if port.isdigit() and self.ours(f"{host}:{self.port}"):
            return (
                f"This page has port {self.port}, the request names port {port}. Through a tunnel use the same port on "
                f"both sides: ssh -L {self.port}:127.0.0.1:{self.port} MACHINE, then open "
                f"http://127.0.0.1:{self.port} with the token that saccade view printed. Is {self.port} taken there, "
                "start saccade view with --port and another number."
            )
        return "this page is not served under that name"

    def ours(self, authority: str) -> bool:
        """Whether ``name:port`` is this page. Names can be pointed at us by others (DNS rebinding), numbers cannot."""
        if self.port == 80 and not authority.endswith(":80"):
            authority += ":80"  # browsers leave out the usual port
        host, _, port = authority.rpartition(":")
        if port != str(self.port):
            return False
        host = host.strip("[]").lower()
        address = _address(host)
        if self.local:
            return host == "localhost" or (address is not None and address.is_loopback)
        return address is not None or host in (self.host.lower(), socket.gethostname().lower(), "localhost")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Gate:
    """An ASGI application around the page; every request passes it, static files included."""

    def __init__(self, app: ASGIApp, keys: Keys):
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no web sockets
        headers = Headers(scope=scope)
        token = _token(scope) if scope["path"] == "/" else None
        refusal = self._refusal(scope, headers, token)
        entering = refusal is None and token is not None and self.keys.valid(token)
        if entering and token is not None:
            self.keys.use(token)
        guarded = _with_headers(send, self.keys if entering else None)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        limit = UPLOAD_BYTES if scope["path"] == UPLOAD_PATH else BODY_BYTES
        if _too_long(headers, limit):
            await JSONResponse({"what": f"too large: at most {limit / 2**20:g} MiB can be opened here"}, 413)(
                scope, receive, guarded
            )
            return
        await self.app(scope, _bounded(receive, limit), guarded)

    def _refusal(self, scope: Scope, headers: Headers, token: str | None) -> PlainTextResponse | None:
        if not self.keys.ours(headers.get("host", "")):
            return PlainTextResponse(self.keys.misdirected(headers.get("host", "")), 421)
        if not self._same_site(scope["method"], headers, token is not None):
            return PlainTextResponse("request from another site", 403)
        if token is not None and self.keys.valid(token):
            return None
        if _equal(_cookie(headers, self.keys.cookie), self.keys.session):
            return None
        return PlainTextResponse(
            "open the last address that saccade view printed: each lets in one browser, once; "
            "the next one is printed when it has been used",
            403,
        )

    def _same_site(self, method: str, headers: Headers, entering: bool) -> bool:
        """The address with its token may be followed from anywhere; other requests must come from the page."""
        origin = headers.get("origin")
        if origin is not None and not (origin.startswith("http://") and self.keys.ours(origin.removeprefix("http://"))):
            return False
        if method not in SAFE_METHODS and origin is None:
            return False
        return entering or headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(), secret.encode())


def _token(scope: Scope) -> str | None:
    token = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    return token[0] if token else None


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if cookie is None else cookie.value


def _too_long(headers: Headers, limit: int) -> bool:
    length = headers.get("content-length", "0")
    return not length.isdigit() or int(length) > limit


def _bounded(receive: Receive, limit: int) -> Receive:
    """The same messages; HTTP 413 once a body without a declared length exceeds the limit."""
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > limit:
            raise HTTPException(413, f"at most {limit:,} bytes")
        return message

    return counted


def _with_headers(send: Send, entering: Keys | None) -> Send:
    """Responses with the security headers, unless they set their own; with the cookie for a request with the token."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if entering is not None:
                headers.append("set-cookie", f"{entering.cookie}={entering.session}; Path=/; HttpOnly; SameSite=Strict")
        await send(message)

    return sent
