"""PaddleX's index folders: `vector.index`, which faiss reads, and `id_map.yaml`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import GalleryError, SaveError
from .engine import Settings, engine_kind
from .faiss import faiss_package
from .gallery import Gallery
from .storage import is_folder, on_disk

VECTORS = "vector.index"
# What PaddleX 3.7.2 writes, and what its user guide calls it.
ID_MAPS = ("id_map.yaml", "index_info.yaml")


def import_paddlex(folder: str | Path) -> Gallery:
    """Read an index that PaddleX saved; ids and labels stay as they are.

    Args:
        folder: with `vector.index` and `id_map.yaml` or `index_info.yaml`.

    Raises:
        GalleryError: files that are missing or damaged, or whose vectors and ids do not agree.
        ConfigError: `folder` is not the path of a folder.
        MissingExtra: faiss is not installed.
    """
    folder = on_disk(folder)
    info = _read_info(folder)
    faiss = faiss_package()
    path = folder / VECTORS
    if not path.is_file():
        raise GalleryError(f"{folder} has no {VECTORS}.", "Name a folder that PaddleX saved an index in.")
    binary = info["metric_type"] == "hamming"
    try:
        index = faiss.read_index_binary(str(path)) if binary else faiss.read_index(str(path))
    except RuntimeError as error:
        raise GalleryError(f"{path} is not an index that faiss can read.", "Save it again.") from error
    _check_metric(faiss, index, info["metric_type"], path)
    labels = info["id_map"]
    ids, vectors = _binary_items(faiss, index) if binary else _items(faiss, index, sorted(labels))
    if sorted(ids.tolist()) != sorted(labels):
        raise GalleryError(
            f"{folder}: the {len(ids)} vectors and the {len(labels)} ids do not agree.",
            "PaddleX loses track of an IVF index from which it removed items: build it again.",
        )
    order = np.argsort(ids)
    settings = Settings(index.d, info["metric_type"], info["index_type"])
    return Gallery._from_items(
        settings, ids[order].astype(np.int64), vectors[order], [labels[i] for i in ids[order].tolist()]
    )


def export_paddlex(gallery: Gallery, folder: str | Path) -> None:
    """Write a gallery as PaddleX 3.7.2 reads it; metadata are left out.

    Args:
        gallery: not empty, of metric IP or L2.
        folder: made if it is missing; the files of an index there are replaced.

    Raises:
        GalleryError: an empty gallery, or one of the hamming metric.
        ConfigError: `folder` is not the path of a folder.
        SaveError: the folder cannot be written to.
        MissingExtra: faiss is not installed.
    """
    folder = on_disk(folder)
    if not len(gallery):
        raise GalleryError("An empty gallery cannot be exported.", "Add items first.")
    if gallery.metric == "hamming":
        raise GalleryError("PaddleX 3.7.2 cannot open a hamming index of its own.", "Export IP or L2.")
    faiss = faiss_package()
    settings = gallery.settings
    # PaddleX knows no other M.
    kind = "HNSW" if settings.links else engine_kind(settings, len(gallery))
    kind = "HNSW32" if kind == "HNSW" else kind
    factory = f"IVF{max(1, len(gallery) // 39)},Flat" if kind == "IVF" else kind
    metric = faiss.METRIC_INNER_PRODUCT if gallery.metric == "IP" else faiss.METRIC_L2
    index = faiss.IndexIDMap2(faiss.index_factory(gallery.dim, factory, metric))
    vectors = np.ascontiguousarray(gallery.embeddings(), np.float32)
    index.train(vectors)
    index.add_with_ids(vectors, gallery.ids)
    info = {
        "id_map": dict(zip(gallery.ids.tolist(), gallery.labels, strict=True)),
        "index_type": kind,
        "metric_type": gallery.metric,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(info, default_flow_style=False, allow_unicode=True)
        data = {VECTORS: faiss.serialize_index(index).tobytes(), ID_MAPS[0]: text.encode()}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as beside:
            for name, content in data.items():
                (Path(beside) / name).write_bytes(content)
            for name in data:
                (Path(beside) / name).replace(folder / name)
    except OSError as error:
        raise SaveError(
            f"{folder} cannot be written: {error.strerror or error}.", "Check that it can be written to."
        ) from error


def _read_info(folder: Path) -> dict[str, Any]:
    """Read the ids, the labels, the index type and the metric."""
    if not is_folder(folder):
        raise GalleryError(f"There is no folder {folder}.", "Name a folder that PaddleX saved an index in.")
    found = [folder / name for name in ID_MAPS if (folder / name).is_file()]
    if not found:
        raise GalleryError(f"{folder} has no {' or '.join(ID_MAPS)}.", "Name a folder that PaddleX saved an index in.")
    try:
        # Keys and labels are read as text: YAML would take a label such as 007 for a number and yes for true.
        text = found[0].read_text(encoding="utf-8")
    except OSError as error:
        raise GalleryError(
            f"{found[0]} cannot be read: {error.strerror or error}.", "Check the rights of the folder."
        ) from error
    except UnicodeDecodeError as error:
        raise GalleryError(f"{found[0]} is not UTF-8.", "Save the index again with PaddleX.") from error
    try:
        info = yaml.load(text, Loader=yaml.BaseLoader)
        labels = {int(key): str(label) for key, label in info["id_map"].items()}
        metric, kind = info["metric_type"], info["index_type"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise GalleryError(
            f"{found[0]} is not the map of an index: id_map, metric_type or index_type is missing.",
            "Save the index again with PaddleX.",
        ) from error
    if metric not in ("IP", "L2", "hamming") or kind not in ("Flat", "IVF", "HNSW32"):
        raise GalleryError(f"{found[0]} is of metric {metric} and type {kind}.", "Flat, IVF and HNSW32 are read.")
    return {"id_map": labels, "metric_type": metric, "index_type": kind}


def _check_metric(faiss: Any, index: Any, metric: str, path: Path) -> None:
    names = {faiss.METRIC_INNER_PRODUCT: "IP", faiss.METRIC_L2: "L2"}
    if metric != "hamming" and names.get(index.metric_type) != metric:
        raise GalleryError(
            f"{path} has the metric {names.get(index.metric_type)}, and its map says {metric}.",
            "Save the index again with PaddleX.",
        )


def _items(faiss: Any, index: Any, known: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [N] and vectors [N, D] of an index of floats; `known` are the ids of the map."""
    outer = faiss.downcast_index(index)
    inner = faiss.downcast_index(outer.index) if hasattr(outer, "id_map") else outer
    if hasattr(inner, "invlists"):
        places, vectors = _list_items(faiss, inner)
    else:
        places, vectors = np.arange(inner.ntotal), inner.reconstruct_n(0, inner.ntotal)
    if not hasattr(outer, "id_map"):
        return places, vectors
    id_map = faiss.vector_to_array(outer.id_map)
    if sorted(places.tolist()) == list(range(len(id_map))):
        return id_map[places], vectors
    # An IVF index keeps the places of its vectors when some are removed, while the map above it closes the
    # gaps. If nothing was added later, the places are the first ids.
    return (places, vectors) if sorted(places.tolist()) == known else (places[:0], vectors[:0])


def _list_items(faiss: Any, index: Any) -> tuple[np.ndarray, np.ndarray]:
    places, vectors = [], []
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        if size:
            places.append(faiss.rev_swig_ptr(index.invlists.get_ids(number), size).copy())
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size).copy()
            vectors.append(codes.view(np.float32).reshape(size, index.d))
    if not places:
        return np.empty(0, np.int64), np.empty((0, index.d), np.float32)
    return np.concatenate(places), np.concatenate(vectors)


def _binary_items(faiss: Any, index: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [N] and vectors [N, D / 8] of an exact binary index."""
    flat = faiss.downcast_IndexBinary(index)
    if not isinstance(flat, faiss.IndexBinaryFlat):
        raise GalleryError("Of binary indexes, only Flat can be imported.", "Build it again as Flat.")
    codes = faiss.vector_to_array(flat.xb).reshape(flat.ntotal, flat.d // 8)
    return np.arange(flat.ntotal), codes
