"""What `inference.yml` says, in the shape that PaddleDetection and PaddleClas exports have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .images import IMAGENET_MEAN, IMAGENET_STD

COCO_LABELS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def resize(height: int, width: int, *, keep_ratio: bool = False, interpolation: int = 2) -> dict[str, Any]:
    """Resize step; `interpolation` is OpenCV's number (1 linear, 2 cubic)."""
    return {
        "interp": interpolation,
        "keep_ratio": keep_ratio,
        "target_size": [height, width],
        "type": "Resize",
    }


def normalise_imagenet() -> dict[str, Any]:
    """Scale to 0..1, then ImageNet's mean and deviation."""
    return {
        "is_scale": True,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "type": "NormalizeImage",
    }


def normalise_unit() -> dict[str, Any]:
    """Scale to 0..1 only."""
    return {"mean": [0.0, 0.0, 0.0], "norm_type": "none", "std": [1.0, 1.0, 1.0], "type": "NormalizeImage"}


def detection_config(
    model_name: str,
    arch: str,
    preprocess: Sequence[dict[str, Any]],
    *,
    labels: Sequence[str] = COCO_LABELS,
    mask: bool = True,
    dynamic: bool = False,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Configuration of a PaddleDetection export.

    Args:
        model_name: PaddleX's name of the model.
        arch: PaddleDetection's name of the architecture.
        preprocess: Steps in order.
        labels: Class names.
        mask: Whether the model gives masks.
        dynamic: Whether the picture's size is free.
        extra: More top-level keys, at the end.
    """
    config: dict[str, Any] = {
        "mode": "paddle",
        "draw_threshold": 0.5,
        "metric": "COCO",
        "use_dynamic_shape": dynamic,
        "Global": {"model_name": model_name},
        "arch": arch,
        "min_subgraph_size": 3,
    }
    if mask:
        config["mask"] = True
    return config | {"Preprocess": list(preprocess), "label_list": list(labels)} | (extra or {})


def feature_config(model_name: str, size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Configuration of a PaddleClas feature model that takes [N, 3, size, size]."""
    steps: list[dict[str, Any]] = [
        {
            "ResizeImage": {
                "size": [size, size],
                "return_numpy": False,
                "interpolation": "bilinear",
                "backend": "cv2",
            }
        },
        {"NormalizeImage": {"scale": 1.0 / 255.0, "mean": list(mean), "std": list(std), "order": "hwc"}},
        {"ToCHWImage": None},
    ]
    backends = {
        backend: {"dynamic_shapes": {"x": [[1, 3, size, size], [1, 3, size, size], [8, 3, size, size]]}}
        for backend in ("paddle_tensorrt", "tensorrt")
    }
    return {
        "Hpi": {"backend_config": backends},
        "Global": {"model_name": model_name},
        "PreProcess": {"transform_ops": steps},
        "PostProcess": {"NormalizeFeatures": None},
    }
