"""`ovs run`."""

from __future__ import annotations

from typing import Any


def register(app: Any) -> None:
    """Add the sub-command to `app`."""
