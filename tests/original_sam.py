"""Small networks of the public `segment-anything` package, as its own exporter writes them to ONNX.

The package imports torchvision for two functions. There is a torchvision for the CPU only where there is a
matching torch; where it is missing, `stand_in` puts both functions in its place: `resize` with Pillow, which is
what torchvision does with a PIL image, and `batched_nms` for boxes of one category. Nothing of this is in ovseg.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIZE, WIDTH = 256, 64
NAMES = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
OUTPUTS = ("masks", "iou_predictions", "low_res_masks")


def need() -> Any:
    """Return the package, or skip the tests that need it."""
    for name in ("torch", "onnx"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: the original SAM cannot be run", allow_module_level=True)
    if importlib.util.find_spec("segment_anything") is None:
        pytest.skip("segment-anything is not installed: pip install segment-anything", allow_module_level=True)
    if importlib.util.find_spec("torchvision") is None:
        stand_in()
    return importlib.import_module("segment_anything")


def stand_in() -> None:
    """Put the functions of torchvision that the package uses where it looks for them."""
    import PIL.Image
    import torch

    def to_pil_image(array: np.ndarray) -> PIL.Image.Image:
        return PIL.Image.fromarray(array)

    def resize(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
        return image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)

    def box_area(boxes: torch.Tensor) -> torch.Tensor:
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    def batched_nms(
        boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
    ) -> torch.Tensor:
        assert not idxs.any(), "one category only"
        order = torch.argsort(scores, descending=True, stable=True)
        areas, kept = box_area(boxes), []
        gone = torch.zeros(len(boxes), dtype=torch.bool)
        for i in order.tolist():
            if gone[i]:
                continue
            kept.append(i)
            low, high = torch.maximum(boxes[i, :2], boxes[:, :2]), torch.minimum(boxes[i, 2:], boxes[:, 2:])
            shared = (high - low).clamp(min=0).prod(dim=1)
            gone |= shared / (areas[i] + areas - shared) > iou_threshold
        return torch.tensor(kept, dtype=torch.int64)

    modules = {
        "torchvision": {},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": to_pil_image},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
    }
    for name, functions in modules.items():
        module = types.ModuleType(name)
        for key, function in functions.items():
            setattr(module, key, function)
        sys.modules[name] = module


def network(*, size: int = SIZE, width: int = WIDTH, encoder: int = 48, depth: int = 2, mlp: int = 64) -> Any:
    """A SAM with random weights whose masks have an inside and an outside, and whose IoU differ."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    grid = size // 16
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            embed_dim=encoder,
            depth=depth,
            num_heads=3,
            out_chans=width,
            use_rel_pos=True,
            window_size=7,
            global_attn_indexes=(depth - 1,),
        ),
        prompt_encoder=PromptEncoder(width, (grid, grid), (size, size), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=mlp, num_heads=4),
            iou_head_hidden_dim=32,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    sam.eval()
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(0, 0.2)
        _balance(sam, size)
    return sam


# What each mask token is lowered by, in standard deviations of its logits: the later ones draw spots, so that
# everything mode finds more than the whole image.
_SHIFTS = (0.0, 1.0, 1.8, 2.6)
_DEVIATION = 8.0


def _balance(sam: Any, size: int) -> None:
    """Spread the logits of each mask token around zero, and the predicted IoU around 0.9, over many points."""
    import torch

    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, 8, 8, generator=generator)
    features = sam.image_encoder(torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic"))
    points = torch.rand(32, 1, 2, generator=generator) * size
    decoder = sam.mask_decoder
    caught: dict[Any, torch.Tensor] = {}
    hooks = [decoder.output_upscaling.register_forward_hook(lambda *a: caught.update(pixels=a[2]))]
    hooks += [
        mlp.register_forward_hook(lambda *a, i=i: caught.update({i: a[2]}))
        for i, mlp in enumerate(decoder.output_hypernetworks_mlps)
    ]

    def predict() -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = sam.prompt_encoder((points, torch.ones(32, 1)), None, None)
        return decoder.predict_masks(features, sam.prompt_encoder.get_dense_pe(), sparse, dense)

    predict()
    mean = caught["pixels"].mean((0, 2, 3))
    direction = mean / mean.norm()
    for i, mlp in enumerate(decoder.output_hypernetworks_mlps):
        last = mlp.layers[-1]
        # What all points have in common would hide what makes them different.
        last.bias -= caught[i].mean(0)
        last.weight -= direction[:, None] * (direction @ last.weight)[None]
        last.bias -= direction * (direction @ last.bias)
    masks, iou = predict()
    for i, mlp in enumerate(decoder.output_hypernetworks_mlps):
        factor = _DEVIATION / masks[:, i].std()
        mlp.layers[-1].weight *= factor
        mlp.layers[-1].bias *= factor
        mlp.layers[-1].bias -= direction * (_DEVIATION * _SHIFTS[i] / mean.norm())
    last = decoder.iou_prediction_head.layers[-1]
    factor = 0.05 / iou.std(0)
    last.weight *= factor[:, None]
    last.bias.copy_((last.bias - iou.mean(0)) * factor + 0.9)
    for hook in hooks:
        hook.remove()


def export(sam: Any, folder: Path, *, channels_last: bool = False, single: bool = False) -> tuple[Path, Path]:
    """Write encoder and decoder as the original repository and common exporters do; return both paths.

    Args:
        sam: what `network` returned.
        folder: where to.
        channels_last: an encoder that takes HxWx3 of 0 to 255 and normalises and pads itself.
        single: a decoder that chooses one mask itself.
    """
    import torch
    from segment_anything.utils.onnx import SamOnnxModel

    class ChannelsLast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.size = sam.image_encoder, sam.image_encoder.img_size
            self.register_buffer("mean", sam.pixel_mean)
            self.register_buffer("std", sam.pixel_std)

        def forward(self, input_image: torch.Tensor) -> torch.Tensor:
            x = (input_image.permute(2, 0, 1) - self.mean) / self.std
            x = torch.nn.functional.pad(x, (0, self.size - x.shape[2], 0, self.size - x.shape[1]))
            return self.encoder(x.unsqueeze(0))

    folder.mkdir(parents=True, exist_ok=True)
    size, grid = sam.image_encoder.img_size, sam.image_encoder.img_size // 16
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if channels_last:
            axes = {"input_image": {0: "height", 1: "width"}}
            example: Any = torch.zeros(size * 3 // 4, size, 3)
            _write(ChannelsLast(), example, encoder, ["input_image"], ["image_embeddings"], axes)
        else:
            _write(sam.image_encoder, torch.zeros(1, 3, size, size), encoder, ["images"], ["features"], {})
        inputs = (
            torch.randn(1, sam.prompt_encoder.embed_dim, grid, grid),
            torch.randint(0, size, (1, 5, 2)).float(),
            torch.randint(0, 4, (1, 5)).float(),
            torch.randn(1, 1, 4 * grid, 4 * grid),
            torch.tensor([1.0]),
            torch.tensor([150.0, 225.0]),
        )
        axes = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
        model = SamOnnxModel(sam, return_single_mask=single)
        _write(model, inputs, decoder, list(NAMES), list(OUTPUTS), axes)
    return encoder, decoder


def _write(model: Any, example: Any, path: Path, inputs: list[str], outputs: list[str], axes: dict[str, Any]) -> None:
    import torch

    torch.onnx.export(
        model,
        example,
        str(path),
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=17,
        do_constant_folding=True,
        dynamo=False,
    )
