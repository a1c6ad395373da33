"""PaddleX's vision pipelines on ONNX Runtime, with no Paddle installed.

>>> from ovseg import create_pipeline
>>> pipeline = create_pipeline("open_vocabulary_segmentation")
>>> for res in pipeline.predict("cat.jpg", prompt_type="box", prompt=[[30, 20, 410, 300]]):
...     res.save_to_img("output/")

Importing the package loads neither onnxruntime nor OpenCV; creating a pipeline does.
"""

from __future__ import annotations

from typing import Any

from .errors import (
    ConfigError,
    DeviceUnavailable,
    DownloadError,
    GalleryError,
    ImageError,
    MissingExtra,
    ModelError,
    OvsError,
    PromptError,
    SaveError,
)

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DeviceUnavailable",
    "DownloadError",
    "Gallery",
    "GalleryError",
    "ImageError",
    "MissingExtra",
    "ModelError",
    "OvsError",
    "PromptError",
    "SaveError",
    "__version__",
    "create_pipeline",
    "load_index",
]


def __getattr__(name: str) -> Any:
    if name == "create_pipeline":
        from .pipelines import create_pipeline

        return create_pipeline
    if name in ("Gallery", "load_index"):
        from . import index

        return getattr(index, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
