"""What stands before the application: who may ask, how much, for how long, and what is written down of it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .metrics import Metrics
from .settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("ovseg")
access = logging.getLogger("ovseg.access")

# What a browser loads before its user could have given a token, and what orchestrators ask. Nothing of a user's
# is behind these.
_OPEN = ("/", "/docs", "/openapi.json", "/health", "/info")
_OPEN_BELOW = ("/page/", "/health/", "/static-offline-docs/", "/samples/")
# Seconds and multiples of the limit for which a body that was refused is still read, so that the client reads the
# answer rather than a broken connection.
_DRAIN_SECONDS, _DRAIN_TIMES = 5.0, 4
CLIENT_GONE = 499


class Refused(Exception):  # noqa: N818
    """A request that is answered here."""

    def __init__(
        self, status: int, message: str, headers: dict[str, str] | None = None, *, drain: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.drain = status, message, headers or {}, drain


class Guard:
    """ASGI middleware that reads whole bodies, within limits, and ends what takes too long or what nobody awaits.

    Every request gets a `log_id` in its state and a line, without its contents, in the log `ovseg.access`.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] == "http":
            await _Exchange(self._app, self._settings, scope, receive, send, self).handle(self._metrics)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:  # there are no WebSockets
            await send({"type": "websocket.close", "code": 1000})

    def reserve(self, size: int) -> None:
        """Count bytes of a request that are held.

        Raises:
            Refused: all requests together have become too large.
        """
        if self._buffered + size > self._settings.max_buffered:
            raise Refused(503, "Too many large requests at a time. Try again later.", {"retry-after": "2"}, drain=True)
        self._buffered += size

    def release(self, size: int) -> None:
        """Forget bytes of a request."""
        self._buffered -= size


class _Exchange:
    """One request and its response."""

    def __init__(self, app: App, settings: Settings, scope: Scope, receive: Receive, send: Send, guard: Guard) -> None:
        self._app, self._settings, self._guard = app, settings, guard
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._log_id = str(uuid.uuid4())
        self._status = 0
        self._read = self._sent = self._held = 0
        self._complete = False

    async def handle(self, metrics: Metrics) -> None:
        """Answer the request, and log it."""
        started = time.perf_counter()
        self._scope.setdefault("state", {}).update(log_id=self._log_id, hold=self._hold)
        try:
            await self._answer()
        except Refused as refused:
            await self._refuse(refused)
        except Exception as error:
            if not self._complete:
                raise
            # Answered with 500: the connection stays, for further requests.
            logger.error("%s: %r", self._log_id, error, exc_info=error)
        finally:
            self._guard.release(self._held)
            seconds = time.perf_counter() - started
            route = self._scope.get("route")
            metrics.count(getattr(route, "path", None) or "other", self._status, seconds)
            self._log(seconds)

    async def _answer(self) -> None:
        self._check_caller()
        body = await self._body()
        deadline = self._settings.deadline
        told = False

        async def receive() -> Message:
            nonlocal told
            if told:  # whether the client is still there is watched below
                await asyncio.Event().wait()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        answer = asyncio.ensure_future(self._app(self._scope, receive, self._pass_on))
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((answer, gone), timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() or self._complete:  # the server calls a client gone once it has its answer
                await answer
            elif gone.done():
                self._status = CLIENT_GONE
            elif not self._status:
                raise Refused(504, f"There is no result after {deadline:g} s. Try a smaller image or fewer prompts.")
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _gone(self) -> None:
        """Return once the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # ------------------------------------------------------------ who may ask

    def _check_caller(self) -> None:
        path, settings = self._scope["path"], self._settings
        if settings.literal_hosts and not _is_literal(self._headers.get("host", "")):
            raise Refused(
                421,
                "This service answers to IP addresses and localhost only. Use one of these, or --host to serve others.",
                drain=True,
            )
        if settings.token is None or path in _OPEN or path.startswith(_OPEN_BELOW):
            return
        kind, _, given = self._headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), settings.token.encode())
        if kind.lower() != "bearer" or not right:
            challenge = {"www-authenticate": "Bearer"}
            raise Refused(401, "A token is needed: send the header Authorization: Bearer TOKEN.", challenge, drain=True)

    # ------------------------------------------------------------ the body

    async def _body(self) -> bytes:
        if self._scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return b""
        limit = self._settings.max_body
        announced = self._headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise Refused(413, _too_large(limit), drain=True)
        data = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(CLIENT_GONE, "")
                    chunk = message.get("body", b"")
                    self._read += len(chunk)
                    self._hold(len(chunk))
                    data += chunk
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            seconds = self._settings.body_timeout
            raise Refused(408, f"The body did not arrive within {seconds:g} s. Send it faster.") from None
        # Base64 has none of these characters: so many of them are values, each of which costs memory once parsed.
        values = data.count(b",") + data.count(b"[") + data.count(b"{")
        if values > self._settings.max_values:
            most = self._settings.max_values
            raise Refused(413, f"The body has {values} values; the limit is {most}. Send fewer at a time.")
        return bytes(data)

    def _hold(self, size: int) -> None:
        """Count bytes that are held until the request is answered: of its body, or of what its URLs name.

        Raises:
            Refused: this request, or all together, have become too large.
        """
        if self._held + size > self._settings.max_body:
            raise Refused(413, _too_large(self._settings.max_body), drain=True)
        self._guard.reserve(size)
        self._held += size

    async def _drain(self) -> None:
        """Read what is left of a body that nobody wants."""
        left = _DRAIN_TIMES * self._settings.max_body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return

    # ------------------------------------------------------------ the answer

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
        else:
            self._sent += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def _refuse(self, refused: Refused) -> None:
        if refused.status == CLIENT_GONE:
            self._status = CLIENT_GONE
            return
        body = json.dumps(envelope(self._log_id, refused.status, refused.message)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        if self._scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers["connection"] = "close"
        if refused.drain and self._headers.get("expect", "").lower() != "100-continue":
            await self._drain()
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._pass_on({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await self._pass_on({"type": "http.response.body", "body": b"" if self._scope["method"] == "HEAD" else body})

    def _log(self, seconds: float) -> None:
        if not access.isEnabledFor(logging.INFO):
            return
        client = self._scope.get("client")
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": self._log_id,
            "client": client[0] if client else None,
            "method": self._scope["method"],
            "path": self._scope["path"][:200],
            "status": self._status,
            "ms": round(1000 * seconds, 1),
            "in": self._read,
            "out": self._sent,
        }
        access.info("%s", json.dumps(entry))


def envelope(log_id: str, status: int, message: str) -> dict[str, Any]:
    """Return the body of an error."""
    return {"logId": log_id, "errorCode": status, "errorMsg": message}


def _too_large(limit: int) -> str:
    return f"The body, with what its URLs name, is larger than {limit} bytes. Send a smaller image, or fewer at a time."


def _is_literal(host: str) -> bool:
    """Whether a Host header is an IP address or `localhost`, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
