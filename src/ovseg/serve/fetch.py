"""Download an image that a request names by URL, and nothing that only this machine should reach.

The address is checked where the connection is made: the name is resolved once, every address that it has is
checked, and the socket goes to one of those, so that a second answer of the name server or a redirect cannot lead
elsewhere. TLS and the Host header keep the name.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import ImageError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_REDIRECTS = (301, 302, 303, 307, 308)
_CURE = "Send the image itself, as Base64."
# What Python's tables, which differ by version, may call global: IPv6 that stands for IPv4 (translated, 6to4, Teredo)
# and so could stand for a private address; former site-local IPv6; documentation; former relays of 6to4; and where
# clouds have a metadata service at an address that is not link-local (Azure, Oracle).
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "::/96",
        "::ffff:0:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
        "fec0::/10",
        "168.63.129.16/32",
        "192.0.0.0/24",
        "192.88.99.0/24",
    )
)

_Resolve = Callable[[str, int], list[str]]


class FetchError(ImageError):
    """An image that could not be downloaded, or may not be."""


def is_url(text: str) -> bool:
    """Whether a request means a URL: Base64 has no colon."""
    return bool(_URL.match(text[:32]))


def is_public(address: str) -> bool:
    """Whether an IP address may be connected to: not private, loopback, link-local, multicast or reserved."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a scope, as in fe80::1%eth0
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    return not any(ip in network for network in _REFUSED if network.version == ip.version)


def is_own(address: str) -> bool:
    """Whether an IP address is one of this machine's. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0]) == address
    except OSError:  # there is no way to it: so it is not here
        return False


def may_reach(address: str) -> bool:
    """Whether an image may be fetched from an IP address."""
    return is_public(address) and not is_own(address)


def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout: float,
    max_redirects: int = 3,
    resolve: _Resolve = resolve,
    allowed: Callable[[str], bool] = may_reach,
) -> bytes:
    """Download a file by http or https.

    Args:
        url: of the file.
        max_bytes: the most that is read.
        timeout: seconds for everything: names, redirects and the body.
        max_redirects: redirects that are followed; each goes through the same checks.
        resolve: IP addresses of a host name and port.
        allowed: whether an IP address may be connected to.

    Raises:
        FetchError: the URL may not be fetched, or could not be.
    """
    end = time.monotonic() + timeout
    for _ in range(max_redirects + 1):
        parts = _checked(url)
        address = _address_of(parts, resolve, allowed)
        with _response(parts, address, end) as response:
            if response.status in _REDIRECTS and (target := response.headers.get("Location")):
                url = urljoin(url, target)
                continue
            if response.status != 200:
                raise FetchError(f"The URL answers {response.status}.", f"Check it in a browser. {_CURE}")
            return _read(response, max_bytes, end)
    raise FetchError(f"The URL redirects more than {max_redirects} times.", _CURE)


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FetchError("The URL is not one.", _CURE) from None
    if parts.scheme.lower() not in ("http", "https"):
        raise FetchError(f"{parts.scheme[:20]} addresses are not fetched, only http and https.", _CURE)
    if not parts.hostname or port == 0:
        raise FetchError("The URL names no host.", _CURE)
    if "@" in parts.netloc:
        raise FetchError("The URL has a user name in it.", f"Leave it out. {_CURE}")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise FetchError("The URL has blanks or control characters in it.", "Encode them as %20.")
    return parts


def _address_of(parts: SplitResult, resolve: _Resolve, allowed: Callable[[str], bool]) -> tuple[str, int]:
    """Return the address and port to connect to.

    A name with one address that is not allowed is refused altogether: nobody has such a name by accident.
    """
    port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
    try:
        addresses = resolve(parts.hostname or "", port)
    except (OSError, UnicodeError):
        raise FetchError("The host of the URL is not known.", f"Check it. {_CURE}") from None
    if not addresses or not all(allowed(address) for address in addresses):
        raise FetchError("The URL leads to an address that is not public.", _CURE)
    return addresses[0], port


@contextmanager
def _response(parts: SplitResult, address: tuple[str, int], end: float) -> Iterator[http.client.HTTPResponse]:
    """Send the request to an address that was checked."""
    secure = parts.scheme.lower() == "https"
    host = parts.hostname or ""
    connection = http.client.HTTPConnection(host, address[1], timeout=_left(end))
    # A timeout of the socket starts anew with each byte that drips in; this ends the whole.
    sock: socket.socket | None = None
    alarm: threading.Timer | None = None
    try:
        sock = socket.create_connection(address, timeout=_left(end))
        if secure:
            context = ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        alarm = threading.Timer(_left(end), _cut, [sock])
        alarm.daemon = True
        alarm.start()
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection.sock = sock
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        named = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
        default = 443 if secure else 80
        headers = {"Host": named if address[1] == default else f"{named}:{address[1]}"}
        headers |= {"User-Agent": "ovseg", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        # What is encoded already stays as it is.
        connection.request("GET", quote(path, safe="/?&=%:;,+@!$'()*~#[]-._"), headers=headers)
        yield connection.getresponse()
    except TimeoutError:
        raise FetchError("The URL does not answer in time.", _CURE) from None
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        if time.monotonic() >= end:
            raise FetchError("The URL does not answer in time.", _CURE) from None
        # No more than the kind of error: its text could tell a client what listens where.
        raise FetchError(f"The URL cannot be downloaded ({type(error).__name__}).", f"Check it. {_CURE}") from None
    finally:
        if alarm is not None:
            alarm.cancel()
        if sock is not None:
            sock.close()
        connection.close()


def _read(response: http.client.HTTPResponse, max_bytes: int, end: float) -> bytes:
    data = bytearray()
    while chunk := response.read(min(1 << 16, max_bytes + 1 - len(data))):
        data += chunk
        if len(data) > max_bytes:
            raise FetchError(f"The URL has more than {max_bytes} bytes.", "Send a smaller image.")
    _left(end)
    return bytes(data)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise FetchError("The URL does not answer in time.", _CURE)
    return left


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return
