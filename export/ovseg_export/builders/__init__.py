"""Small, faithful Paddle models of every family, standing in for official weights in tests.

Each module has `build(out_dir, *, seed=0, fmt="json", …) -> Path`.
"""

from __future__ import annotations
