"""Every kind of source, with real files, a real HTTP server and real PDFs."""

from __future__ import annotations

import gc
import http.server
import io
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from ovseg import _decoding, images
from ovseg.errors import ConfigError, ImageError, MissingExtra
from ovseg.images import Image, count_images, is_single, read_images

H, W = 30, 40
COARSE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
RGB = cv2.resize(COARSE, (W, H), interpolation=cv2.INTER_LINEAR)
BGR = np.ascontiguousarray(RGB[..., ::-1])
GREY = np.array(PIL.Image.fromarray(RGB).convert("L"))


def grey_bgr(grey: np.ndarray) -> np.ndarray:
    return np.dstack([grey, grey, grey])


def save(path: Path, pixels: np.ndarray = RGB, mode: str | None = None, **options: object) -> Path:
    picture = PIL.Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def one(source: object, **options: object) -> Image:
    found = list(read_images(source, **options))
    assert len(found) == 1
    assert found[0].pixels.dtype == np.uint8
    assert found[0].pixels.ndim == 3 and found[0].pixels.shape[2] == 3
    return found[0]


def refused(source: object, *words: str, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        list(read_images(source, **options))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.cause.endswith(".") and caught.value.cure.endswith(".")
    return caught.value


# ---------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "dib", "ppm", "tif", "tiff", "ras", "webp", "jp2"])
def test_lossless_formats_give_the_very_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "ras":
        path.write_bytes(cv2.imencode(".ras", BGR)[1].tobytes())
    else:
        options = {"webp": {"lossless": True}, "dib": {"format": "BMP"}}.get(suffix, {})
        save(path, **options)
    found = one(path)
    np.testing.assert_array_equal(found.pixels, BGR)
    assert found.path == str(path)
    assert (found.height, found.width) == (H, W)
    assert found.page_index == (0 if suffix.startswith("tif") else None)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 0}])
def test_jpeg_is_what_opencv_gives(tmp_path: Path, options: dict[str, object]) -> None:
    path = save(tmp_path / "a.jpg", **options)
    np.testing.assert_array_equal(one(path).pixels, cv2.imread(str(path), cv2.IMREAD_COLOR))


def test_grey_palette_and_one_bit(tmp_path: Path) -> None:
    np.testing.assert_array_equal(one(save(tmp_path / "grey.png", mode="L")).pixels, grey_bgr(GREY))
    one_bit = np.array(PIL.Image.fromarray(RGB).convert("1")).astype(np.uint8) * 255
    assert set(np.unique(one_bit)) == {0, 255}
    for name in ("one.png", "one.tif", "one.pbm"):
        np.testing.assert_array_equal(one(save(tmp_path / name, mode="1")).pixels, grey_bgr(one_bit))
    palette = np.array(PIL.Image.fromarray(RGB).convert("P").convert("RGB"))[..., ::-1]
    for name in ("p.png", "p.gif", "p.tif"):
        np.testing.assert_array_equal(one(save(tmp_path / name, mode="P")).pixels, palette)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_dropped_and_the_colour_under_it_kept(tmp_path: Path, name: str) -> None:
    rgba = np.dstack([RGB, np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))])
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    np.testing.assert_array_equal(one(save(tmp_path / name, rgba, **options)).pixels, BGR)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_divided_by_256(tmp_path: Path, name: str, channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (H, W, channels), np.uint16)
    (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix, deep)[1].tobytes())
    expected = (deep >> 8).astype(np.uint8)
    expected = expected if channels == 3 else grey_bgr(expected[..., 0])
    np.testing.assert_array_equal(one(tmp_path / name).pixels, expected)


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "f.tif", RGB[..., 0].astype(np.float32))
    refused(path, "f.tif", "float pixels", "8 bits per channel")


def test_pfm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.ppm"
    path.write_bytes(b"Pf\n4 3\n-1.0\n" + bytes(48))
    refused(path, "f.ppm", "float pixels", "8 bits per channel")


def test_cmyk_jpeg_has_the_colours_of_its_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "cmyk.jpg", mode="CMYK", quality=100, subsampling=0)
    assert PIL.Image.open(path).mode == "CMYK"
    assert np.abs(one(path).pixels.astype(int) - BGR).max() <= 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path: Path, name: str, orientation: int, turns: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": exif} if name.endswith("tif") else {"exif": exif}
    options |= {"lossless": True} if name.endswith("webp") else {}
    options |= {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    pixels = one(save(tmp_path / name, **options)).pixels
    expected = np.rot90(BGR, turns)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (4 if name.endswith("jpg") else 0)


def test_first_frame_of_a_gif(tmp_path: Path) -> None:
    first, second = (PIL.Image.new("RGB", (W, H), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    found = one(tmp_path / "a.gif")
    np.testing.assert_array_equal(found.pixels, np.full((H, W, 3), (0, 0, 255), np.uint8))
    assert found.page_index is None


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "photo.jpg")
    np.testing.assert_array_equal(one(tmp_path / "photo.jpg").pixels, BGR)


# ----------------------------------------------------------------------------------------------------- arrays


def test_arrays() -> None:
    found = one(BGR)
    np.testing.assert_array_equal(found.pixels, BGR)
    assert found.path is None and found.page_index is None
    np.testing.assert_array_equal(one(np.dstack([BGR, GREY])).pixels, BGR)
    np.testing.assert_array_equal(one(GREY).pixels, grey_bgr(GREY))
    np.testing.assert_array_equal(one(GREY[..., None]).pixels, grey_bgr(GREY))
    assert one(BGR[::2, ::-1]).pixels.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["bool", "float32", "uint16", "int64"])
def test_arrays_of_other_types_are_refused(dtype: str) -> None:
    refused(BGR.astype(dtype), dtype, "astype('uint8')")


@pytest.mark.parametrize("shape", [(3, H, W), (2, H, W, 3), (H, W, 2), (H,), (0, W, 3), ()])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    refused(np.zeros(shape, np.uint8), str(shape))


@pytest.mark.parametrize("numbers", [BGR.tolist(), tuple(BGR.tolist()), list(BGR[0, 0])])
def test_a_list_of_numbers_is_refused_once(numbers: list[object] | tuple[object, ...]) -> None:
    errors: list[ImageError] = []
    assert not list(read_images(numbers, on_error=errors.append))
    assert [f"A {type(numbers).__name__} of numbers is not an image" in str(error) for error in errors] == [True]


# -------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("name", ["a.jpg", "p.jpg", "a.png", "a.webp", "a.bmp", "a.ppm", "a.gif", "a.tif", "z.tif"])
def test_every_truncation_is_refused_or_loses_no_pixel(tmp_path: Path, name: str) -> None:
    options: dict[str, object] = {"p.jpg": {"progressive": True}, "z.tif": {"compression": "tiff_lzw"}}.get(name, {})
    whole = save(tmp_path / name, **options)
    expected = one(whole).pixels
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    refusals = 0
    for size in range(0, len(data), max(1, len(data) // 60)):
        cut.write_bytes(data[:size])
        try:
            pixels = one(cut).pixels
        except ImageError as error:
            assert "cut" in error.cause
            refusals += 1
        else:  # what is cut off may be padding
            np.testing.assert_array_equal(pixels, expected)
    assert refusals >= 50


def test_truncated_jpeg_with_a_whole_thumbnail(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    PIL.Image.fromarray(COARSE).save(thumbnail, "JPEG")
    path = save(tmp_path / "a.jpg", quality=95)
    data = path.read_bytes()
    body = b"Exif\0\0" + thumbnail.getvalue()
    fill_byte = b"\xff"
    data = data[:2] + fill_byte + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]
    path.write_bytes(data)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(one(path).pixels, expected)
    path.write_bytes(data + b"trailing bytes of a phone")
    np.testing.assert_array_equal(one(path).pixels, expected)
    path.write_bytes(data[: len(data) * 2 // 3])
    refused(path, "a.jpg", "truncated")


def test_missing_empty_and_other_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "none.png", "does not exist")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty.png", "is empty")
    for content in (
        b"just some text",
        b"P",
        b"\0" * 100,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ):
        (tmp_path / "note.jpg").write_bytes(content)
        refused(tmp_path / "note.jpg", "note.jpg", "not an image of a known format")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    refused(tmp_path / "bad.png", "bad.png", "cannot be decoded")
    refused("nul\0.png", "cannot be read")


def test_permission_denied(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    one(path)
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    path.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        refused(path, "a.png", "may not be read by this user")
    finally:
        if as_root:
            os.seteuid(0)


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds 100 bytes: decoding it would take the memory of the size."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header_only(20_000, 20_000))
    tracemalloc.start()
    try:
        refused(path, "bomb.png", "20000 × 20000", "178956970", "max_pixels")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_max_pixels(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name)
    refused(path, name, f"{W} × {H}", str(H * W - 1), max_pixels=H * W - 1)
    for limit in (H * W, 0, None):
        assert one(path, max_pixels=limit).width == W
    with pytest.raises(ConfigError, match="-1"):
        read_images(path, max_pixels=-1)


@pytest.mark.parametrize("name", ["large.tif", "large.png"])
def test_no_limit_lifts_the_one_of_pillow_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    options = {"save_all": True, "append_images": [PIL.Image.fromarray(RGB)]} if name.endswith("tif") else {}
    path = save(tmp_path / name, **options)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)  # PIL.Image.open now refuses the file
    monkeypatch.setattr(_decoding, "_PILLOW_PIXEL_LIMIT", 100)
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open(path)
    pages = list(read_images(path, max_pixels=0))
    assert len(pages) == (2 if options else 1)
    for page in pages:
        np.testing.assert_array_equal(page.pixels, BGR)
    assert PIL.Image.MAX_IMAGE_PIXELS == 100
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------------ names


def test_unicode_and_spaces_in_names(tmp_path: Path) -> None:
    path = save(tmp_path / "çà 图像 🐈.png")
    assert one(str(path)).path == str(path)
    assert [found.path for found in read_images(tmp_path)] == [str(path)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    good, bad = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.png", b"no\xff.png"))
    good.write_bytes(save(tmp_path / "a.png").read_bytes())
    bad.write_bytes(b"text")
    errors: list[ImageError] = []
    found = [image.path for image in read_images(tmp_path, on_error=errors.append)]
    assert found == [str(tmp_path / "a.png"), str(good)]
    assert one(good).path == str(good)
    assert len(errors) == 1
    assert "no\\udcff.png" in str(errors[0]).encode("utf-8").decode("utf-8")


def test_standard_input(tmp_path: Path) -> None:
    code = (
        "import sys; from ovseg.images import read_images; (i,) = read_images('-');"
        "assert i.path == '-'; sys.stdout.buffer.write(i.pixels.tobytes())"
    )
    for name, expected in (("a.png", BGR.tobytes()), ("a.txt", b"")):
        data = save(tmp_path / name).read_bytes() if name == "a.png" else b""
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
        assert done.stdout == expected
        assert (b"- is empty" in done.stderr) == (name == "a.txt")


# ---------------------------------------------------------------------------------------------- directories


def test_directory_is_recursive_sorted_and_takes_images_only(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "a/z.png", "a/b/c.tif", "a.d/x.bmp", "notes.txt", "noext", "c/only.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix.lower() in (".txt", ""):
            path.write_text("text")
        else:
            save(path)
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "a" / "loop.png").symlink_to(tmp_path, target_is_directory=True)
    found = [image.path for image in read_images(tmp_path)]
    wanted = ["b.png", "a.JPG", "a/z.png", "a/b/c.tif", "a.d/x.bmp"]
    assert found == sorted(str(tmp_path / name) for name in wanted)
    assert [image.path for image in read_images(f"{tmp_path}{os.sep}")] == found


def test_directory_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    refused(tmp_path, str(tmp_path), "holds no image")


def test_one_bad_file_in_a_directory_does_not_end_it(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"text")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    save(tmp_path / "d.png")
    errors: list[ImageError] = []
    found = [Path(image.path or "").name for image in read_images(tmp_path, on_error=errors.append)]
    assert found == ["a.png", "d.png"]
    assert ["b.png" in errors[0].cause, "c.png" in errors[1].cause, len(errors)] == [True, True, 2]
    stream = read_images(tmp_path)
    assert Path(next(stream).path or "").name == "a.png"
    with pytest.raises(ImageError, match=r"b\.png"):
        next(stream)


def test_a_link_in_a_circle_does_not_end_its_directory(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "b.txt").symlink_to("b.txt")
    save(tmp_path / "c.png")
    errors: list[ImageError] = []
    found = [Path(image.path or "").name for image in read_images(tmp_path, on_error=errors.append)]
    assert found == ["a.png", "c.png"]
    assert len(errors) == 1 and str(tmp_path / "b.png") in errors[0].cause


def test_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as where its descriptor is closed
    refused("-", "Standard input cannot be read")


def test_large_directory_starts_at_once_and_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    original = save(tmp_path / "00000.png")
    for index in range(1, 20_000):
        (tmp_path / f"{index:05}.png").symlink_to("missing.png" if index > 1 else original)
    start = time.perf_counter()
    stream = read_images(tmp_path)
    assert [Path(next(stream).path or "").name for _ in range(2)] == ["00000.png", "00001.png"]
    assert time.perf_counter() - start < 2
    with pytest.raises(ImageError, match=r"00002\.png"):  # had it been read before, it would have raised before
        next(stream)


def test_a_directory_is_listed_only_when_the_walk_comes_to_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "1.png")
    stream = read_images(tmp_path)
    next(stream)
    save(tmp_path / "b" / "2.png")
    assert [Path(image.path or "").name for image in stream] == ["1.png", "2.png"]


def test_one_image_is_held_at_a_time(tmp_path: Path) -> None:
    side = 1000
    for index in range(5):
        save(tmp_path / f"{index}.png", np.full((side, side, 3), index, np.uint8))
    PIL.Image.new("RGB", (side, side)).save(
        tmp_path / "9.tif", save_all=True, append_images=[PIL.Image.new("RGB", (side, side))] * 5
    )
    list(read_images(tmp_path / "0.png"))
    gc.collect()
    tracemalloc.start()
    try:
        stream = read_images(tmp_path / f"{index}.png" for index in range(5))
        for _ in range(5):
            assert next(stream).pixels.nbytes == 3 * side**2
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 3 * side**2
        tracemalloc.reset_peak()
        assert sum(image.page_index or 0 for image in read_images(tmp_path / "9.tif")) == 15
        file_size = (tmp_path / "9.tif").stat().st_size
        assert tracemalloc.get_traced_memory()[1] - file_size < 5 * 3 * side**2
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------ lists, iterators


def test_lists_tuples_and_iterators_of_anything(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = save(tmp_path / "in" / "a.png")
    mixed = [str(path), BGR, (path, [GREY]), path.parent]
    assert [image.path for image in read_images(mixed)] == [str(path), None, str(path), None, str(path)]
    pulled: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for index in range(3):
            pulled.append(index)
            yield np.full((2, 2, 3), index, np.uint8)

    stream = read_images(frames())
    assert pulled == []
    next(stream)
    assert pulled == [0]
    assert [int(image.pixels[0, 0, 0]) for image in stream] == [1, 2]
    assert list(read_images([])) == []


def test_bad_items_of_a_list_are_handed_over(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    (tmp_path / "none").mkdir()
    bad = [None, 3, b"bytes", {"a": 1}, "gone.png", BGR.astype(float), tmp_path / "none", "ftp://x/y.png"]
    errors: list[ImageError] = []
    found = list(read_images([*bad, path], on_error=errors.append))
    assert [image.path for image in found] == [str(path)]
    named = ["NoneType", "int", "bytes", "dict", "gone.png", "float64", "holds no image", "ftp"]
    assert all(word in error.cause for word, error in zip(named, errors, strict=True))
    refused([path, 3], "int")
    with path.open("rb") as opened:
        refused(opened, "BufferedReader")


# -------------------------------------------------------------------------------------------------------- PDF


def test_pdf_pages_are_rendered_at_twice_their_size(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *others = (PIL.Image.new("RGB", (W, H), colour) for colour in colours)
    path = tmp_path / "a.pdf"
    first.save(path, save_all=True, append_images=others, resolution=72)
    pages = list(read_images(path))
    assert [page.page_index for page in pages] == [0, 1, 2]
    for page, colour in zip(pages, colours, strict=True):
        assert page.path == str(path)
        assert page.pixels.shape == (2 * H, 2 * W, 3)
        assert np.abs(page.pixels[H, W].astype(int) - colour[::-1]).max() <= 2
    assert count_images(path) == 3
    path.rename(tmp_path / "b.pdf")
    assert [Path(p.path or "").name for p in read_images(tmp_path)] == ["b.pdf"] * 3


def test_pdf_pages_are_rendered_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    path = save(tmp_path / "a.pdf", save_all=True, append_images=[PIL.Image.fromarray(RGB)] * 2)
    rendered: list[int] = []
    render = _decoding._pdf_page

    def counted(document: object, index: int, name: str, limit: float) -> np.ndarray:
        rendered.append(index)
        return render(document, index, name, limit)

    monkeypatch.setattr(_decoding, "_pdf_page", counted)
    stream = read_images(path)
    next(stream)
    assert rendered == [0]


def test_pdf_page_shrinks_to_the_pixel_limit(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = save(tmp_path / "a.pdf", np.zeros((300, 400, 3), np.uint8), resolution=72)
    pixels = one(path, max_pixels=120_000).pixels
    assert 110_000 < pixels.shape[0] * pixels.shape[1] <= 120_000
    refused(path, "a.pdf", "400 × 300 points", max_pixels=1000)


def test_bad_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\nnothing here")
    refused(tmp_path / "a.pdf", "a.pdf", "cannot be opened")
    assert count_images(tmp_path / "a.pdf") == 1


def test_pdf_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pdf")
    monkeypatch.setitem(sys.modules, "pypdfium2", None)  # makes the import fail
    with pytest.raises(MissingExtra, match=r"a\.pdf.*ovseg\[pdf\]"):
        list(read_images(path))
    errors: list[ImageError] = []
    assert [image.path for image in read_images([path, BGR], on_error=errors.append)] == [None]
    assert "a.pdf" in errors[0].cause


def test_tiff_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    other = PIL.Image.fromarray(GREY)
    PIL.Image.fromarray(RGB).save(path, save_all=True, append_images=[other])
    first, second = read_images(path)
    np.testing.assert_array_equal(first.pixels, BGR)
    np.testing.assert_array_equal(second.pixels, grey_bgr(GREY))
    assert (first.page_index, second.page_index) == (0, 1)
    big = PIL.Image.new("RGB", (100, 100))
    PIL.Image.fromarray(RGB).save(path, save_all=True, append_images=[big, other])
    errors: list[ImageError] = []
    pages = [image.page_index for image in read_images(path, on_error=errors.append, max_pixels=H * W)]
    assert pages == [0, 2]
    assert "100 × 100" in errors[0].cause


# -------------------------------------------------------------------------------------------------------- URL


class Handler(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path in ("/moved.png", "/loop.png"):
            self.send_response(302)
            self.send_header("Location", "/a.png" if path == "/moved.png" else "/loop.png")
            self.end_headers()
        elif path == "/slow.png":
            time.sleep(1)
        elif path == "/gone.png":
            self.send_error(404)
        elif path == "/away.png":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        else:
            self.send_response(200)
            extra = 100 if path == "/short.png" else 0
            self.send_header("Content-Length", str(len(self.body) + extra))
            self.end_headers()
            self.wfile.write(self.body)

    def log_message(self, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Handler.body = save(tmp_path / "served.png").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_url(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for name in ("a.png", "moved.png", "no-suffix", "a.png?size=3"):
        found = one(f"{server}/{name}")
        np.testing.assert_array_equal(found.pixels, BGR)
        assert found.path == f"{server}/{name}"
    assert sorted(tmp_path.iterdir()) == before


def test_bad_urls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(f"{server}/gone.png", "/gone.png", "404")
    refused(f"{server}/loop.png", "/loop.png", "TooManyRedirects")
    refused(f"{server}/away.png", "/away.png", "InvalidSchema")
    refused(f"{server}/short.png", "/short.png", "cannot be downloaded")
    for url in ("ftp://host/a.png", "file:///a.png", "data://x", "s3://bucket/a.png"):
        refused(url, url, "only http and https")
    for url in ("http://127.0.0.1:9/a.png", "http://", "http://.", "http://" + "a" * 70 + ".x/"):
        refused(url, url)
    monkeypatch.setattr(images, "URL_TIMEOUT", (0.2, 0.2))
    refused(f"{server}/slow.png", "/slow.png", "in time")
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", len(Handler.body) - 1)
    refused(f"{server}/a.png", "/a.png", f"larger than {len(Handler.body) - 1} bytes")
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", len(Handler.body))
    one(f"{server}/a.png")


# ----------------------------------------------------------------------------------------------------- counts


def test_count_images_and_is_single(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    tiff = save(tmp_path / "a.tif", save_all=True, append_images=[PIL.Image.fromarray(GREY)])
    assert [count_images(source) for source in (BGR, path, str(tiff), "https://x/a.png")] == [1, 1, 2, 1]
    assert count_images([path, [BGR, tiff]]) == 4
    assert count_images([]) == 0
    for source in (tmp_path, [path, tmp_path], iter([path]), "-", "https://x/a.pdf"):
        assert count_images(source) is None
    assert [is_single(source) for source in (BGR, path, str(path), "-", "https://x/a.png")] == [True] * 5
    assert [is_single(source) for source in ([path], (path,), iter([path]), tmp_path)] == [False] * 4


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_files_raise_nothing_but_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    originals = [save(tmp_path / f"a.{s}").read_bytes() for s in ("jpg", "png", "webp", "bmp", "gif", "tif", "ppm")]
    path = tmp_path / "broken"
    for index in range(350):
        data = bytearray(originals[index % len(originals)])
        for _ in range(8):
            data[int(rng.integers(0, min(len(data), 400)))] = int(rng.integers(0, 256))
        path.write_bytes(data)
        for image in read_images(path, on_error=lambda error: None, max_pixels=10**6):
            assert image.pixels.dtype == np.uint8
