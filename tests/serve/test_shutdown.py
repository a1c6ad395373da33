"""SIGTERM finishes what is in progress; kill -9 loses no committed index."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from recognition_graphs import plain
from service_process import WAIT, Start, as_base64

from ovseg.serve import Settings
from ovseg.serve.server import _listen, _longest, _protocol, _Server, _take_no_more

PROMPT = "/open-vocabulary-segmentation"
IMAGE = as_base64(plain((250, 250, 250), 120, 160))


@pytest.mark.parametrize("keep_alive", [False, True])
def test_sigterm_under_load_loses_no_accepted_request(start: Start, keep_alive: bool) -> None:
    service = start(pipelines=("open_vocabulary_segmentation",))
    body = {"image": IMAGE, "prompt": [[5, 5]] * 20, "prompt_type": "point"}
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def send() -> None:
        session = requests.Session()
        while True:
            post = session.post if keep_alive else requests.post
            try:
                outcome = str(post(service.url + PROMPT, json=body, timeout=60).status_code)
            except requests.ConnectionError as error:
                # Refused is not accepted; anything else was.
                outcome = "refused" if "refused" in str(error) else f"lost: {error}"
            with lock:
                outcomes[outcome] += 1
            if outcome != "200":
                return

    clients = [threading.Thread(target=send) for _ in range(16)]
    for client in clients:
        client.start()
    while outcomes["200"] < 40:
        time.sleep(0.05)
    assert service.stop() == 0
    for client in clients:
        client.join()
    assert outcomes.keys() == {"200", "refused"}, outcomes
    answered = sum(PROMPT in line and '"status": 200' in line for line in service.log)
    assert answered == outcomes["200"]


async def started(app: Any) -> tuple[_Server, socket.socket]:
    """A server of `app` in this event loop, and the socket at which it listens."""
    listening = _listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app, http=_protocol(Settings()), lifespan="off", log_config=None, timeout_graceful_shutdown=5
    )
    config.load()
    server = _Server(config, "")
    server.lifespan = config.lifespan_class(config)
    await server.startup([listening])
    return server, listening


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def answers_of_a_server_that_ends() -> list[bytes]:
    """End a server while clients come, until one is refused; return how each answer begins."""
    server, listening = await started(answer)
    address, clients = listening.getsockname(), []

    def come() -> None:
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                client = socket.create_connection(address, timeout=10)
                clients.append(client)
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                time.sleep(0.001)

    coming = [asyncio.create_task(asyncio.to_thread(come)) for _ in range(4)]
    while len(clients) < 20:
        await asyncio.sleep(0)
    await server.shutdown([listening])
    await asyncio.gather(*coming)
    answers = []
    for client in clients:
        with client:
            answers.append(client.recv(15))
    return answers


def can_take_no_more() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return _take_no_more(listening)


NEEDS_A_FILTER = pytest.mark.skipif(
    not can_take_no_more(), reason="the system filters no packets for us: those who come in the last moment are reset"
)


@NEEDS_A_FILTER
def test_whoever_could_connect_is_answered() -> None:
    answers = asyncio.run(answers_of_a_server_that_ends())
    assert answers and set(answers) == {b"HTTP/1.1 200 OK"}


@NEEDS_A_FILTER
def test_a_socket_that_takes_no_more_keeps_who_has_come() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        with socket.create_connection(address) as early:
            assert _take_no_more(listening)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            accepted, _ = listening.accept()
            with accepted:
                early.sendall(b"question")
                assert accepted.recv(8) == b"question"
                accepted.sendall(b"answer")
                assert early.recv(6) == b"answer"


async def last_heads() -> list[bytes]:
    """End a server while a request is in progress and a kept connection is idle; return the heads of the responses.

    Those of both connections before, of the request in progress, and of one that the idle connection sends after.
    """
    reached, finish = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            reached.set()
            await finish.wait()
        await answer(scope, receive, send)

    server, listening = await started(app)
    address = listening.getsockname()
    (to_busy, busy), (to_idle, idle) = [await asyncio.open_connection(*address) for _ in range(2)]

    def ask(connection: asyncio.StreamWriter, path: str) -> None:
        connection.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    heads = []
    for connection, reader in ((busy, to_busy), (idle, to_idle)):
        ask(connection, "/")
        heads.append(await reader.readuntil(b"\r\n\r\n"))
    ask(busy, "/slow")
    await reached.wait()
    ending = asyncio.create_task(server.shutdown([listening]))
    while server.servers[0].is_serving():
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    finish.set()
    heads.append(await to_busy.readuntil(b"\r\n\r\n"))
    ask(idle, "/")
    heads.append(await to_idle.readuntil(b"\r\n\r\n"))
    await ending
    return heads


def test_the_last_response_of_a_connection_says_so() -> None:
    """Else its client would send the next request to a connection that is being closed."""
    heads = asyncio.run(asyncio.wait_for(last_heads(), 30))
    assert [b"connection: close" in head.lower() for head in heads] == [False, False, True, True]


def test_a_shutdown_waits_as_long_as_a_request_may_take() -> None:
    settings = Settings(body_timeout=20, deadline=300, send_timeout=10)
    assert _longest(settings) == 330


def test_who_comes_once_the_address_is_printed_is_answered(start: Start) -> None:
    service = start(pipelines=("open_vocabulary_segmentation",))
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        service.process.send_signal(signal.SIGTERM)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    assert service.process.wait(WAIT) == 0


def test_an_address_that_cannot_be_printed() -> None:
    command = [sys.executable, "-m", "ovseg", "serve", "--pipeline", "open_vocabulary_segmentation", "--device", "cpu"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, "--port", "0"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=WAIT)
    assert done.returncode == 1
    assert done.stderr.startswith("ovs: The output could not be written: No space left on device.\n")


def test_requests_that_wait_are_finished(start: Start) -> None:
    service = start(pipelines=("open_vocabulary_segmentation",))
    body = {"image": IMAGE, "prompt": [[5, 5]] * 250, "prompt_type": "point", "visualize": False}
    statuses: list[int] = []
    clients = [
        threading.Thread(target=lambda: statuses.append(service.post(PROMPT, **body).status_code)) for _ in range(12)
    ]
    for client in clients:
        client.start()
    while service.process.poll() is None and not statuses:
        time.sleep(0.02)
    assert service.stop() == 0
    for client in clients:
        client.join()
    assert statuses == [200] * 12


def test_a_second_ctrl_c_ends_it_at_once(start: Start) -> None:
    service = start(pipelines=("open_vocabulary_segmentation",))
    body = {"image": IMAGE, "prompt": [[5, 5]] * 250, "prompt_type": "point", "visualize": False}
    outcomes: Counter[str] = Counter()

    def send() -> None:
        try:
            outcomes[str(service.post(PROMPT, **body).status_code)] += 1
        except requests.ConnectionError:
            outcomes["given up"] += 1

    clients = [threading.Thread(target=send) for _ in range(64)]
    for client in clients:
        client.start()
    while not outcomes:
        time.sleep(0.01)
    service.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    service.process.send_signal(signal.SIGINT)
    assert service.ended() == 130
    for client in clients:
        client.join()
    assert outcomes.keys() == {"200", "given up"}, outcomes
    said = [line for line in service.log if not line.startswith("{")]
    assert said == ["ovs: interrupted\n"], said


def test_kill_9_and_restart(start: Start, tmp_path: Path) -> None:
    service = start(pipelines=("PP-ShiTuV2",), home=tmp_path)
    pair: dict[str, Any] = {"image": as_base64(plain((20, 20, 250))), "label": "first"}
    keys = [service.result("/shitu-index-build", imageLabelPairs=[pair])["indexKey"] for _ in range(3)]
    committed = {key: ["first"] for key in keys}

    def add(key: str) -> None:
        for number in range(1000):
            try:
                named = [pair | {"label": str(number)}]
                response = service.post("/shitu-index-add", imageLabelPairs=named, indexKey=key)
            except requests.ConnectionError:
                return
            assert response.status_code == 200
            committed[key].append(str(number))

    clients = [threading.Thread(target=add, args=(key,)) for key in keys]
    for client in clients:
        client.start()
    while min(map(len, committed.values())) < 5:
        time.sleep(0.05)
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    for client in clients:
        client.join()
    again = start(pipelines=("PP-ShiTuV2",), home=tmp_path)
    for key, labels in committed.items():
        last = [pair | {"label": "last"}]
        there = list(again.result("/shitu-index-add", imageLabelPairs=last, indexKey=key)["idMap"].values())
        # One more may have been committed before its answer was sent.
        assert there[: len(labels)] == labels and there[-1] == "last" and len(there) <= len(labels) + 2
    assert again.stop() == 0
