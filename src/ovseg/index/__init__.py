"""Galleries of embeddings: search, change, and keep them on disk.

>>> import numpy as np
>>> from ovseg import Gallery, load_index
>>> gallery = Gallery(2)
>>> gallery.add(np.eye(2, dtype=np.float32), ["east", "north"]).tolist()
[0, 1]
>>> gallery.search([0.9, 0.1], k=1)[0].labels
['east']

Importing this package loads numpy only; an engine's own package is loaded when an index of its kind is made.
"""

from __future__ import annotations

from .gallery import Duplicate, Gallery, Matches, load_index

__all__ = ["Duplicate", "Gallery", "Matches", "load_index"]
