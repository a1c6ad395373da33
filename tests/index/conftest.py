from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

Vectors = Callable[..., np.ndarray]


@pytest.fixture
def vectors() -> Vectors:
    """Random vectors: unit length, around a few hundred centres, as embeddings of pictures are."""

    def make(count: int, dim: int = 32, seed: int = 0) -> np.ndarray:
        dice = np.random.default_rng(seed)
        centres = np.random.default_rng(99).standard_normal((200, dim))
        found = centres[dice.integers(0, 200, count)] + 0.5 * dice.standard_normal((count, dim))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    return make
