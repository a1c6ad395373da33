"""A real HTTP server on this machine that can misbehave, and helpers that make archives for it."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml


@dataclass
class FileServer:
    """Serves `files`; each request takes one item of the lists that say how to misbehave.

    Attributes:
        etag: strong, weak, or empty for none.
        ranges: honour Range.
        if_range: honour If-Range.
        cut_after: bytes of body after which the connection is closed.
        statuses: error statuses to answer with instead.
        announced: Content-Length to announce instead of the right one.
        chunk_delay: seconds between pieces of 64 KiB.
        log: (path, Range header or None) of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    if_range: bool = True
    etag: str = "strong"
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    announced: int | None = None
    chunk_delay: float = 0.0
    log: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Keep the output of the tests clean."""

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.log.append((self.path, wanted))
            content = server.files.get(self.path.lstrip("/"))
            status = server.statuses.pop(0) if server.statuses else 200 if content is not None else 404
            if status != 200 or content is None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            weak = "W/" if server.etag == "weak" else ""
            etag = f'{weak}"{hashlib.sha256(content).hexdigest()[:16]}"'
            match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
            start = 0
            same = not server.if_range or self.headers.get("If-Range", etag) == etag
            if server.ranges and match and same:
                start = int(match[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            body = content[start:]
            if server.etag:
                self.send_header("ETag", etag)
            self.send_header("Content-Length", str(server.announced or len(body)))
            self.end_headers()
            if server.cut_after:
                body = body[: server.cut_after.pop(0)]
                self.close_connection = True
            for offset in range(0, len(body), 1 << 16):
                try:
                    self.wfile.write(body[offset : offset + (1 << 16)])
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                    return
                time.sleep(server.chunk_delay)
            if server.announced:
                self.close_connection = True

    return Handler


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server on a free port, and no waiting between attempts."""
    monkeypatch.setattr("ovseg.download.BACKOFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = FileServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    http.daemon_threads = True
    state.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "home"
    monkeypatch.setenv("OVSEG_HOME", str(folder))
    monkeypatch.delenv("OVSEG_OFFLINE", raising=False)
    return folder


def model_yaml(name: str, content: bytes, **changes: object) -> dict[str, object]:
    """The description of a folder with `content` in model.onnx."""
    facts: dict[str, object] = {
        "format": 1,
        "name": name,
        "family": "solov2",
        "task": "instance_segmentation",
        "files": {
            "model": {
                "path": "model.onnx",
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
            }
        },
        "preprocess": {"type": "Resize", "size": [64, 64]},
        "labels": ["cat", "dog"],
    }
    return facts | changes


def write_model(folder: Path, name: str, content: bytes = b"onnx", **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "model.yaml").write_text(yaml.safe_dump(model_yaml(name, content, **changes)))
    return folder


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def model_archive(name: str, content: bytes = b"onnx", **changes: object) -> bytes:
    """A tar of a model folder inside one top folder, as publishers make them."""
    described = yaml.safe_dump(model_yaml(name, content, **changes)).encode()
    return tar_of({f"{name}/model.yaml": described, f"{name}/model.onnx": content})


def write_zoo(path: Path, *archives: dict[str, object], name: str = "tiny", **changes: object) -> Path:
    """A zoo of one model."""
    entry: dict[str, object] = {
        "task": "instance_segmentation",
        "family": "solov2",
        "licence": "Apache-2.0",
        "archives": list(archives),
        "preprocess": {"type": "Resize"},
    }
    path.write_text(yaml.safe_dump({"format": 1, "models": {name: entry | changes}}))
    return path
