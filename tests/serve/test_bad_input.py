"""Bad requests, slow clients, too many of them: a documented answer, and the service goes on."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from recognition_graphs import plain
from service_process import Service, Start, as_base64

from ovseg.errors import ConfigError
from ovseg.serve.settings import Settings

PROMPT = "/open-vocabulary-segmentation"
SMALL = as_base64(plain((250, 250, 250)))
PFM = base64.b64encode(b"Pf\n4 3\n-1.0\n" + bytes(48)).decode()


@pytest.fixture(autouse=True)
def still_there(service: Service) -> Iterator[None]:
    """Whatever a test sends, the service answers the next request."""
    yield
    assert service.process.poll() is None
    assert service.post(PROMPT, image=SMALL, prompt=[[5, 5]], prompt_type="point").status_code == 200
    assert not any("Traceback" in line for line in service.log)


def huge_png(side: int) -> str:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(png).decode()


def expect(response: requests.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"logId", "errorCode", "errorMsg"} and body["errorCode"] == status
    for word in words:
        assert word in body["errorMsg"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"not json", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"image"', 422),
        (b'{"image": 1e999}', 422),
        (b"\xff\xfe{\x00", 422),
        (b'{"image": "\xff"}', 400),
        (b"1" * 5000, 400),
        (b"[" * 50_000, 400),
        (b"[" * 200_000, 413),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else str(value),
)
def test_malformed_json(service: Service, data: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    response = requests.post(service.url + PROMPT, data=data, headers=headers, timeout=60)
    assert response.status_code in (status, 400 if status == 422 else status)
    expect(response, response.status_code)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ("", "empty"),
        ("!!!!", "Base64"),
        ("AAA", "Base64"),
        ("é", "Base64"),
        ("AAAA", "image"),
        ("JVBERi0xLjQ=", "PDF"),
        (SMALL[:60], "image"),
        (huge_png(100_000), "pixels"),
        ("data:image/png;base64,AAAA", "Base64"),
        (PFM, "float pixels"),
        ("\ud800", ""),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_no_image(service: Service, image: str, word: str) -> None:
    expect(service.post(PROMPT, image=image, prompt=[[5, 5]], prompt_type="point"), 422, word)


@pytest.mark.parametrize("path", [PROMPT, "/instance-segmentation"])
def test_a_picture_that_no_jpeg_can_hold(service: Service, path: str) -> None:
    body = {"image": as_base64(np.zeros((2, 65_501, 3), np.uint8)), "prompt": [[1, 1]], "prompt_type": "point"}
    expect(service.post(path, **body), 422, "visualize")
    assert service.post(path, **body, visualize=False).status_code == 200


def test_a_pdf_where_none_are_read(start: Start) -> None:
    code = "import sys; sys.modules['pypdfium2'] = None; from ovseg.cli import main; sys.exit(main(sys.argv[1:]))"
    service = start(pipelines=("open_vocabulary_segmentation",), code=code)
    expect(service.post(PROMPT, image="JVBERi0xLjQ=", prompt=[[5, 5]], prompt_type="point"), 422, "PDF")
    assert service.stop() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"image": None},
        {"image": 5},
        {"image": ["AAAA"]},
        {"prompt": None},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [[[]]]},
        {"prompt": 5},
        {"prompt": [5]},
        {"prompt": [["5", "5"]]},
        {"prompt": [[True, False]]},
        {"prompt": [[5]]},
        {"prompt": [[5, 5, 5]]},
        {"prompt": [[5, 5, 9, 9]]},
        {"prompt": [[[[5, 5]]]]},
        {"prompt": [[-5, 5]]},
        {"prompt": [[5, 1e308]]},
        {"prompt": [[5, 10**400]]},
        {"prompt": {"0": [5, 5]}},
        {"prompt_type": None},
        {"prompt_type": "circle"},
        {"prompt_type": ["point"]},
        {"promptType": "box"},
        {"pointLabels": [[1]]},
        {"prompt": [[[5, 5]]], "pointLabels": [[0]]},
        {"prompt": [[[5, 5]]], "pointLabels": [[1, 1]]},
        {"prompt": [[[5, 5]]], "pointLabels": [[2]]},
        {"prompt_type": "box", "prompt": [[9, 9, 5, 5]]},
        {"visualize": "yes"},
        {"visualize": 1},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_wrong_types(service: Service, change: dict[str, Any]) -> None:
    body = {"image": SMALL, "prompt": [[5, 5]], "prompt_type": "point"} | change
    expect(service.post(PROMPT, **body), 422)


def test_nan(service: Service) -> None:
    for value in ("NaN", "Infinity", "-Infinity"):
        text = json.dumps({"image": SMALL, "prompt_type": "point"})[:-1] + f', "prompt": [[{value}, 5]]}}'
        headers = {"content-type": "application/json"}
        expect(requests.post(service.url + PROMPT, data=text, headers=headers, timeout=60), 422)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, "0.5", [0.5], True])
def test_bad_thresholds(service: Service, threshold: Any) -> None:
    expect(service.post("/instance-segmentation", image=SMALL, threshold=threshold), 422)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("build", {"imageLabelPairs": []}, 422),
        ("build", {"imageLabelPairs": [{"image": SMALL}]}, 422),
        ("build", {"imageLabelPairs": [{"image": SMALL, "label": ""}]}, 422),
        ("build", {"imageLabelPairs": [{"image": SMALL, "label": 5}]}, 422),
        ("build", {"imageLabelPairs": [{"image": SMALL, "label": "\ud800"}]}, 422),
        ("add", {"imageLabelPairs": [{"image": SMALL, "label": "a"}]}, 422),
        ("add", {"imageLabelPairs": [{"image": SMALL, "label": "a"}], "indexKey": "nothing"}, 404),
        ("add", {"imageLabelPairs": [{"image": SMALL, "label": "a"}], "indexKey": "../../etc"}, 404),
        ("remove", {"ids": [], "indexKey": "nothing"}, 422),
        ("remove", {"ids": ["0"], "indexKey": "nothing"}, 422),
        ("remove", {"ids": [-1], "indexKey": "nothing"}, 422),
        ("remove", {"ids": [2**70], "indexKey": "nothing"}, 422),
        ("remove", {"ids": [0], "indexKey": "nothing"}, 404),
        ("remove", {"ids": [0], "indexKey": "\0"}, 404),
    ],
)
def test_bad_changes_of_indexes(service: Service, path: str, body: dict[str, Any], status: int) -> None:
    expect(service.post(f"/shitu-index-{path}", **body), status)


@pytest.mark.parametrize("key", ["nothing", "..", "/etc/passwd", "a" * 10_000, "%2e%2e", "\ud800"])
def test_unknown_index_key(service: Service, key: str) -> None:
    response = service.post("/shitu-infer", image=SMALL, indexKey=key)
    expect(response, response.status_code)
    assert response.status_code in (404, 422)


def test_thousands_of_prompts(service: Service) -> None:
    asked = {"image": SMALL, "prompt_type": "point"}
    expect(service.post(PROMPT, **asked, prompt=[[5, 5]] * 5000), 422, "256")
    expect(service.post(PROMPT, **asked, prompt=[[5, 5]] * 200_000), 413, "values")
    # A group is one mask, but costs the square of its points.
    expect(service.post(PROMPT, **asked, prompt=[[[5, 5]] * 20_000]), 422, "20000 prompts")
    assert service.post(PROMPT, **asked, prompt=[[[5, 5]] * 128] * 2, visualize=False).status_code == 200
    assert service.post(PROMPT, **asked, prompt=[[5, 5]] * 256, visualize=False).status_code == 200
    large = as_base64(np.zeros((2000, 2000, 3), np.uint8))
    expect(service.post(PROMPT, image=large, prompt_type="point", prompt=[[5, 5]] * 200), 422, "masks")


def test_long_lists_of_errors_are_cut(service: Service) -> None:
    response = service.post(PROMPT, image=SMALL, prompt_type="point", prompt=[["x", "y"]] * 5000)
    expect(response, 422)
    assert len(response.content) < 20_000


def test_large_body(service: Service) -> None:
    expect(service.post(PROMPT, image="A" * (65 * 2**20), prompt=[[5, 5]], prompt_type="point"), 413, "larger")


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


def head(length: int, path: str = PROMPT, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def test_no_http(service: Service) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100_000):
        with connect(service) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1000)[:10] in (b"HTTP/1.1 4", b"")


def test_clients_that_go(service: Service) -> None:
    body = json.dumps({"image": SMALL, "prompt": [[5, 5]], "prompt_type": "point"}).encode()
    for cut in (10, len(body)):
        for _ in range(20):
            client = connect(service)
            client.sendall(head(len(body)) + body[:cut])
            client.close()


def test_unlimited_chunks(service: Service) -> None:
    with connect(service) as client:
        client.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        chunk = b"100000\r\n" + b"A" * 0x100000 + b"\r\n"
        try:
            for _ in range(80):
                client.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in client.recv(1000)


@pytest.fixture(scope="module")
def strict(start: Start) -> Service:
    """A service with limits that a test can reach."""
    code = (
        "import sys, dataclasses, ovseg.serve.settings as s\n"
        "s.Settings.__init__.__defaults__ = tuple(\n"
        "    {'head_timeout': 1.0, 'body_timeout': 1.5, 'send_timeout': 1.0}.get(f.name, f.default)\n"
        "    for f in dataclasses.fields(s.Settings))\n"
        "from ovseg.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return start("--max-body", "1", "--max-pixels", "10000", "--queue", "2", code=code)


class TestLimits:
    def test_slow_heads(self, strict: Service) -> None:
        clients = [connect(strict) for _ in range(50)]
        started = time.monotonic()
        for client in clients:
            client.sendall(b"POST / HTTP/1.1\r\nX-Slow: ")
        while time.monotonic() - started < 3:
            for client in clients:
                try:
                    client.sendall(b"a")
                except OSError:
                    continue
            time.sleep(0.2)
        for client in clients:
            with client, contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""

    def test_slow_bodies(self, strict: Service) -> None:
        with connect(strict) as client:
            client.sendall(head(1000))
            started = time.monotonic()
            client.settimeout(0.2)
            answer = b""
            while not answer and time.monotonic() - started < 10:
                client.sendall(b" ")
                try:
                    answer = client.recv(1000)
                except TimeoutError:
                    continue
            assert b" 408 " in answer

    def test_body_and_pixels(self, strict: Service) -> None:
        asked = {"prompt": [[5, 5]], "prompt_type": "point"}
        expect(strict.post(PROMPT, image="A" * 2**20, **asked), 413)
        expect(strict.post(PROMPT, image=as_base64(plain((9, 9, 9), 101, 100)), **asked), 422, "pixels")

    def test_a_full_queue(self, strict: Service) -> None:
        body = {"image": SMALL, "prompt": [[5, 5]] * 200, "prompt_type": "point"}
        with ThreadPoolExecutor(30) as pool:
            found = list(pool.map(lambda _: strict.post(PROMPT, **body), range(60)))
        statuses = {response.status_code for response in found}
        assert statuses == {200, 503}
        for response in found:
            if response.status_code == 503:
                expect(response, 503)
                assert int(response.headers["retry-after"]) >= 1

    def test_memory_returns(self, strict: Service) -> None:
        def burst() -> int:
            with ThreadPoolExecutor(16) as pool:
                list(
                    pool.map(
                        lambda _: strict.post(PROMPT, image="A" * 900_000, prompt=[[5, 5]], prompt_type="point"),
                        range(150),
                    )
                )
            return strict.memory()

        first = burst()
        assert burst() < 1.15 * first


def test_after_a_failure_the_connection_goes_on(start: Start) -> None:
    code = (
        "import sys, ovseg.serve.routes as routes\n"
        "def fail(*_): raise ValueError('broken')\n"
        "routes.read_image = fail\n"
        "from ovseg.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    service = start(pipelines=("open_vocabulary_segmentation",), code=code)
    client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    body = json.dumps({"image": SMALL, "prompt": [[5, 5]], "prompt_type": "point"})
    for _ in range(2):
        client.request("POST", PROMPT, body, {"content-type": "application/json"})
        response = client.getresponse()
        assert response.status == 500
        log_id = json.load(response)["logId"]
    assert service.stop() == 0
    assert any(line.startswith(f"{log_id}: ValueError('broken')") for line in service.log)


def test_deadline(start: Start) -> None:
    service = start("--deadline", "0.001", pipelines=("open_vocabulary_segmentation",))
    response = service.post(PROMPT, image=SMALL, prompt=[[5, 5]] * 200, prompt_type="point")
    expect(response, 504, "0.001 s")
    service.stop()


def test_token(start: Start) -> None:
    service = start("--token", "secret", pipelines=("open_vocabulary_segmentation",))
    body = {"image": SMALL, "prompt": [[5, 5]], "prompt_type": "point"}
    for header in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic secret"},
        {"authorization": "Bearer"},
    ):
        response = requests.post(service.url + PROMPT, json=body, headers=header, timeout=60)
        expect(response, 401, "token")
        assert response.headers["www-authenticate"] == "Bearer"
    right = {"authorization": "Bearer secret"}
    assert requests.post(service.url + PROMPT, json=body, headers=right, timeout=60).status_code == 200
    assert requests.get(service.url + "/metrics", timeout=60).status_code == 401
    for path in ("/", "/health/ready", "/docs", "/page/main.js"):
        assert requests.get(service.url + path, timeout=60).status_code == 200
    assert not any("secret" in line for line in service.log)
    service.stop()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "x@127.0.0.1.evil.example"])
def test_names_that_lead_here_are_refused(service: Service, host: str) -> None:
    expect(requests.get(service.url + "/info", headers={"host": host}, timeout=60), 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "0.0.0.0:8080", "[::1]:8080"])
def test_addresses_are_not(service: Service, host: str) -> None:
    assert requests.get(service.url + "/info", headers={"host": host}, timeout=60).status_code == 200


def test_requests_of_other_origins_need_a_preflight_that_is_refused(service: Service) -> None:
    """A page elsewhere may send a form, and a form is not JSON."""
    body = json.dumps({"image": SMALL, "prompt": [[5, 5]], "prompt_type": "point"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        response = requests.post(service.url + PROMPT, data=body, headers={"content-type": kind}, timeout=60)
        expect(response, 422)
    preflight = requests.options(service.url + PROMPT, headers={"origin": "http://evil.example"}, timeout=60)
    assert preflight.status_code == 405 and "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("token", ["", "  ", " secret", "secret ", "sécret", "a\nb"])
def test_a_token_that_no_header_can_carry(token: str) -> None:
    with pytest.raises(ConfigError, match="The token is empty, begins or ends with a blank"):
        Settings(token=token)
