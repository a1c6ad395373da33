"""Network layers against the Paddle operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="needs Paddle (the export extra)")
nn, F = paddle.nn, paddle.nn.functional
pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 9, 10))
OPEN = [((-1, 4, -1, -1), "float32")]
FIXED = [((-1, 4, 9, 10), "float32")]


def with_statistics(layer: Any) -> Any:
    """Give every BatchNorm below statistics and weights that are not those of a fresh layer."""
    for norm in layer.sublayers(include_self=True):
        if isinstance(norm, nn.BatchNorm2D):
            for parameter, low in (
                (norm._mean, -1),
                (norm._variance, 0.5),
                (norm.weight, 0.5),
                (norm.bias, -1),
            ):
                parameter.set_value(RNG.uniform(low, 2, parameter.shape).astype("float32"))
    return layer


def two_uses_of_one_convolution() -> Any:
    class Net(nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2D(4, 6, 3, bias_attr=False), nn.BatchNorm2D(6)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            return self.norm(y), y

    return Net()


CONVOLUTIONS: dict[str, Callable[[], Any]] = {
    "plain": lambda: nn.Conv2D(4, 6, 3),
    "strides, padding, dilation": lambda: nn.Conv2D(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), bias_attr=False),
    "four paddings": lambda: nn.Conv2D(4, 6, 3, padding=[0, 1, 2, 3]),
    "SAME": lambda: nn.Conv2D(4, 6, 3, 2, padding="SAME"),
    "VALID": lambda: nn.Conv2D(4, 6, 3, padding="VALID"),
    "groups": lambda: nn.Conv2D(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2D(4, 4, 5, padding=2, groups=4),
    "with BatchNorm": lambda: nn.Sequential(nn.Conv2D(4, 6, 3, groups=2), nn.BatchNorm2D(6), nn.ReLU()),
    "shared with BatchNorm": two_uses_of_one_convolution,
    "BatchNorm alone": lambda: nn.BatchNorm2D(4),
    "transposed": lambda: nn.Conv2DTranspose(4, 6, 2, 2),
    "transposed, output padding": lambda: nn.Conv2DTranspose(4, 6, 3, 2, 1, output_padding=1),
    "transposed, groups, BatchNorm": lambda: nn.Sequential(nn.Conv2DTranspose(4, 6, 3, groups=2), nn.BatchNorm2D(6)),
    "transposed, BatchNorm": lambda: nn.Sequential(nn.Conv2DTranspose(4, 6, 3), nn.BatchNorm2D(6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, compare: Callable[..., None]) -> None:
    compare(with_statistics(CONVOLUTIONS[name]()), OPEN, [X], [X[:1, :, 1:, 2:]], tolerance=1e-5)


def test_transposed_convolution_to_a_size(compare: Callable[..., None]) -> None:
    weight = RNG.normal(size=(4, 2, 3, 3))
    specs = [*FIXED, ((4, 2, 3, 3), "float32")]
    compare(
        lambda x, w: F.conv2d_transpose(x, w, stride=2, output_size=[20, 21]),
        specs,
        [X, weight],
        tolerance=1e-5,
    )


NORMS: dict[str, Callable[[], Any]] = {
    "layer": lambda: nn.LayerNorm(10, epsilon=1e-3),
    "layer over two axes": lambda: nn.LayerNorm([9, 10]),
    "layer without weight": lambda: nn.LayerNorm(10, weight_attr=False, bias_attr=False),
    "group": lambda: nn.GroupNorm(2, 4, epsilon=1e-3),
    "instance": lambda: nn.InstanceNorm2D(4),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str, compare: Callable[..., None]) -> None:
    layer = NORMS[name]()
    for parameter in layer.parameters():
        parameter.set_value(RNG.uniform(0.5, 2, parameter.shape).astype("float32"))
    compare(layer, FIXED, [X], [X[:1] * 3 + 2], tolerance=1e-5)


POOLS: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, ceil": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "average, counting padding": lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False),
    "average, ceil": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "average, ceil, padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "global": lambda x: [F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)],
}


@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str, compare: Callable[..., None]) -> None:
    compare(POOLS[name], OPEN, [X], [X[:1, :, 1:, 1:]])


def test_pool_of_known_size(compare: Callable[..., None]) -> None:
    def function(x: Any) -> Any:
        return (
            F.avg_pool2d(x, 2, 2, ceil_mode=True, exclusive=False),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, exclusive=False),
            F.adaptive_avg_pool2d(x, [3, 5]),
            F.adaptive_max_pool2d(x, [3, 5]),
            F.adaptive_avg_pool2d(x, [4, 7]),
        )

    compare(function, FIXED, [X])


RESIZES: dict[str, Callable[[Any], Any]] = {
    "nearest": lambda x: [
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, [13, 7]),
        F.interpolate(x, [4, 5]),
    ],
    "nearest, aligned": lambda x: [F.interpolate(x, [13, 7], mode="nearest", align_corners=False)],
    "bilinear": lambda x: [
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, scale_factor=[0.5, 1.7], mode="bilinear"),
        F.interpolate(x, [13, 7], mode="bilinear"),
        F.interpolate(x, [1, 1], mode="bilinear"),
    ],
    "bilinear, corners": lambda x: [
        F.interpolate(x, [13, 7], mode="bilinear", align_corners=True),
        F.interpolate(x, [1, 7], mode="bilinear", align_corners=True),
    ],
    "bilinear, mode 1": lambda x: F.interpolate(x, [13, 7], mode="bilinear", align_mode=1),
    "bicubic": lambda x: [
        F.interpolate(x, [13, 7], mode="bicubic"),
        F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
    ],
    "to a size at run time": lambda x: [
        F.interpolate(x, paddle.shape(x)[2:] * 2, mode="bilinear"),
        F.interpolate(x, [paddle.shape(x)[3], 5], mode="nearest"),
    ],
}


@pytest.mark.parametrize("name", RESIZES)
def test_resize(name: str, compare: Callable[..., None]) -> None:
    compare(RESIZES[name], OPEN, [X], [X[:1, :, :5, :4]], tolerance=2e-5)


def test_pad(compare: Callable[..., None]) -> None:
    def function(x: Any) -> Any:
        return (
            F.pad(x, [1, 2, 3, 4], value=0.25),
            F.pad(x, [1, 2, 3, 4], mode="reflect"),
            F.pad(x, [1, 0, 0, 4], mode="replicate"),
            F.pad(x, [0, 0, 1, 2, 3, 0, 0, 5], value=-1.5),
            F.pad(x, [1, 2, 3, 4], value=0.5, data_format="NHWC"),
            F.pad(x, [0, paddle.shape(x)[3] % 4, 0, paddle.shape(x)[2] % 4]),
        )

    compare(function, OPEN, [X], [X[:1, :, :6, :7]])


def test_matrix_products(compare: Callable[..., None]) -> None:
    def function(x: Any, y: Any) -> Any:
        return (
            x @ y,
            paddle.matmul(x, x, transpose_y=True),
            paddle.matmul(x, x, transpose_x=True),
            paddle.matmul(x, y[:, 0]),
            paddle.bmm(x[0], x[0].transpose([0, 2, 1])),
            paddle.addmm(x[0, 0] @ y, x[0, 0], y, beta=0.5, alpha=2.0),
            paddle.einsum("bchw,wk->bhk", x, y),
            F.linear(x, y),
        )

    compare(
        function,
        [((-1, 4, -1, 10), "float32"), ((10, 3), "float32")],
        [X, RNG.normal(size=(10, 3))],
        tolerance=1e-5,
    )


def test_embedding(compare: Callable[..., None]) -> None:
    compare(nn.Embedding(7, 5, padding_idx=2), [((-1, 3), "int64")], [[[0, 2, 6], [1, 1, 2]]])


def test_pixel_shuffle(compare: Callable[..., None]) -> None:
    compare(lambda x: F.pixel_shuffle(x, 2), OPEN, [X])


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample(mode: str, padding: str, compare: Callable[..., None]) -> None:
    grid = RNG.uniform(-1.4, 1.4, (2, 5, 6, 2))
    specs = [*OPEN, ((-1, -1, -1, 2), "float32")]

    def function(x: Any, grid: Any) -> Any:
        return [F.grid_sample(x, grid, mode, padding, corners) for corners in (True, False)]

    feeds = [[X, grid], [X[:0], grid[:0]], [X, grid[:, :0]]]
    if (mode, padding) == ("bilinear", "zeros"):  # Paddle's other ways read anywhere then
        without = grid.copy()
        without[0, :, 0] = np.inf, 0.1
        without[0, :, 1] = 0.1, -np.inf
        without[1, :, 2] = np.nan
        without[1, 3] = 0.1, np.nan
        feeds.append([X, without])
    compare(function, specs, *feeds, tolerance=2e-5)


def test_transposed_convolution_of_a_given_size(compare: Callable[..., None]) -> None:
    weight = RNG.normal(size=(3, 2, 3, 3)).astype(np.float32)

    def function(x: Any) -> Any:
        sizes = ([11, 15], [12, 16])  # both have the plain size or one more
        return [F.conv2d_transpose(x, paddle.assign(weight), stride=2, dilation=2, output_size=size) for size in sizes]

    compare(function, [((2, 3, 4, 6), "float32")], [RNG.normal(size=(2, 3, 4, 6))], tolerance=2e-5)
