"""The export stage of ovseg: official Paddle models to ONNX, each proven against Paddle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovseg_export.export import export_model

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    """Load `export_model`, and with it `onnx`, when it is asked for; Paddle's processes need neither."""
    if name == "export_model":
        from ovseg_export.export import export_model

        return export_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
