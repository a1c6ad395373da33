"""Writing files whole or not at all, and JSON with masks in it."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import SaveError

_ROWS_AT_ONCE = 64


class Stems:
    """Names for the files of results: those of their inputs, and a number where one was there before."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> str:
        """Return `name`, or `name_2` and so on, as it was not returned yet."""
        count = self._taken.get(name, 0) + 1
        # An earlier a.png may have become a_2, and there may be an a_2.jpg as well.
        while (stem := name if count == 1 else f"{name}_{count}") in self._taken:
            count += 1
        self._taken[stem] = 1
        self._taken[name] = count
        return stem


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its place once the block has ended without an exception.

    Missing folders are made. After a failure, or Ctrl-C, `path` is as it was and nothing is left beside it.

    Raises:
        SaveError: if the file cannot be written.
    """
    if "\0" in str(path):
        raise SaveError(f"{str(path)!r} could not be written: it has a NUL in it.", "Give another path.")
    # Named by ourselves rather than by tempfile, whose files only their owner may read.
    beside = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise SaveError(
            f"{path} could not be written: {error.strerror or error}.",
            "Check that the folder can be written to and that the disk has room.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def write_json(file: BinaryIO, data: Any, *, indent: int | None = 4, ensure_ascii: bool = False) -> None:
    """Write `data` as `json.dump` would, with arrays as nested lists.

    The bytes are those of `json.dump` on the nested lists, without the seconds and the gigabytes that these
    take for masks.

    Args:
        file: open for bytes.
        data: what `json.dump` takes, and numpy's arrays and numbers.
        indent: spaces of one level; None writes one line.
        ensure_ascii: escape everything but ASCII.
    """
    masks: list[np.ndarray] = []
    token = uuid.uuid4().hex  # stands for a mask in the text; nobody's data holds it

    def put_token(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if not _is_mask(value):
                return value.tolist()
            masks.append(value)
            return token
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} is not JSON")

    text = json.dumps(data, indent=indent, ensure_ascii=ensure_ascii, default=put_token)
    # Half of a surrogate pair, which stands for a byte of a file name that is not UTF-8, is escaped.
    parts = [part.encode(errors="backslashreplace") for part in text.split(f'"{token}"')]
    file.write(parts[0])
    for before, mask, after in zip(parts, masks, parts[1:], strict=False):
        line = before[before.rfind(b"\n") + 1 :]
        margin = " " * (len(line) - len(line.lstrip(b" ")))
        for chunk in _nested_lists(mask, None if indent is None else " " * indent, margin):
            file.write(chunk)
        file.write(after)


def _is_mask(array: np.ndarray) -> bool:
    """Whether an array has two axes and only the values 0 and 1."""
    return array.ndim == 2 and array.dtype.itemsize == 1 and bool(((array == 0) | (array == 1)).all())


def _nested_lists(mask: np.ndarray, unit: str | None, margin: str) -> Iterator[bytes]:
    """Yield the JSON text of a mask; `margin` indents the line it starts on."""
    height, width = mask.shape
    if height == 0 or width == 0:
        yield json.dumps(mask.tolist(), indent=unit).replace("\n", f"\n{margin}").encode()
        return
    if unit is None:
        row_open, row_close, between_rows, pixel_open, between_pixels = "[", "]", ", ", "", ", "
        opening, closing = "[", "]"
    else:
        row_margin, pixel_margin = f"\n{margin}{unit}", f"\n{margin}{unit}{unit}"
        row_open, row_close, between_rows = f"{row_margin}[", f"{row_margin}]", ","
        pixel_open, between_pixels = pixel_margin, f",{pixel_margin}"
        opening, closing = "[", f"\n{margin}]"
    # All rows have the same text but for the digits: write it once, copy it, and set the digits.
    start = len(row_open) + len(pixel_open)
    step = len(between_pixels) + 1
    row = row_open + pixel_open + between_pixels.join("0" * width) + row_close + between_rows
    template = np.tile(np.frombuffer(row.encode(), dtype=np.uint8), (min(height, _ROWS_AT_ONCE), 1))
    digits = slice(start, start + step * (width - 1) + 1, step)
    yield opening.encode()
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = mask[top : top + _ROWS_AT_ONCE]
        template[: len(rows), digits] = rows.astype(np.uint8) + ord("0")
        text = template[: len(rows)].tobytes()
        yield text[: -len(between_rows)] if top + len(rows) == height else text
    yield closing.encode()
