"""Images by URL: nothing that only this machine should reach, and no more than is allowed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from service_process import Start

from ovseg.serve import Settings
from ovseg.serve.fetch import FetchError, fetch, is_public, is_url, may_reach

# Ways to write addresses that are not public. 127.0.0.1, PORT and [::1] lead to a server of the test, which must not
# see a connection.
REFUSED = [
    "http://127.0.0.1:PORT/",
    "http://127.1:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0.0.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://017700000001:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST.:PORT/",
    "http://[::1]:PORT/",
    "http://[::]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[2001:0:7f00:1::]/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[::ffff:0:127.0.0.1]:PORT/",
    "http://[fe80::1%25lo]/",
    "http://[fc00::1]/",
    "http://168.63.129.16/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://192.0.0.192/",
    "http://192.88.99.1/",
    "http://[3fff::1]/",
    "http://[64:ff9b:1::a9fe:a9fe]/",
    "http://127。0。0。1:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http://127.0.0.1%00.example.com:PORT/",
    "http://[::ffff:127.0.0.1%25lo]:PORT/",
    "http://198.18.0.1/",
    "http://user@127.0.0.1:PORT/",
    "http://example.com@127.0.0.1:PORT/",
    "https://127.0.0.1:PORT/",
    "file:///etc/passwd",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\\@example.com/",
    "http:///x",
]

Answer = Callable[[socket.socket, bytes], None]


@contextmanager
def server(*answers: Answer) -> Iterator[tuple[int, list[bytes]]]:
    """Answer connections one after the other; give the port and the heads of the requests."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    head = connection.recv(65536)
                    seen.append(head)
                    try:
                        answer(connection, head)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1], seen
        listening.close()


def says(status: str, body: bytes = b"", **headers: str) -> Answer:
    def answer(connection: socket.socket, head: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return answer


def to_here(host: str, port: int) -> list[str]:
    """Stands for a name server by which a public name leads to the server of the test."""
    return ["127.0.0.1"]


def get(url: str, **options: Any) -> bytes:
    limits: dict[str, Any] = {"max_bytes": 1000, "timeout": 5.0} | options
    return fetch(url, **limits)


@pytest.mark.parametrize("url", REFUSED)
def test_refused_without_a_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(*_: object, **__: object) -> None:
        raise AssertionError("a connection was made")

    with server(says("200 OK", b"secret")) as (port, seen):
        monkeypatch.setattr(socket, "create_connection", no_connection)
        with pytest.raises(FetchError):
            get(url.replace("PORT", str(port)))
        assert seen == []


def test_an_address_of_this_machine_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        own = probe.getsockname()[0]
    assert not may_reach(own)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_download() -> None:
    with server(says("200 OK", b"picture")) as (port, seen):
        url = f"http://images.example:{port}/a%20b/\u00e9.png?x=1"
        assert get(url, resolve=to_here, allowed=lambda _: True) == b"picture"
    assert seen[0].startswith(b"GET /a%20b/%C3%A9.png?x=1 HTTP/1.1\r\n")
    assert f"Host: images.example:{port}\r\n".encode() in seen[0]
    assert b"Accept-Encoding: identity" in seen[0]


@pytest.mark.parametrize("target", ["http://127.0.0.1:PORT/secret", "//127.0.0.1:PORT/", "http://169.254.169.254/"])
def test_a_redirect_is_checked_as_well(target: str) -> None:
    with server(says("302 Found"), says("200 OK", b"secret")) as (port, seen):
        answers = [says("302 Found", Location=target.replace("PORT", str(port))), says("200 OK", b"secret")]
        with server(*answers) as (first, asked):
            known = {"images.example": ["127.0.0.1"]}

            def resolve(host: str, _: int) -> list[str]:
                return known.get(host, [host])

            # The first address stands for a public one: it is allowed once, and never again.
            once = iter([True])
            with pytest.raises(FetchError, match="not public"):
                get(f"http://images.example:{first}/", resolve=resolve, allowed=lambda _: next(once, False))
            assert len(asked) == 1
        assert seen == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://images.example/", "javascript:alert(1)"])
def test_a_redirect_to_another_scheme_is_refused(target: str) -> None:
    with server(says("302 Found", Location=target)) as (port, _), pytest.raises(FetchError):
        get(f"http://images.example:{port}/", resolve=to_here, allowed=lambda _: True)


def test_redirects_end() -> None:
    answers = [says("302 Found", Location="/again")] * 9
    with server(*answers) as (port, seen), pytest.raises(FetchError, match="more than 3"):
        get(f"http://images.example:{port}/", resolve=to_here, allowed=lambda _: True)
    assert len(seen) == 4


def test_a_name_server_that_changes_its_answer_is_asked_once() -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    connected: list[Any] = []

    def connect(address: Any, **_: object) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FetchError):
        patch.setattr(socket, "create_connection", connect)
        get("http://rebinding.example/", resolve=lambda *_: next(answers), allowed=is_public)
    assert connected == [("93.184.216.34", 80)]


def test_a_name_with_one_private_address_is_refused() -> None:
    with pytest.raises(FetchError, match="not public"):
        get("http://mixed.example/", resolve=lambda *_: ["93.184.216.34", "10.0.0.1"], allowed=is_public)


@pytest.mark.parametrize("length", [None, 5000])
def test_size_is_capped(length: int | None) -> None:
    def endless(connection: socket.socket, head: bytes) -> None:
        announced = f"Content-Length: {length}\r\n" if length else "Connection: close\r\n"
        connection.sendall(f"HTTP/1.1 200 OK\r\n{announced}\r\n".encode() + b"x" * 5000)

    with server(endless) as (port, _), pytest.raises(FetchError, match="more than 1000 bytes"):
        get(f"http://images.example:{port}/", resolve=to_here, allowed=lambda _: True)


def drip_body(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(60):
        time.sleep(0.1)
        connection.sendall(b"x")


def drip_head(connection: socket.socket, head: bytes) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 60:
        time.sleep(0.1)
        connection.sendall(bytes([byte]))


@pytest.mark.parametrize("slow", [drip_head, drip_body])
def test_time_is_capped_however_the_bytes_drip(slow: Answer) -> None:
    with server(slow) as (port, _):
        started = time.monotonic()
        with pytest.raises(FetchError, match="in time"):
            get(f"http://images.example:{port}/", resolve=to_here, allowed=lambda _: True, timeout=0.5)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("status", "message"), [("404 Not Found", "404"), ("500 Oops", "500"), ("304 Not Modified", "304")]
)
def test_other_answers(status: str, message: str) -> None:
    with server(says(status)) as (port, _), pytest.raises(FetchError, match=message):
        get(f"http://images.example:{port}/", resolve=to_here, allowed=lambda _: True)


def test_no_http() -> None:
    with server(lambda connection, _: connection.sendall(b"SSH-2.0-x\r\n")) as (port, _):
        with pytest.raises(FetchError, match="cannot be downloaded") as caught:
            get(f"http://images.example:{port}/", resolve=to_here, allowed=lambda _: True)
        assert "SSH" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://x", "HTTPS://x", "file:///x", "gopher://x"])
def test_urls_are_told_from_base64(text: str) -> None:
    assert is_url(text) and not is_url("aHR0cDovL3g=")


ANYWHERE = (
    "import sys, functools, ovseg.serve.routes as routes\n"
    "routes.fetch = functools.partial(routes.fetch, allowed=lambda address: True)\n"
    "from ovseg.cli import main\n"
    "sys.exit(main(sys.argv[1:]))"
)


def pairs(urls: list[str]) -> dict[str, Any]:
    return {"imageLabelPairs": [{"image": url, "label": "x"} for url in urls]}


def test_downloads_count_as_the_body_does(start: Start) -> None:
    service = start("--allow-url", "--max-body", "1", pipelines=("PP-ShiTuV2",), code=ANYWHERE)
    with server(*[says("200 OK", b"x" * 600_000)] * 3) as (port, _):
        url = f"http://127.0.0.1:{port}/"
        # One of them is read, and is no image.
        assert service.post("/shitu-index-build", **pairs([url])).status_code == 422
        response = service.post("/shitu-index-build", **pairs([url, url]))
    assert response.status_code == 413 and response.json()["errorCode"] == 413
    assert service.stop() == 0


def test_downloads_that_nobody_wants_are_not_begun(start: Start) -> None:
    service = start("--allow-url", pipelines=("PP-ShiTuV2",), code=ANYWHERE)
    answered = threading.Event()

    def late(connection: socket.socket, head: bytes) -> None:
        answered.wait(30)

    with server(*[late] * 60) as (port, seen):
        response = service.post("/shitu-index-build", **pairs(["ftp://x/", *[f"http://127.0.0.1:{port}/"] * 60]))
        answered.set()
        assert response.status_code == 422 and "ftp" in response.json()["errorMsg"]
        time.sleep(2)
        assert len(seen) <= Settings().max_downloads
    assert service.stop() == 0


def test_the_service_fetches_only_if_told_to(start: Start) -> None:
    body = {"prompt": [[1, 2]], "prompt_type": "point"}
    with server(says("200 OK", b"secret")) as (port, seen):
        for options, message in ((), "does not fetch"), (("--allow-url",), "not public"):
            service = start(*options, pipelines=("open_vocabulary_segmentation",))
            response = service.post("/open-vocabulary-segmentation", image=f"http://127.0.0.1:{port}/", **body)
            assert response.status_code == 422 and message in response.json()["errorMsg"]
            service.stop()
        assert seen == []
