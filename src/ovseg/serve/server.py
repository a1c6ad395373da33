"""uvicorn, with an end to slow clients and to requests in progress."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ConfigError
from .guard import App
from .settings import Settings

# Seconds that a connection without a request in progress is kept in a shutdown: a request may be on its way.
_GRACE = 2.0
# Seconds for clients that had begun to connect when a shutdown began, whose last packet is on its way.
_HANDSHAKE = 0.2
# A program for Linux's packet filter (see linux/filter.h). It drops the packets that begin a connection: those with SYN
# and without ACK in byte 13 of the TCP header.
_SO_ATTACH_FILTER = 26
_NO_MORE_CONNECTIONS = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load byte 13
        (0x54, 0, 0, 0x12),  # keep its SYN and ACK
        (0x15, 0, 1, 0x02),  # only SYN: the next instruction, else the one after it
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    )
)


def check_address(host: str, port: int) -> None:
    """Find out early whether `run` could listen there.

    Raises:
        ConfigError: it could not.
    """
    _listen(host, port).close()


def run(app: App, settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish what is in progress then; a second Ctrl-C ends the process at once.

    The address is printed once the service answers.

    Raises:
        ConfigError: the address cannot be listened on.
        KeyboardInterrupt: it was Ctrl-C.
    """
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="none",
        loop="asyncio",
        lifespan="on",
        # Longer than any Retry-After, or a client that waited would find its connection closed.
        timeout_keep_alive=75,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_longest(settings),
        backlog=512,
    )
    shown = f"[{host}]" if ":" in host else host
    server = _Server(config, f"http://{shown}:{listening.getsockname()[1]}")
    with listening:
        server.run(sockets=[listening])
    if server.interrupted:
        raise KeyboardInterrupt


def _longest(settings: Settings) -> int:
    """Return the seconds that a request may take from its body to the end of its answer."""
    return math.ceil(settings.body_timeout + settings.deadline + settings.send_timeout)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {reason}.", "Choose another --host or --port."
        ) from error


class _Server(uvicorn.Server):
    """uvicorn's server, which says where it is once it answers, and what ended it.

    Attributes:
        interrupted: True once Ctrl-C was pressed.
    """

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self.interrupted = False
        self._url = url

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end there and then. uvicorn's would raise each signal again in the end."""
        if self.should_exit and sig == signal.SIGINT:
            # In order, this would take as long as the models do: a thread in one must not see the interpreter go.
            with contextlib.suppress(OSError):
                os.write(2, b"ovs: interrupted\n")
            os._exit(130)
        self.interrupted |= sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        try:
            print(self._url, flush=True)
        except OSError:
            await self.lifespan.shutdown()
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take in whoever has connected already, then close."""
        loop = asyncio.get_running_loop()
        closing = [_take_no_more(listening) for listening in sockets or []]
        if any(closing):
            await asyncio.sleep(_HANDSHAKE)
        for listening in sockets or []:
            loop.remove_reader(listening)
        # Those whom the event loop has accepted get their protocols while there still is a server: in the next turn.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late = [connection for listening in sockets or [] for connection in _accept_all(listening)]
        for server in self.servers:
            server.close()
        for connection in late:
            await loop.connect_accepted_socket(self._make_protocol, connection)
        await asyncio.sleep(0)  # they begin to read
        await super().shutdown(sockets)

    def _make_protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def _take_no_more(listening: socket.socket) -> bool:
    """Let no client begin to connect: it asks again in a second, and is refused then. Return whether that can be done.

    It cannot where the system is not Linux, or asks for CAP_NET_ADMIN, as some kernels do. There those are reset, with
    their requests, who connect between the last `accept` and the closing of the socket: less than a millisecond.
    """
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(_NO_MORE_CONNECTIONS, len(_NO_MORE_CONNECTIONS))
    filter_ = struct.pack("HP", len(program) // 8, ctypes.addressof(program))
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
    except OSError:
        return False
    return True


def _accept_all(listening: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections that wait at a socket that does not block, as far as there are file descriptors."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            connection.setblocking(False)
            yield connection


def _protocol(settings: Settings) -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """HTTP/1.1 that hangs up on those who neither ask nor read."""

        _head: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None
        _leaving = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(settings.head_timeout, self._no_head)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head, self._reading):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE and self._head is not None:
                self._head.cancel()
                self._head = None
            elif self.conn.their_state is h11.IDLE and self._head is None:
                # The first bytes of a further request; uvicorn watches the pause before them.
                self._head = self.loop.call_later(settings.head_timeout, self._no_head)
            if self._leaving:
                self._announce_end()

        def _no_head(self) -> None:
            self._head = None
            if self.conn.their_state is h11.IDLE:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading = self.loop.call_later(settings.send_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def shutdown(self) -> None:
            self._leaving = True
            self._announce_end()
            self.loop.call_later(_GRACE, self._leave)

        def _announce_end(self) -> None:
            """Let the response say that it is the last one, or the client might send a request after it."""
            if self.cycle is not None and not self.cycle.response_started:
                self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

        def _leave(self) -> None:
            if self.transport.is_closing():
                return
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.keep_alive = False
            else:
                with contextlib.suppress(h11.LocalProtocolError):  # in the middle of a head
                    self.conn.send(h11.ConnectionClosed())
                self.transport.close()

    return Protocol
