"""Embeddings of unit length, and what is no embedding."""

from __future__ import annotations

import numpy as np

from ovseg.stages.embedding import normalise


def test_embeddings_have_unit_length() -> None:
    given = np.random.default_rng(0).normal(size=(100, 512)).astype(np.float32)
    unit = normalise(given * np.float32(1e-6))
    assert unit.dtype == np.float32
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < 1e-6


def test_zeros_stay_and_nan_is_not_taken_for_zeros() -> None:
    zeros, nan = normalise(np.array([[0, 0], [np.nan, 1]], np.float32))
    assert zeros.tolist() == [0, 0]
    assert np.isnan(nan).all()
