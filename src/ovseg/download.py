"""Download one file over HTTP: resumed after an interruption, under its final name only once it is whole."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import checksums_file, ensure_space, make_folder, offline
from .errors import DownloadError

if TYPE_CHECKING:
    import requests

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes there will be (None: the server does not say)."""

ATTEMPTS = 5
"""Attempts in a row that bring nothing new before a download is given up."""

BACKOFF = 0.5
"""Seconds before the second attempt; doubled for each further one."""

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and seconds of silence."""

_CHUNK = 1 << 16
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class NotOnServer(DownloadError):  # noqa: N818 - the name says the state
    """The server answers, and does not have the file."""


class _Interrupted(Exception):  # noqa: N818 - never leaves this module
    """A failure that another attempt may cure."""


def download(url: str, destination: Path, *, sha256: str | None = None, progress: Progress | None = None) -> str:
    """Download `url` to `destination` and return its SHA-256 in hexadecimal.

    The bytes go to `destination` + `.part`. A later call goes on from there if the server takes ranges and
    its file is still the same (ETag or date, and size); otherwise it starts again. Callers see to it that one
    process at a time downloads to `destination`.

    Args:
        url: http or https.
        destination: final path; its folder is created.
        sha256: what the file must have.
        progress: see `Progress`.

    Raises:
        NotOnServer: the server does not have the file.
        DownloadError: no network allowed, no network, no space, or another checksum.

    """
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"'{url}' is not an http or https address.", "Correct the address.")
    if offline():
        raise DownloadError(
            f"{url} is needed and OVSEG_OFFLINE forbids the network.",
            "Unset OVSEG_OFFLINE, or copy an exported model folder to this machine and use --model-dir (model_dir).",
        )
    make_folder(destination.parent)
    partial = _Partial(destination.with_name(destination.name + ".part"), url)
    try:
        _fetch(partial, progress)
        found = file_sha256(partial.path)
        if sha256 is not None and found != sha256:
            partial.discard()
            raise DownloadError(
                f"{url} has SHA-256 {found}, and {sha256} was expected.",
                f"Try again. If the publisher has replaced the file, correct the zoo or {checksums_file()}.",
            )
        partial.path.replace(destination)
        partial.note.unlink(missing_ok=True)
    except OSError as failure:
        raise DownloadError(
            f"{destination} could not be written: {failure.strerror or failure}.",
            "Free some space or check the permissions; the next attempt goes on where this one stopped.",
        ) from failure
    return found


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class _Partial:
    """The unfinished file, and beside it the note that says what it is the beginning of."""

    path: Path
    url: str

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def identity(self) -> dict[str, str | int | None]:
        """Return what was noted of the file on the server; nothing if this is not its beginning."""
        if not (self.path.is_file() and self.note.is_file()):
            return {}
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
        except ValueError:
            return {}
        return noted if isinstance(noted, dict) and noted.get("url") == self.url else {}

    def begin(self, validator: str | None, size: int | None) -> None:
        """Empty the file and note what will be in it."""
        self.path.write_bytes(b"")
        noted = {"url": self.url, "validator": validator, "size": size}
        self.note.write_text(json.dumps(noted), encoding="utf-8")

    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _fetch(partial: _Partial, progress: Progress | None) -> None:
    """Attempt until the file is whole; attempts that get further than any before do not count."""
    import requests

    failures, furthest = 0, partial.length()
    with requests.Session() as session:
        while True:
            try:
                _attempt(session, partial, progress)
                return
            except (
                _Interrupted,
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as failure:
                failures = 0 if partial.length() > furthest else failures + 1
                furthest = max(furthest, partial.length())
                if failures >= ATTEMPTS:
                    raise DownloadError(
                        f"{partial.url} could not be downloaded: {failure}.",
                        "Check the network and try again; what is here already is kept.",
                    ) from failure
                time.sleep(min(BACKOFF * 2 ** max(failures - 1, 0), 30.0))
            except requests.RequestException as failure:
                raise DownloadError(
                    f"{partial.url} could not be downloaded: {failure}.", "Check the address and the network."
                ) from failure


def _attempt(session: requests.Session, partial: _Partial, progress: Progress | None) -> None:
    identity = partial.identity()
    validator, size = identity.get("validator"), identity.get("size")
    have = partial.length() if isinstance(validator, str) else 0
    if have and have == size:
        return  # whole, and stopped before it got its name
    # A compressed answer would have another length and other offsets.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    with session.get(partial.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        start, total = _placed(response, partial)
        if start == 0:
            partial.begin(_validator(response), total)
        elif start != have or total != size or _validator(response) not in (None, validator):
            partial.discard()
            raise _Interrupted("the file on the server has changed")
        if total is not None:
            ensure_space(partial.path.parent, total - start)
        received = start
        # Lengths are compared below; left to urllib3, the last bytes before a break would be thrown away.
        response.raw.enforce_content_length = False
        # What came before a break is worth keeping: the file is closed, and so flushed, on every way out.
        with partial.path.open("ab") as file:
            if progress:
                progress(received, total)
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                received += len(chunk)
                if total is not None and received > total:
                    break
                if progress:
                    progress(received, total)
    if total is not None and received < total:
        raise _Interrupted(f"the server closed the connection after {received} of {total} bytes")
    if total is not None and received > total:
        partial.discard()
        raise _Interrupted(f"the server sent more than the {total} bytes it announced")


def _placed(response: requests.Response, partial: _Partial) -> tuple[int, int | None]:
    """Return where the body of `response` begins, and the size of the whole file if that is said."""
    status = response.status_code
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None:
            partial.discard()
            raise _Interrupted("the server answered with a range that it does not name")
        return int(match[1]), int(match[2])
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if status == 416:
        # What is here is as long as the file, or longer: not a beginning of it that can be trusted.
        partial.discard()
        raise _Interrupted("the server refused to go on from where the last attempt stopped")
    if status in _TRANSIENT:
        raise _Interrupted(f"the server answered {status} {response.reason}")
    if status in (403, 404, 410):
        raise NotOnServer(f"{partial.url} is not there ({status} {response.reason}).", "Check the address.")
    raise DownloadError(f"{partial.url}: the server answered {status} {response.reason}.", "Check the address.")


def _validator(response: requests.Response) -> str | None:
    """Return what `If-Range` may carry: a strong ETag or the date of the file (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag")
    if etag:
        return None if etag.startswith("W/") else etag
    return response.headers.get("Last-Modified")
