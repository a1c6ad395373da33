"""`ovs index`: look into, search and change a saved gallery."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from ..index import Gallery

FOLDER = typer.Argument(help="Folder of a gallery.", metavar="DIR")
PADDLEX_SOURCE = typer.Argument(help="Folder with PaddleX's vector.index and id_map.yaml.", metavar="PADDLEX")
PADDLEX_TARGET = typer.Argument(help="Folder to write for PaddleX.", metavar="PADDLEX")
NEW = typer.Argument(help="Folder to write.", metavar="NEW")
AS_JSON = typer.Option(False, "--json", help="Print JSON.")
VERIFY = typer.Option(False, "--verify", help="Read all vectors and compare their checksums.")
IDS = typer.Argument(None, help="Ids to remove.", metavar="[ID]...")
IDS_FILE = typer.Option(None, "--file", help="File with an id at the beginning of each line.")
VECTOR = typer.Option(..., "--vector", help="A .npy file with one embedding, or one a row.")
TOP_K = typer.Option(5, "--k", "-k", help="Matches for each embedding.")
LABEL = typer.Option(None, "--label", help="Look only at items of this label; may be repeated.")
VOTE = typer.Option(False, "--vote", help="Count the matches of each label.")
FORCE = typer.Option(False, "--force", help="Replace a gallery that is there.")


def register(app: typer.Typer) -> None:
    """Add `ovs index` to `app`."""
    index = typer.Typer(
        help="Look into, search and change a gallery.",
        epilog="Example: ovs index info my_gallery",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    index.command("info", epilog="Example: ovs index info my_gallery --verify")(info)
    index.command("search", epilog="Example: ovs index search my_gallery --vector query.npy -k 3")(search)
    index.command("remove", epilog="Example: ovs index remove my_gallery 12 13")(remove)
    index.command("compact", epilog="Example: ovs index compact my_gallery")(compact)
    index.command("import", epilog="Example: ovs index import drink_index my_gallery")(import_)
    index.command("export", epilog="Example: ovs index export my_gallery drink_index")(export)
    index.command("salvage", epilog="Example: ovs index salvage my_gallery saved_gallery")(salvage)
    app.add_typer(index, name="index")


def info(folder: Path = FOLDER, verify: bool = VERIFY, as_json: bool = AS_JSON) -> None:
    """Show what a gallery holds; with --verify, prove that it is whole."""
    from ..index import load_index

    gallery = load_index(folder, verify=verify)
    facts: dict[str, Any] = {
        "items": len(gallery),
        "labels": len(set(gallery.labels)),
        "next_id": gallery.next_id,
        "version": gallery.version,
        **gallery.settings.as_dict(),
        "size_mb": round(sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) / 1e6, 2),
    }
    if verify:
        facts["verified"] = True
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:16} {'-' if value is None else value}")


def search(
    folder: Path = FOLDER,
    vector: Path = VECTOR,
    k: int = TOP_K,
    label: list[str] = LABEL,
    vote: bool = VOTE,
    as_json: bool = AS_JSON,
) -> None:
    """Find the items nearest to given embeddings."""
    from ..index import load_index

    gallery = load_index(folder)
    found = gallery.search(_read_vectors(vector), k, labels=label or None)
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


def remove(folder: Path = FOLDER, ids: list[int] = IDS, file: Path | None = IDS_FILE) -> None:
    """Remove items by id."""
    from ..errors import ConfigError
    from ..index import load_index

    wanted = [*(ids or []), *(_read_ids(file) if file else [])]
    if not wanted:
        raise ConfigError("No ids are given.", "Name them, or a --file with an id a line.")
    with load_index(folder, write=True) as gallery:
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


def _read_ids(path: Path) -> list[int]:
    from ..errors import GalleryError

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"{path} cannot be read.", "Name a text file with an id a line.") from error
    ids = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                ids.append(int(line.split()[0]))
            except ValueError:
                raise GalleryError(
                    f"Line {number} of {path} has no id: {line.strip()!r}.", "Begin each line with an id."
                ) from None
    return ids


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
