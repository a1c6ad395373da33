"""Training pictures made on the fly: objects with alpha over backgrounds.

With the map of what stays visible.
"""

from __future__ import annotations

from .compose import Instance, Mix, Scene, compose
from .library import Library, ObjectRecord, PhotoRecord

__all__ = ["Instance", "Library", "Mix", "ObjectRecord", "PhotoRecord", "Scene", "compose"]
