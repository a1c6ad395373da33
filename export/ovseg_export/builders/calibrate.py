"""Random weights that behave: deterministic initial values, BatchNorm statistics from data, scaled heads.

An untrained network gives nearly constant scores and boxes that all agree, and such outputs hide errors of
an export. What is here makes outputs spread and depend on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import nn

_BATCH_NORMS = (nn.BatchNorm2D, nn.BatchNorm1D, nn.BatchNorm)


def initialise(network: nn.Layer, seed: int) -> None:
    """Give every parameter of `network` random values that depend on `seed` and its place only.

    Matrices and kernels get variance 1/fan-in (2/fan-in for convolutions, which ReLU-like functions follow),
    norm scales lie around 1, biases around 0. Nothing is left at a neutral value: a scale that is lost or
    a bias added twice must show. BatchNorm biases lie around 0.5: with ReLU-like functions after them the
    network is less chaotic, so that what is calibrated on some pictures holds on others.
    """
    shifted = {id(layer.bias) for layer in network.sublayers(include_self=True) if isinstance(layer, _BATCH_NORMS)}
    for index, (name, parameter) in enumerate(network.named_parameters()):
        rng = np.random.default_rng((seed, index))
        shape = tuple(parameter.shape)
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 4:
            values *= np.float32(np.sqrt(2.0 / max(1, int(np.prod(shape[1:])))))
        elif name.endswith("weight") and len(shape) == 1:
            values = 1 + np.float32(0.1) * values
        elif name.endswith("bias") or len(shape) == 1:
            values = np.float32(0.1) * values + np.float32(0.5 if id(parameter) in shifted else 0.0)
        elif len(shape) == 2 and shape[0] > 1:
            values *= np.float32(np.sqrt(1.0 / shape[0]))
        else:
            values *= np.float32(0.5)
        parameter.set_value(values)


def smooth_kernels(network: nn.Layer, share: float) -> None:
    """Let the convolutions of `network` mostly average; call it after `initialise`.

    Random kernels pass fine noise on better than the smooth parts of a picture, and each BatchNorm brings
    both back to full size: rounding in the first layer grows by ten in a layer or two, and the outputs of two
    correct programs then differ by more than any limit. Kernels of more than one tap become
    (1 - share) · kernel + share · its mean over the taps, with the variance that they had.

    Args:
        network: The network.
        share: 0 (unchanged) to 1 (box filters).
    """
    for parameter in network.parameters():
        if parameter.ndim != 4 or parameter.shape[2] * parameter.shape[3] == 1:
            continue
        kernel = parameter.numpy()
        taps = kernel.shape[2] * kernel.shape[3]
        mixed = (1 - share) * kernel + share * np.sqrt(taps) * kernel.mean((2, 3), keepdims=True)
        scale = np.sqrt((kernel**2).mean() / (mixed**2).mean())
        parameter.set_value((mixed * scale).astype(np.float32))


@contextmanager
def _batch_norms_train(network: nn.Layer) -> Iterator[None]:
    norms = [layer for layer in network.sublayers(include_self=True) if isinstance(layer, _BATCH_NORMS)]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        # Momentum 0 replaces the running statistics by those of the batch at hand.
        norm._momentum = 0.0
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm._momentum = momentum
            norm.eval()


def set_batch_norm_statistics(network: nn.Layer, run: Callable[[], object]) -> None:
    """Set every BatchNorm's running mean and variance to those that `run()` makes it see.

    Args:
        network: The network, in evaluation mode; it is in evaluation mode afterwards too.
        run: Calls the network on a batch of pictures.
    """
    with paddle.no_grad(), _batch_norms_train(network):
        run()


def rescale_head(head: nn.Layer, observed: paddle.Tensor, *, mean: float, std: float, channel_axis: int = 1) -> None:
    """Change the last linear layer of a head so that each output channel gets a wanted mean and spread.

    Args:
        head: `Conv2D` or `Linear` with a bias.
        observed: What `head` gives on calibration data, channels along `channel_axis`.
        mean: Wanted mean of each channel.
        std: Wanted standard deviation of each channel.
        channel_axis: Axis of the channels in `observed`.
    """
    values = np.moveaxis(observed.numpy(), channel_axis, 0)
    values = values.reshape(values.shape[0], -1).astype(np.float64)
    factor = std / np.maximum(values.std(axis=1), 1e-6)
    weight, bias = head.weight.numpy(), head.bias.numpy()
    along: NDArray[np.float64] = (
        factor.reshape(1, -1) if weight.ndim == 2 else factor.reshape((-1,) + (1,) * (weight.ndim - 1))
    )
    head.weight.set_value((weight * along).astype(np.float32))
    head.bias.set_value(((bias - values.mean(axis=1)) * factor + mean).astype(np.float32))
