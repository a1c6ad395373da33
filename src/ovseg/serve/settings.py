"""What a service allows: sizes, times and numbers, all with safe defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

MOST_WORKERS = 1024  # a thread each for every pipeline: a hundred thousand take minutes to start


@dataclass(frozen=True)
class Settings:
    """Settings of a service.

    Args:
        visualize: whether a response has a picture where the request does not say.
        token: bearer token that requests must carry; None lets everybody in.
        allow_url: fetch images that are given as URLs.
        index_dir: folder of the indexes.
        literal_hosts: take only requests whose Host is an IP address or `localhost`: a page on the web that
            makes its own name point at this machine is refused.
        max_body: bytes of a request's body.
        max_buffered: bytes of all bodies and downloads that are held at a time.
        max_values: values in a JSON body, so that a body of a million empty lists is refused unread.
        max_pixels: pixels of an image.
        max_prompts: boxes or points of a request; those in groups count each.
        max_mask_pixels: pixels of all masks of a request together.
        max_pairs: images of a request that builds or extends an index.
        max_open_indexes: indexes that are kept in memory.
        queue: requests of a pipeline that may wait; more are answered with 503.
        workers: requests, or batches of them, that a pipeline works on at a time, 1 to 1024.
        max_batch: requests that go through a model together; None is 1 on a CPU, where a batch takes as long as its
            images one by one and much more memory, and 8 elsewhere.
        batch_window: seconds that a request waits for others to join it.
        deadline: seconds from the end of a request's body to the answer.
        head_timeout: seconds in which the head of a request must arrive.
        body_timeout: seconds in which its body must arrive.
        send_timeout: seconds that a client may leave an answer unread.
        url_timeout: seconds for a whole download.
        max_downloads: downloads at a time.
        max_redirects: redirects that are followed.
    """

    visualize: bool = True
    token: str | None = field(default=None, repr=False)
    allow_url: bool = False
    index_dir: Path = Path("indexes")
    literal_hosts: bool = False
    max_body: int = 64 * 2**20
    max_buffered: int = 256 * 2**20
    max_values: int = 100_000
    max_pixels: int = 25_000_000
    max_prompts: int = 256
    max_mask_pixels: int = 500_000_000
    max_pairs: int = 1000
    max_open_indexes: int = 64
    queue: int = 128
    workers: int = 1
    max_batch: int | None = None
    batch_window: float = 0.0
    deadline: float = 60.0
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    send_timeout: float = 30.0
    url_timeout: float = 15.0
    max_downloads: int = 8
    max_redirects: int = 3

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if (getattr(self, name) or 0) < 1 and not (name == "max_batch" and self.max_batch is None):
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Give a number of at least 1.")
        if self.workers > MOST_WORKERS:
            raise ConfigError(f"workers is {self.workers}.", f"Give 1 to {MOST_WORKERS}.")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}.", "Give seconds, above 0.")
        if not 0 <= self.batch_window < math.inf:
            raise ConfigError(f"batch_window is {self.batch_window}.", "Give seconds, 0 for no waiting.")
        token = self.token
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
            raise ConfigError(
                "The token is empty, begins or ends with a blank, or has characters other than ASCII.",
                "Choose another.",
            )


_AT_LEAST_ONE = (
    "max_body",
    "max_buffered",
    "max_values",
    "max_pixels",
    "max_prompts",
    "max_mask_pixels",
    "max_pairs",
    "max_open_indexes",
    "queue",
    "workers",
    "max_batch",
    "max_downloads",
)
_POSITIVE = ("deadline", "head_timeout", "body_timeout", "send_timeout", "url_timeout")
