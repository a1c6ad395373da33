"""Fetch the picture packages, decode them once and write the store that `Library` reads.

    python -m ovseg_export.scenes.assets --out export/work/assets [--from DIR]...

Packages come by name through their ordinary clients (`npm pack`, `apt-get download`), so a mirror configured
there is used. Only permissively licensed pictures (MIT, Apache-2.0, CC0, CC-BY, public domain) are in the
split `train`, or in `classes`, whose names are each set's own: for training by class, and for masks; pictures
under share-alike or copyleft terms serve validation only and never enter a weight.

Needs npm and apt-get with dpkg-deb (Debian or Ubuntu), and from PyPI: resvg_py, OpenEXR, pillow, opencv-
python-headless.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from .library import FORMAT, ObjectRecord, PhotoRecord

OBJECT_SIDE = 256
PHOTO_SIDE = 1280
MOST_PIXELS = 9_000_000  # some clip art is 13,000 px wide and would take seconds each


@dataclass(frozen=True)
class AssetSet:
    """One set of pictures: where it comes from, under which licence, and what it may be used for.

    `pattern` is matched (full match) against each file's path inside the unpacked package; its first group,
    if any, is the key. `limit` is the most pictures taken from one folder, so that a theme with a thousand
    arrows does not dominate.
    """

    name: str
    client: str  # npm or deb
    package: str
    version: str
    licence: str
    kind: str  # objects or photos
    split: str  # train, val, or classes
    pattern: str
    limit: int = 0
    emoji: bool = True
    weight: float = 1.0  # of each photograph when one is drawn


_LOMIRI_FREE = (  # CC-BY-4.0, and CC0-1.0 for "seeding", by the package's copyright file
    "aitzgorri_by_Aitzol_Berasategi|friends_by_Aitzol_Berasategi|life_by_Aitzol_Berasategi"
    "|picosdeeuropa_by_Aitzol_Berasategi|Picture_0B_by_freespace|Picture_1A_by_freespace"
    "|seeding_by_Clements_Engelhardt|sunset_by_Aitzol_Berasategi|umang_by_Abhishek_Mudgal|Wine_by_Jakkub_Mede"
)
_CLIPART = r"((?!special/|signs_and_symbols/flags/|unsorted/dup|shapes/flowchart).+)\.png"
_ICONIFY = r"package/icons\.json"
_WALLPAPER = r"(\w+)/contents/images/(?:5120x2880|3840x2160|2560x1600|2560x1440)\.(?:jpg|png)"


def _objects(
    name: str, client: str, package: str, version: str, licence: str, split: str, pattern: str, **more: Any
) -> AssetSet:
    return AssetSet(name, client, package, version, licence, "objects", split, pattern, **more)


def _photos(
    name: str, client: str, package: str, version: str, licence: str, split: str, pattern: str, weight: float
) -> AssetSet:
    return AssetSet(name, client, package, version, licence, "photos", split, pattern, weight=weight)


SETS: tuple[AssetSet, ...] = (
    _objects("fluent-3d", "npm", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "train",
             r"package/assets/(.+)\.webp"),
    _objects("fluent-flat", "npm", "@lobehub/fluent-emoji-flat", "1.1.0", "MIT", "train",
             r"package/assets/(.+?)\.?svg"),
    _objects("fluent-modern", "npm", "@lobehub/fluent-emoji-modern", "1.0.0", "MIT", "train",
             r"package/assets/(.+?)\.?svg"),
    # CC-BY-4.0 is the licence of the drawings; the package says MIT, which is that of the code
    _objects("twemoji", "npm", "@twemoji/svg", "15.0.0", "CC-BY-4.0", "train",
             r"package/([0-9a-f-]+)\.svg"),
    _objects("openclipart", "deb", "openclipart-png", "1:0.18+dfsg-19", "public domain", "train",
             r"usr/share/openclipart/png/" + _CLIPART, limit=90, emoji=False),
    _objects("noto", "npm", "@iconify-json/noto", "1.2.9", "Apache-2.0", "val",
             _ICONIFY),
    _objects("openmoji", "npm", "openmoji", "17.0.0", "CC-BY-SA-4.0", "val",
             r"package/color/svg/([0-9A-F-]+)\.svg"),
    # Their keys are names, each set's own.
    _objects("emojione", "npm", "@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "classes", _ICONIFY, emoji=False),
    _objects("fxemoji", "npm", "@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "classes", _ICONIFY, emoji=False),
    _objects("streamline", "npm", "@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0", "classes", _ICONIFY,
             emoji=False),
    _photos("lomiri-free", "deb", "lomiri-wallpapers-16.04", "20.04.0-2", "CC-BY-4.0 and CC0-1.0", "train",
            rf"usr/share/backgrounds/((?:{_LOMIRI_FREE}))\.jpg", 4.0),
    _photos("panoramas", "npm", "@pmndrs/assets", "1.7.0", "CC0-1.0", "train",
            r"package/hdri/(\w+)\.exr\.js", 1.0),
    _photos("papers", "deb", "mypaint-data-extras", "2.0.1-9", "CC0-1.0", "train",
            r"usr/share/mypaint/backgrounds/(?:ramon|mrmamurk)/(.+)\.png", 0.6),
    _photos("lomiri", "deb", "lomiri-wallpapers-16.04", "20.04.0-2", "CC-BY-SA-4.0", "val",
            rf"usr/share/backgrounds/((?!(?:{_LOMIRI_FREE})\.).+)\.jpg", 2.0),
    _photos("lomiri-20", "deb", "lomiri-wallpapers-20.04", "20.04.0-2", "CC-BY-SA-3.0", "val",
            r"usr/share/backgrounds/(.+)\.jpg", 1.0),
    _photos("mate", "deb", "mate-backgrounds", "1.26.0-1", "GPL-2+", "val",
            r"usr/share/backgrounds/mate/(nature/.+)\.jpg", 2.0),
    _photos("ukui", "deb", "ukui-wallpapers", "20.04.3-1.1", "CC-BY-SA-3.0", "val",
            r"usr/share/backgrounds/(.+)\.(?:jpg|png)", 1.0),
    _photos("plasma", "deb", "plasma-workspace-wallpapers", "4:5.27.5-2", "GPL-2+", "val",
            r"usr/share/wallpapers/" + _WALLPAPER, 1.0),
)  # fmt: skip


# ------------------------------------------------------------------ fetching


def package_file(entry: AssetSet, caches: list[Path], downloads: Path) -> Path:
    """The package's file, from `caches` if it is there, else downloaded by its client into `downloads`.

    Raises:
        RuntimeError: if the client is missing or fails; its last words are in the message.

    """
    stem = entry.package.lstrip("@").replace("/", "-")
    pattern = f"{stem}-{entry.version}.tgz" if entry.client == "npm" else f"{stem}_*.deb"
    for folder in [*caches, downloads]:
        found = sorted(folder.glob(pattern))
        if found:
            return found[-1]
    downloads.mkdir(parents=True, exist_ok=True)
    command = {
        "npm": ["npm", "pack", "--silent", f"{entry.package}@{entry.version}"],
        "deb": ["apt-get", "download", entry.package],  # Debian keeps one version per release
    }[entry.client]
    try:
        done = subprocess.run(command, cwd=downloads, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"{entry.name}: {command[0]} is not installed") from error
    if done.returncode:
        raise RuntimeError(f"{entry.name}: {' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    found = sorted(downloads.glob(pattern))
    if not found:
        raise RuntimeError(f"{entry.name}: {' '.join(command)} left no file like {pattern} in {downloads}")
    return found[-1]


def members(path: Path, pattern: str) -> Iterator[tuple[str, re.Match[str], bytes]]:
    """Files of a package (.tgz or .deb) whose path matches, sorted by path: (path, match, content)."""
    regex = re.compile(pattern)
    with tempfile.TemporaryFile() as spool:
        if path.suffix == ".deb":
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=spool, check=True)
            spool.seek(0)
        with tarfile.open(fileobj=spool) if path.suffix == ".deb" else tarfile.open(path) as archive:
            found = []
            for member in archive:
                match = regex.fullmatch(member.name.removeprefix("./"))
                if match and member.isfile():
                    found.append((member.name.removeprefix("./"), match, member))
            for name, match, member in sorted(found, key=lambda item: item[0]):
                stream = archive.extractfile(member)
                if stream is not None:
                    yield name, match, stream.read()


# ------------------------------------------------------------------ decoding


def emoji_key(text: str) -> str:
    """Code points as a key that all sets share: lower case, no variation selector.

    No leading zeros (`1f436`).
    """
    return "-".join(point.lstrip("0") for point in text.lower().split("-") if point not in ("fe0f", "fe0e"))


def render(data: bytes, name: str) -> np.ndarray:
    """One object file (SVG or raster) as HxWx4 uint8 BGRA with a long side of `OBJECT_SIDE` at most.

    Raises:
        ValueError: if the file cannot be decoded.

    """
    if name.endswith("svg"):
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode("utf-8"), width=OBJECT_SIDE, skip_system_fonts=True))
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{name}: {image.width} x {image.height} pixels is more than a clip art needs")
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {error}") from error
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]])


def trim(bgra: np.ndarray) -> np.ndarray | None:
    """The object cut to its alpha and shrunk to `OBJECT_SIDE`, or None if it is no use as an object.

    No use: empty, tiny (< 24 px), very thin (< 1:10), mostly transparent inside, or an opaque rectangle.
    """
    solid = (bgra[..., 3] >= 128).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(solid)
    if min(width, height) < 12 or max(width, height) < 24 or min(width, height) * 10 < max(width, height):
        return None
    area = int(solid.sum())
    if area < 0.08 * width * height or area < 0.5 * np.count_nonzero(bgra[..., 3]) or area > 0.985 * width * height:
        return None
    cut = bgra[y : y + height, x : x + width].astype(np.float32)
    scale = OBJECT_SIDE / max(width, height)
    if scale < 1:  # premultiplied, or hidden colours bleed into the edge
        alpha = cut[..., 3:] / 255
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        colour = cv2.resize(cut[..., :3] * alpha, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)[..., None]
        cut = np.concatenate([colour / np.maximum(alpha, 1 / 255), alpha * 255], -1)
    out = np.clip(cut + 0.5, 0, 255).astype(np.uint8)
    out[out[..., 3] == 0] = 0
    return out


_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3ff")  # 1f3fe stays: one darker variant beside the neutral one


def objects_of(entry: AssetSet, package: Path) -> Iterator[tuple[str, str, bytes]]:
    """(key, file name, content) of each picture of a set, skin tones thinned out."""
    if entry.pattern == _ICONIFY:
        yield from _iconify(package)
        return
    taken: dict[str, int] = {}
    for name, match, data in members(package, entry.pattern):
        key = emoji_key(match.group(1)) if entry.emoji else match.group(1)
        if entry.emoji and any(tone in key.split("-") for tone in _TONES):
            continue
        folder = name.rsplit("/", 1)[0]
        taken[folder] = taken.get(folder, 0) + 1
        if entry.limit and taken[folder] > entry.limit:
            continue
        yield key, name, data


def _iconify(package: Path) -> Iterator[tuple[str, str, bytes]]:
    """The pictures of an icon collection in one JSON file; a second file relates code points to names, in some."""
    files = {name: json.loads(data) for name, _, data in members(package, r"package/(?:icons|chars)\.json")}
    icons, chars = files["package/icons.json"], files["package/chars.json"]
    named = {emoji_key(code): name for code, name in sorted(chars.items())} or {name: name for name in icons["icons"]}
    for key, name in named.items():
        icon = icons["icons"].get(name)
        if icon is None or any(tone in key.split("-") for tone in _TONES):
            continue
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg {spaces} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        yield key, f"{name}.svg", svg.encode()


def emoji_names(package: Path) -> dict[str, str]:
    """Key → plain name (`dog face`) from an icon collection's code point table."""
    (_, _, data), *_rest = members(package, r"package/chars\.json")
    return {emoji_key(code): name.replace("-", " ") for code, name in json.loads(data).items()}


def photo_pixels(data: bytes, name: str) -> np.ndarray | None:
    """A photograph as HxWx3 uint8 BGR with a long side of `PHOTO_SIDE` at most.

    None if it is too small to use.
    """
    if name.endswith(".exr.js"):
        picture = _exr(base64.b64decode(data.split(b"base64,", 1)[1].split(b"'", 1)[0]))
    else:
        Image.MAX_IMAGE_PIXELS = None  # these are known packages, some with 30-megapixel pictures
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * PHOTO_SIDE, 2 * PHOTO_SIDE))
            picture = np.asarray(image.convert("RGB"))[..., ::-1]
    scale = PHOTO_SIDE / max(picture.shape[:2])
    if scale < 1:
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture) if min(picture.shape[:2]) >= 150 else None


def _exr(data: bytes) -> np.ndarray:
    """A high-dynamic-range picture, exposed so that its 90th percentile is bright, as HxWx3 uint8 BGR."""
    import OpenEXR

    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(data)
        file.flush()
        with OpenEXR.File(file.name) as exr:
            linear = np.asarray(exr.channels()["RGB"].pixels, np.float32)
    linear = np.maximum(linear, 0)
    exposed = linear * (0.7 / max(1e-6, float(np.percentile(linear, 90))))
    rows = linear.shape[0]  # the poles of a panorama are stretched beyond recognition
    exposed = exposed[int(0.22 * rows) : int(0.82 * rows)]
    return (np.clip(exposed, 0, 1)[..., ::-1] ** (1 / 2.2) * 255).astype(np.uint8)


# ------------------------------------------------------------------ the store


def prepare(out: Path, caches: list[Path], only: set[str] | None = None) -> dict[str, int]:
    """Add the sets that `out` lacks or holds by another line of the table; returns the pictures per set.

    Each set becomes part of the store as a whole when it is done, so an interrupted run loses one set.

    Raises:
        RuntimeError: if a package cannot be had or holds nothing of use.

    """
    (out / "objects").mkdir(parents=True, exist_ok=True)
    (out / "backgrounds").mkdir(exist_ok=True)
    held: dict[str, dict[str, Any]] = {}
    objects: list[dict[str, Any]] = []
    photos: list[dict[str, Any]] = []
    if (out / "store.json").exists():
        head = json.loads((out / "store.json").read_text("utf-8"))
        if head["format"] == FORMAT:
            held = {entry["name"]: entry for entry in head["sets"]}
            objects = json.loads((out / "objects.json").read_text("utf-8"))
            photos = json.loads((out / "backgrounds.json").read_text("utf-8"))
    names: dict[str, str] = {}
    for entry in SETS:
        if only is not None and entry.name not in only:
            continue
        line = asdict(entry)
        if {key: value for key, value in held.get(entry.name, {}).items() if key != "count"} == line:
            continue
        package = package_file(entry, caches, out / "packages")
        if entry.kind == "objects":
            if entry.emoji and not names:
                table = next(other for other in SETS if other.name == "noto")
                names = emoji_names(package_file(table, caches, out / "packages"))
            new = [asdict(record) for record in _write_objects(entry, package, out, names)]
            objects = [record for record in objects if record["set"] != entry.name] + new
        else:
            new = [asdict(photo) for photo in _write_photos(entry, package, out)]
            photos = [photo for photo in photos if photo["set"] != entry.name] + new
        held[entry.name] = line | {"count": len(new)}
        # The order of the table, not of the runs: scenes depend on it.
        rank = {known.name: place for place, known in enumerate(SETS)}
        objects.sort(key=lambda record: rank[record["set"]])
        photos.sort(key=lambda photo: rank[photo["set"]])
        _dump(out / "objects.json", objects)
        _dump(out / "backgrounds.json", photos)
        _dump(
            out / "store.json",
            {"format": FORMAT, "sets": sorted(held.values(), key=lambda one: rank[one["name"]])},
        )
        print(
            f"{entry.name}: {len(new)} {entry.kind} ({entry.split}, {entry.licence})",
            file=sys.stderr,
            flush=True,
        )
    return {name: entry["count"] for name, entry in held.items()}


def _dump(path: Path, value: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, ensure_ascii=False, indent=0), "utf-8")
    part.replace(path)


def _write_objects(entry: AssetSet, package: Path, out: Path, names: dict[str, str]) -> list[ObjectRecord]:
    records: list[ObjectRecord] = []
    seen: set[str] = set()
    keys: set[str] = set()
    offset, bad = 0, 0
    target = out / "objects" / f"{entry.name}.bin"
    part = target.with_suffix(".part")
    with part.open("wb") as file:
        for key, name, data in objects_of(entry, package):
            try:
                cut = trim(render(data, name))
            except ValueError as error:
                bad += 1
                print(f"{entry.name}: skipped: {error}", file=sys.stderr)
                continue
            if cut is None:
                continue
            digest = hashlib.sha256(cut.tobytes()).hexdigest()
            if digest in seen or key in keys:
                continue
            seen.add(digest)
            keys.add(key)
            png = cv2.imencode(".png", cut, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()
            file.write(png)
            plain = names.get(key, "") if entry.emoji else key.rsplit("/", 1)[-1].replace("_", " ")
            height, width = cut.shape[:2]
            records.append(ObjectRecord(entry.name, entry.split, key, plain, offset, len(png), height, width))
            offset += len(png)
    if not records:
        raise RuntimeError(f"{entry.name}: {package} holds no usable picture ({bad} could not be decoded)")
    part.replace(target)
    return records


def _write_photos(entry: AssetSet, package: Path, out: Path) -> list[PhotoRecord]:
    found: list[PhotoRecord] = []
    for name, match, data in members(package, entry.pattern):
        title = match.group(1)
        path = Path("backgrounds") / (re.sub(r"\W+", "_", f"{entry.name}-{title}") + ".jpg")
        if any(photo.file == str(path) for photo in found):  # the same wallpaper in another size
            continue
        picture = photo_pixels(data, name)
        if picture is None:
            continue
        (out / path).write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        found.append(PhotoRecord(entry.name, entry.split, title, entry.licence, str(path), entry.weight))
    if not found:
        raise RuntimeError(f"{entry.name}: {package} holds no usable photograph")
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line: fetch, decode and write the store."""
    parser = argparse.ArgumentParser(prog="python -m ovseg_export.scenes.assets", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("export/work/assets"), help="folder of the store")
    parser.add_argument(
        "--from",
        dest="caches",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with package files already downloaded",
    )
    parser.add_argument("--only", action="append", metavar="SET", help="only these sets")
    options = parser.parse_args(argv)
    unknown = set(options.only or []) - {entry.name for entry in SETS}
    if unknown:
        parser.error(f"unknown set {sorted(unknown)}: the sets are {', '.join(entry.name for entry in SETS)}")
    try:
        prepare(options.out, options.caches, set(options.only) if options.only else None)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
