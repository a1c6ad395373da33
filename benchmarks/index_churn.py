"""A gallery of which half is removed and replaced in ten rounds: recall, size of the folder, and what comes back.

    python benchmarks/index_churn.py [--items 100000] [--dim 512] [--rounds 10] [--share 0.05]

Each round removes a random share of the gallery, adds as many new items, and saves; 0.5 replaces half in each round.
Afterwards the folder is opened again: recall@10 against exact search and the size are compared with those of a gallery
made freshly of the same items, and no removed id may ever be found. The embeddings are those of `index_speed.py`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from index_speed import embeddings, recall

from ovseg.index import Gallery, load_index


def found(gallery: Gallery, queries: np.ndarray) -> np.ndarray:
    """Return the ids of the nearest ten, [Q, 10]."""
    return np.array([matches.ids for matches in gallery.search(queries, 10)])


def size(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.05, help="of the gallery that each round replaces")
    parser.add_argument("--queries", type=int, default=1000)
    arguments = parser.parse_args()
    items, changed = arguments.items, int(arguments.items * arguments.share)
    dice = np.random.default_rng(0)
    queries = embeddings(items, arguments.dim, 1000)[: arguments.queries]

    with tempfile.TemporaryDirectory() as name:
        churned, fresh = Path(name) / "churned", Path(name) / "fresh"
        gallery = Gallery(arguments.dim, index_type="HNSW32")
        gallery.add(embeddings(items, arguments.dim, 2), [f"label {i % 5000}" for i in range(items)])
        started = time.process_time()
        gallery.save(churned)
        print(f"built and saved: {time.process_time() - started:.0f} s", flush=True)
        gone = np.empty(0, np.int64)
        largest = 0.0
        for number in range(arguments.rounds):
            out = dice.choice(gallery.ids, changed, replace=False)
            gone = np.concatenate([gone, out])
            started = time.process_time()
            gallery.remove(out)
            new = embeddings(items, arguments.dim, 10 + number)[:changed]
            gallery.add(new, [f"label {i % 5000}" for i in range(changed)])
            gallery.save()
            ids = found(gallery, queries)
            assert not np.isin(ids, gone).any(), "a removed id was found"
            largest = max(largest, size(churned))
            print(
                f"round {number + 1}: {time.process_time() - started:.0f} s, {size(churned) / 1e6:.0f} MB", flush=True
            )

        gallery = load_index(churned)
        assert len(gallery) == items and not np.isin(gallery.ids, gone).any()
        exact = Gallery(arguments.dim, index_type="Flat")
        exact.add(gallery.embeddings(), gallery.labels)
        truth = gallery.ids[found(exact, queries)]
        ids = found(gallery, queries)
        assert not np.isin(ids, gone).any(), "a removed id was found"
        ours = recall(ids, truth)
        new_one = Gallery(arguments.dim, index_type="HNSW32")
        new_one.add(exact.embeddings(), gallery.labels)
        new_one.save(fresh)
        theirs = recall(gallery.ids[found(new_one, queries)], truth)
        print(f"recall@10 {ours:.4f}, of a fresh one {theirs:.4f}: ratio {ours / theirs:.4f}")
        print(f"size over a fresh one's: {size(churned) / size(fresh):.2f}, at most {largest / size(fresh):.2f}")
        print(f"{len(gone)} ids were removed, and none was found")


if __name__ == "__main__":
    main()
