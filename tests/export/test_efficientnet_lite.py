"""The trunk of the small models: folded weights, and the same maps from torch and from Paddle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason='needs the export extra: pip install "ovseg[export]"')
pytestmark = pytest.mark.export

from ovseg_export.efficientnet_lite import BLOCKS, CHANNELS, MEAN, STD, STEM, Block, folded  # noqa: E402
from ovseg_export.efficientnet_lite.network import EfficientNetLite0  # noqa: E402
from paddle.nn import functional  # noqa: E402


def checkpoint(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights under the names of the published checkpoint."""
    state: dict[str, np.ndarray] = {}

    def layer(convolution: str, normalisation: str, shape: tuple[int, ...]) -> None:
        fan = np.prod(shape[1:])
        state[f"{convolution}.weight"] = rng.normal(0, fan**-0.5, shape).astype(np.float32)
        for key, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -1, 1)):
            state[f"{normalisation}.{key}"] = rng.uniform(low, high, shape[0]).astype(np.float32)
        state[f"{normalisation}.running_var"] = rng.uniform(0.5, 2, shape[0]).astype(np.float32)

    layer("_conv_stem", "_bn0", (STEM, 3, 3, 3))
    for i, block in enumerate(BLOCKS):
        wide = block.inputs * block.expand
        if block.expand > 1:
            layer(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", (wide, block.inputs, 1, 1))
        layer(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", (wide, 1, block.kernel, block.kernel))
        layer(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", (block.outputs, wide, 1, 1))
    return state


def reference(state: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """The network as it was published: RGB 0..255 less 127, over 128; convolution, normalisation, ReLU6.

    But for the border of the image, which is ImageNet's mean here.
    """
    whole = np.empty((*image.shape[:2], image.shape[2] + 1, image.shape[3] + 1), np.float32)
    whole[:] = MEAN[:, None, None]
    whole[:, :, :-1, :-1] = image

    def layer(x: Any, convolution: str, normalisation: str, stride: int = 1, groups: int = 1) -> Any:
        kernel = paddle.to_tensor(state[f"{convolution}.weight"])
        rest = 0 if kernel.shape[1] == 3 else kernel.shape[2] - stride
        x = functional.pad(x, [rest // 2, rest - rest // 2] * 2)
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        mean, variance, gain, shift = (
            paddle.to_tensor(state[f"{normalisation}.{key}"])
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, gain, shift, epsilon=1e-3)

    x = functional.relu6(layer((paddle.to_tensor(whole) - 127.0) / 128.0, "_conv_stem", "_bn0", 2))
    maps = []
    for i, block in enumerate(BLOCKS):
        y = x
        if block.expand > 1:
            y = functional.relu6(layer(y, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0"))
        y = layer(y, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.stride, y.shape[1])
        y = layer(functional.relu6(y), f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
        x = x + y if block.stride == 1 and block.inputs == block.outputs else y
        if i + 1 == len(BLOCKS) or BLOCKS[i + 1].stride == 2:
            maps.append(x.numpy())
    return maps[1:]  # the first is at stride 2


def test_folded_weights_give_the_maps_of_the_published_network() -> None:
    rng = np.random.default_rng(0)
    state = checkpoint(rng)
    network = EfficientNetLite0()
    network.set_state_dict(folded(state))
    image = rng.uniform(0, 255, (2, 3, 64, 96)).astype(np.float32)
    frame = ((image - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32)
    found = [item.numpy() for item in network(paddle.to_tensor(frame))]
    expected = reference(state, image)
    assert [item.shape for item in found] == [(2, CHANNELS[i], 16 >> i, 24 >> i) for i in range(4)]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_torch_and_paddle_agree() -> None:
    torch = pytest.importorskip("torch", reason='needs the train extra: pip install "ovseg[train]"')
    from ovseg_export.efficientnet_lite import twin

    rng = np.random.default_rng(0)
    weights = folded(checkpoint(rng))
    ours, theirs = EfficientNetLite0(), twin.EfficientNetLite0()
    ours.set_state_dict(weights)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    frame = rng.normal(size=(1, 3, 96, 64)).astype(np.float32)
    with torch.no_grad():
        pairs = list(zip(ours(paddle.to_tensor(frame)), theirs(torch.from_numpy(frame)), strict=True))
    for a, b in pairs:
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("block", [Block(k, s, 1, 8, 8) for k in (3, 5) for s in (1, 2)])
def test_gradient_of_the_fixed_kernels(block: Block) -> None:
    torch = pytest.importorskip("torch", reason='needs the train extra: pip install "ovseg[train]"')
    from ovseg_export.efficientnet_lite.twin import Depthwise

    torch.manual_seed(0)
    inside = block.kernel // 2 if block.stride == 1 else 0
    x = torch.randn(2, 8, 17, 19, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(8, 1, block.kernel, block.kernel, dtype=torch.double)
    bias = torch.randn(8, dtype=torch.double, requires_grad=True)
    expected = torch.nn.functional.conv2d(x, kernel, bias, block.stride, inside, groups=8)
    found = Depthwise.apply(x, kernel, bias, block.stride, inside)
    gradient = torch.randn_like(found)
    assert torch.equal(found, expected)
    made = [torch.autograd.grad(y, (x, bias), gradient) for y in (found, expected)]
    for ours, theirs in zip(*made, strict=True):
        assert torch.allclose(ours, theirs)
