"""`ovs index`: build, look into, search and change a gallery."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .options import DEVICE, MODEL, MODEL_DIR

if TYPE_CHECKING:
    import numpy as np

    from ..index import Gallery
    from ..pipelines.image_recognition import ImageRecognitionPipeline

FOLDER = typer.Argument(help="Folder of a gallery.", metavar="DIR", callback=lambda folder: _on_disk(folder))
INDEX = typer.Argument(help="Folder of a gallery, or milvus://...", metavar="INDEX")
IMAGES = typer.Option(..., "--images", "-i", help="Folder that the paths of the list start from.")
LABELS = typer.Option(..., "--labels", "-l", help="List of pictures: a path, a space or a tab, and a label a line.")
METRIC = typer.Option("IP", "--metric-type", help="IP, L2 or hamming.")
INDEX_TYPE = typer.Option("HNSW32", "--index-type", help="HNSW32, IVF, Flat or auto.")
SKIP_BAD = typer.Option(False, "--skip-bad", help="Leave out pictures that are missing or cannot be read.")
PIPELINE = typer.Option("PP-ShiTuV2", "--pipeline", help="Name of the pipeline, or path of its YAML file.")
PADDLEX_SOURCE = typer.Argument(
    help="Folder with PaddleX's vector.index and id_map.yaml.",
    metavar="PADDLEX",
    callback=lambda folder: _on_disk(folder),
)
PADDLEX_TARGET = typer.Argument(
    help="Folder to write for PaddleX.", metavar="PADDLEX", callback=lambda folder: _on_disk(folder)
)
NEW = typer.Argument(help="Folder to write.", metavar="NEW", callback=lambda folder: _on_disk(folder))
AS_JSON = typer.Option(False, "--json", help="Print JSON.")
VERIFY = typer.Option(False, "--verify", help="Read all vectors and compare their checksums.")
IDS = typer.Argument(None, help="Ids to remove.", metavar="[ID]...")
IDS_FILE = typer.Option(None, "--file", help="File with an id at the beginning of each line.")
VECTOR = typer.Option(None, "--vector", help="A .npy file with one embedding, or one a row.")
IMAGE = typer.Option(None, "--image", help="A picture to look for, as a whole or its --box.")
BOX = typer.Option(None, "--box", help="Part of the picture: x1,y1,x2,y2 in pixels.")
THRESHOLD = typer.Option(
    0.95, "--threshold", help="Least similarity (IP), or largest distance (L2: squared; hamming: bits)."
)
TOP_K = typer.Option(5, "--k", "-k", help="Matches for each embedding.")
LABEL = typer.Option(None, "--label", help="Look only at items of this label; may be repeated.")
VOTE = typer.Option(False, "--vote", help="Count the matches of each label.")
FORCE = typer.Option(False, "--force", help="Replace a gallery that is there.")


def register(app: typer.Typer) -> None:
    """Add `ovs index` to `app`."""
    index = typer.Typer(
        help="Build, look into, search and change a gallery.",
        epilog="Example: ovs index build my_gallery --images drinks --labels drinks/gallery.txt",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    example = "my_gallery --images drinks --labels drinks/gallery.txt"
    index.command("build", epilog=f"Example: ovs index build {example}")(build)
    index.command("append", epilog=f"Example: ovs index append {example}")(append)
    index.command("info", epilog="Example: ovs index info my_gallery --verify")(info)
    index.command("search", epilog="Example: ovs index search my_gallery --image query.jpg -k 3")(search)
    index.command("duplicates", epilog="Example: ovs index duplicates my_gallery --threshold 0.98")(duplicates)
    index.command("remove", epilog="Example: ovs index remove my_gallery 12 13")(remove)
    index.command("compact", epilog="Example: ovs index compact my_gallery")(compact)
    index.command("import", epilog="Example: ovs index import drink_index my_gallery")(import_)
    index.command("export", epilog="Example: ovs index export my_gallery drink_index")(export)
    index.command("salvage", epilog="Example: ovs index salvage my_gallery saved_gallery")(salvage)
    app.add_typer(index, name="index")


def build(
    where: str = INDEX,
    images: Path = IMAGES,
    labels: Path = LABELS,
    metric_type: str = METRIC,
    index_type: str = INDEX_TYPE,
    skip_bad: bool = SKIP_BAD,
    force: bool = FORCE,
    pipeline: str = PIPELINE,
    device: str = DEVICE,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
) -> None:
    """Make a gallery of pictures. After an interrupt, the same command goes on where it was."""
    from ..index import is_milvus

    made = _pipeline(pipeline, device, model, model_dir)
    with _progress() as progress:
        given: dict[str, Any] = {"skip_bad": skip_bad, "on_error": _report, "progress": progress}
        if is_milvus(where):
            gallery: Any = made.build_index(images, labels, metric_type, index_type, index=where, **given)
            gallery.save()
        else:
            gallery = made.build_folder(
                where, images, labels, metric_type, index_type, replace=force, say=_say, **given
            )
    _say(f"{len(gallery)} items")
    gallery.close()
    print(where)


def append(
    where: str = INDEX,
    images: Path = IMAGES,
    labels: Path = LABELS,
    skip_bad: bool = SKIP_BAD,
    pipeline: str = PIPELINE,
    device: str = DEVICE,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
) -> None:
    """Add pictures to a gallery: all of them, or after a failure none."""
    from ..index import is_milvus, load_index

    with load_index(where, **({} if is_milvus(where) else {"write": True})) as gallery:
        made = _pipeline(pipeline, device, model, model_dir)
        before = len(gallery)
        with _progress() as progress:
            made.append_index(images, labels, gallery, skip_bad=skip_bad, on_error=_report, progress=progress)
        gallery.save()
        _say(f"{len(gallery) - before} added, {len(gallery)} items")


def info(where: str = INDEX, verify: bool = VERIFY, as_json: bool = AS_JSON) -> None:
    """Show what a gallery holds; with --verify, prove that it is whole."""
    from ..index import Gallery, is_milvus, load_index

    gallery = load_index(where, **({} if is_milvus(where) else {"verify": verify}))
    facts: dict[str, Any] = {"items": len(gallery), "labels": len(set(gallery.labels))}
    if isinstance(gallery, Gallery):
        facts |= {"next_id": gallery.next_id, "version": gallery.version}
    facts |= gallery.settings.as_dict()
    if isinstance(gallery, Gallery):
        facts["size_mb"] = round(sum(p.stat().st_size for p in Path(where).iterdir() if p.is_file()) / 1e6, 2)
        if verify:
            facts["verified"] = True
    gallery.close()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:16} {'-' if value is None else value}")


def search(
    where: str = INDEX,
    vector: Path | None = VECTOR,
    image: str | None = IMAGE,
    box: str | None = BOX,
    k: int = TOP_K,
    label: list[str] = LABEL,
    vote: bool = VOTE,
    as_json: bool = AS_JSON,
    pipeline: str = PIPELINE,
    device: str = DEVICE,
    model: str = MODEL,
    model_dir: str = MODEL_DIR,
) -> None:
    """Find the items nearest to a picture, a part of one, or given embeddings."""
    from ..errors import ConfigError
    from ..index import load_index

    if (vector is None) == (image is None):
        raise ConfigError("Not one of --vector and --image is given.", "Give one of them.")
    if box is not None and image is None:
        raise ConfigError("--box is given without --image.", "It is a part of a picture: leave it out.")
    gallery = load_index(where)
    if image is not None:
        made = _pipeline(pipeline, device, model, model_dir)
        queries = made.embed_for(gallery, [_read_crop(image, box)])
    else:
        assert vector is not None
        queries = _read_vectors(vector)
    found = gallery.search(queries, k, labels=label or None)
    gallery.close()
    if as_json:
        print(json.dumps([_as_dict(matches, vote) for matches in found], indent=2, ensure_ascii=False))
        return
    for number, matches in enumerate(found):
        if len(found) > 1:
            print(f"query {number}")
        if vote:
            for entry in matches.vote():
                print(f"{entry.count:>10}  {entry.score:10.6f}  {entry.label}")
            continue
        for i, score, name in zip(matches.ids, matches.scores, matches.labels, strict=True):
            print(f"{i:>10}  {score:10.6f}  {name}")


def duplicates(where: str = INDEX, threshold: float = THRESHOLD, as_json: bool = AS_JSON) -> None:
    """Show the pairs of items that are as near as a threshold, nearest first."""
    from ..index import load_index

    gallery = load_index(where)
    pairs = gallery.duplicates(threshold)
    paths = {i: (entry or {}).get("path") for i, entry in zip(gallery.ids.tolist(), gallery.metadata, strict=True)}
    gallery.close()
    if as_json:
        print(json.dumps([vars(pair) | {"paths": [paths[i] for i in pair.ids]} for pair in pairs], ensure_ascii=False))
        return
    for pair in pairs:
        items = (f"{i} {label} {paths[i] or ''}".rstrip() for i, label in zip(pair.ids, pair.labels, strict=True))
        print(f"{pair.score:10.6f}  {'  |  '.join(items)}")
    other = sum(pair.labels[0] != pair.labels[1] for pair in pairs)
    _say(f"{len(pairs)} pairs, {other} of them with different labels")


def remove(where: str = INDEX, ids: list[int] = IDS, file: Path | None = IDS_FILE) -> None:
    """Remove items by id."""
    from ..errors import ConfigError
    from ..index import is_milvus, load_index
    from ..index.label_file import read_id_file

    wanted = [*(ids or []), *(read_id_file(file) if file else [])]
    if not wanted:
        raise ConfigError("No ids are given.", "Name them, or a --file with an id a line.")
    with load_index(where, **({} if is_milvus(where) else {"write": True})) as gallery:
        gallery.remove(wanted)
        gallery.save()
        _say(f"{len(set(wanted))} removed, {len(gallery)} left")


def compact(folder: Path = FOLDER) -> None:
    """Write a gallery anew, without the space of removed items."""
    from ..index import load_index

    with load_index(folder, write=True) as gallery:
        gallery.compact()
        _say(f"{len(gallery)} items")


def import_(source: Path = PADDLEX_SOURCE, folder: Path = NEW, force: bool = FORCE) -> None:
    """Make a gallery of an index that PaddleX saved."""
    from ..index.paddlex import import_paddlex

    _save_new(import_paddlex(source), folder, force)


def export(folder: Path = FOLDER, target: Path = PADDLEX_TARGET) -> None:
    """Write a gallery as PaddleX reads it."""
    from ..index import load_index
    from ..index.paddlex import export_paddlex

    gallery = load_index(folder)
    export_paddlex(gallery, target)
    _say(f"{len(gallery)} items")
    print(target)


def salvage(folder: Path = FOLDER, new: Path = NEW, force: bool = FORCE) -> None:
    """Save what is whole of a damaged gallery, in another folder."""
    from ..index.gallery import salvage_index

    gallery, problems = salvage_index(folder)
    for problem in problems:
        _say(problem)
    _save_new(gallery, new, force)


def _on_disk(folder: Path) -> Path:
    from ..index.storage import on_disk

    return on_disk(folder)


def _save_new(gallery: Gallery, folder: Path, force: bool) -> None:
    from ..errors import ConfigError
    from ..index.storage import is_gallery

    if is_gallery(folder) and not force:
        raise ConfigError(f"{folder} holds a gallery already.", "Use --force to replace it, or another folder.")
    gallery.save(folder)
    gallery.close()
    _say(f"{len(gallery)} items")
    print(folder)


def _as_dict(matches: Any, vote: bool) -> dict[str, Any]:
    if vote:
        return {"votes": [vars(entry) for entry in matches.vote()]}
    return {
        "labels": matches.labels,
        "rec_scores": matches.scores,
        "ids": matches.ids,
        "metadata": matches.metadata,
    }


def _read_vectors(path: Path) -> np.ndarray:
    import numpy as np

    from ..errors import GalleryError

    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise GalleryError(f"{path} is not an array of numpy's.", "Save it with numpy.save.") from error


def _read_crop(image: str, box: str | None) -> np.ndarray:
    from ..errors import ConfigError
    from ..images import is_single, read_images
    from ..stages.embedding import crop

    if not is_single(image):
        raise ConfigError(f"--image {image} is not one picture.", "Give the path or URL of one.")
    pixels = next(read_images(image)).pixels
    if box is None:
        return pixels
    try:
        x1, y1, x2, y2 = (float(value) for value in box.replace("[", "").replace("]", "").split(","))
    except ValueError:
        raise ConfigError(f"--box {box!r} is not a box.", "Give x1,y1,x2,y2 in pixels.") from None
    if not (0 <= x1 < x2 < math.inf and 0 <= y1 < y2 < math.inf and x1 < pixels.shape[1] and y1 < pixels.shape[0]):
        raise ConfigError(
            f"--box {box} is no part of the picture of {pixels.shape[1]}x{pixels.shape[0]} pixels.",
            "Give x1,y1,x2,y2 in pixels.",
        )
    return crop(pixels, (x1, y1, x2, y2))


def _pipeline(pipeline: str, device: str, model: str, model_dir: str) -> ImageRecognitionPipeline:
    from ..errors import ConfigError
    from ..pipelines import create_pipeline
    from ..pipelines.image_recognition import ImageRecognitionPipeline

    made = create_pipeline(pipeline, device=device, model=model, model_dir=model_dir)
    if not isinstance(made, ImageRecognitionPipeline):
        raise ConfigError(f"{pipeline} is not a pipeline with an index.", "Use PP-ShiTuV2.")
    return made


@contextmanager
def _progress() -> Iterator[Any]:
    """Show a bar on standard error, if it is a terminal; gives what is to be called with done and total."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(error: Any) -> None:
    _say(f"left out: {error.cause}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
