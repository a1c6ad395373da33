"""SAM-tiny in Paddle: SAM's parts in small (Kirillov et al. 2023, "Segment Anything", section 3).

Image encoder: a residual convolutional network with attention at stride 32 and a feature pyramid.
Prompt encoder: points with labels, boxes as two corner points, and a previous mask.
Mask decoder: two-way attention between tokens and the image, four mask tokens and an IoU token.

Three choices keep a prompt cheap. Image features are kept as tokens of the stride-32 grid, the finer ones
folded into their cell, so that the decoder is matrix products only. The prompt is also drawn as soft maps on
the grid, so that a small network need not learn geometry from Fourier features. And the masks of the single-
mask token and those of the multi-mask tokens are separate outputs: ONNX Runtime computes what is fetched.
"""

from __future__ import annotations

import math

import paddle
from paddle import nn
from paddle.nn import functional

from ovseg_export.efficientnet_lite import CHANNELS
from ovseg_export.efficientnet_lite.network import EfficientNetLite0

from . import DIM, FINE4, FINE8, FINE16, LABELS, MASKS, PIXEL, STRIDE, WIDE16, WIDE32


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(inputs, outputs, kernel, stride, kernel // 2, bias_attr=False),
        nn.BatchNorm2D(outputs, momentum=0.9),
    )


def product(x, linear: nn.Linear):
    """What a linear layer does, but for its bias."""
    return paddle.matmul(x, linear.weight)


def below_best(scores, axis: int):
    """Scores less the best of an axis, and no less than its exponent makes a number of full precision.

    Processors take a hundred times as long for others, and after softmax these are zero beside the best in any case.
    """
    return (scores - scores.max(axis=axis, keepdim=True)).clip(min=-60.0)


class Attention(nn.Layer):
    """Multi-head attention, with biases where they cost nothing once constants are folded.

    The bias of the keys is left out: it adds the same to all weights of a query, which softmax takes away. The bias
    of the values passes through unchanged, since the weights of a query add up to one.

    Between few tokens and the many cells of an image, cells are not projected: a score is the product of a cell and
    what the token's side makes of both projections, and values are projected after they are summed.
    """

    def __init__(self, dim: int, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or dim
        self.heads, self.width = heads, inner // heads
        self.q, self.k, self.v = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.out = nn.Linear(inner, dim)

    def split(self, x):
        """[N, P, heads x width] to [N, heads, P, width]."""
        return x.reshape([0, 0, self.heads, self.width]).transpose([0, 2, 1, 3])

    def join(self, x):
        """What comes out for values [N, heads, P, width]."""
        return product(x.transpose([0, 2, 1, 3]).reshape([0, 0, self.heads * self.width]), self.out) + self.bias()

    def bias(self):
        return product(self.v.bias, self.out) + self.out.bias

    def by_head(self, linear: nn.Linear):
        """Weights [dim, heads x width] as [heads, dim, width]."""
        return linear.weight.reshape([-1, self.heads, self.width]).transpose([1, 0, 2])

    def forward(self, q, k, v):
        q = self.split(product(q, self.q) + self.q.bias)
        k, v = self.split(product(k, self.k)), self.split(product(v, self.v))
        weights = functional.softmax(paddle.matmul(q, k, transpose_y=True) * self.width**-0.5, axis=-1)
        return self.join(paddle.matmul(weights, v))

    def of_tokens(self, tokens, cells, values):
        """What tokens [N, P, dim] take of values [N, T, dim] by their likeness to cells [N, T, dim]."""
        dim = cells.shape[2]
        q = self.split(product(tokens, self.q) + self.q.bias) * self.width**-0.5
        q = paddle.matmul(q, self.by_head(self.k), transpose_y=True).reshape([0, -1, dim])
        weights = functional.softmax(below_best(paddle.matmul(q, cells, transpose_y=True), axis=-1), axis=-1)
        x = paddle.matmul(weights, values).reshape([0, self.heads, -1, dim])
        return self.join(paddle.matmul(x, self.by_head(self.v)))

    def of_cells(self, cells, tokens, values):
        """What cells [N, T, dim] take of values [N, P, dim] by their likeness to tokens [N, P, dim]."""
        dim = cells.shape[2]
        k = self.split(product(tokens, self.k)) * self.width**-0.5
        constant = paddle.matmul(k, self.q.bias.reshape([self.heads, self.width, 1])).reshape([0, -1, 1])
        k = paddle.matmul(k, self.by_head(self.q), transpose_y=True).reshape([0, -1, dim])
        scores = paddle.matmul(k, cells, transpose_y=True) + constant
        # Softmax by hand: that of ONNX Runtime is slow over an axis as short as that of the tokens.
        weights = paddle.exp(below_best(scores.reshape([0, self.heads, -1, cells.shape[1]]), axis=2))
        weights = (weights / weights.sum(axis=2, keepdim=True)).reshape([0, -1, cells.shape[1]])
        v = paddle.matmul(self.split(product(values, self.v)), self.out.weight.reshape([self.heads, self.width, dim]))
        # The weights of all heads add up to their number.
        v = v.reshape([0, -1, dim]) + self.bias() / self.heads
        return paddle.matmul(weights, v, transpose_x=True)


class GlobalBlock(nn.Layer):
    """Pre-norm transformer block on a feature map; a depthwise convolution gives it positions."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.position = nn.Conv2D(channels, channels, 3, 1, 1, groups=channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.up, self.down = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)

    def forward(self, x):
        x = x + self.position(x)
        channels, height, width = x.shape[1:]
        tokens = x.flatten(2).transpose([0, 2, 1])
        normal = self.norm1(tokens)
        tokens = tokens + self.attention(normal, normal, normal)
        tokens = tokens + self.down(functional.relu(self.up(self.norm2(tokens))))
        return tokens.transpose([0, 2, 1]).reshape([-1, channels, height, width])


class ImageEncoder(nn.Layer):
    """Frame [B, 3, S, S] to embeddings of T = (S / 32)^2 cells: stride 32, 16, 8 and 4.

    Shapes [B, T, 128], [B, T, 4 x 32], [B, T, 4, 4 x 16] and [B, T, 16, 4 x 8]; and the features of every pixel of
    stride 4, [4 T, 16, 32], from which a prompt selects.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0()
        self.enter16, self.enter32 = nn.Conv2D(CHANNELS[2], WIDE16, 1), nn.Conv2D(CHANNELS[3], WIDE32, 1)
        self.context16 = nn.Sequential(*[GlobalBlock(WIDE16) for _ in range(2)])
        self.context32 = nn.Sequential(*[GlobalBlock(WIDE32) for _ in range(6)])
        self.lateral32, self.lateral16 = nn.Conv2D(WIDE32, 128, 1), nn.Conv2D(WIDE16, 128, 1)
        self.mix16, self.out16 = nn.Sequential(conv_bn(128, 128), nn.ReLU()), nn.Conv2D(128, FINE16, 1)
        self.out32 = nn.Conv2D(WIDE32, DIM, 1)
        self.lateral8, self.down8 = nn.Conv2D(CHANNELS[1], 64, 1), nn.Conv2D(128, 64, 1)
        self.mix8, self.out8 = nn.Sequential(conv_bn(64, 64), nn.ReLU()), nn.Conv2D(64, FINE8, 1)
        self.lateral4, self.down4 = nn.Conv2D(CHANNELS[0], 32, 1), nn.Conv2D(64, 32, 1)
        self.mix4, self.out4 = nn.Sequential(conv_bn(32, 32), nn.ReLU()), nn.Conv2D(32, FINE4, 1)

    def forward(self, image):
        at4, at8, at16, at32 = self.trunk(image)
        at32 = self.context32(self.enter32(at32))
        at16 = self.context16(self.enter16(at16))
        h, w = at32.shape[2:]
        x = self.mix16(double(self.lateral32(at32)) + self.lateral16(at16))
        at32 = self.out32(at32).flatten(2).transpose([0, 2, 1])
        at16 = by_cell(self.out16(x), h, w)
        x = self.mix8(double(self.down8(x)) + self.lateral8(at8))
        at8 = by_cell(self.out8(x), h, w)
        x = by_cell(self.mix4(double(self.down4(x)) + self.lateral4(at4)), h, w)
        at4 = paddle.matmul(x, self.out4.weight.flatten(1), transpose_y=True) + self.out4.bias
        return (
            at32,
            at16.reshape([-1, h * w, 4 * FINE16]),
            at8.reshape([-1, h * w, 4, 4 * FINE8]),
            at4.reshape([-1, h * w, 16, 4 * FINE4]),
            x.reshape([-1, 16, PIXEL]),
        )


def double(x):
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def by_cell(x, height: int, width: int):
    """Features [1, C, n h, n w] as [n h n w, C]: by cell, quarter of it, quarter of that and so on.

    Channels are put last first: rows of them are moved faster than single numbers. They stay with the columns of the
    last halves, as TensorRT has no tensor of more than eight dimensions.
    """
    channels, halvings = x.shape[1], (x.shape[2] // height).bit_length() - 1
    x = x.flatten(2).transpose([0, 2, 1])
    x = x.reshape([height, *[2] * halvings, width, *[2] * (halvings - 1), 2 * channels])
    order = [axis + side for axis in range(halvings + 1) for side in (0, halvings + 1)]
    return x.transpose(order).reshape([-1, channels])


class PromptEncoder(nn.Layer):
    """Points, boxes and a mask to tokens [N, P, 128] and to a dense embedding [N, T, 128]."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.register_buffer("fourier", paddle.randn([2, dim // 2]))
        self.label = nn.Embedding(len(LABELS), dim)
        self.dense1, self.dense2 = nn.Linear(44, 64), nn.Linear(64, dim)
        self.mask1, self.mask2 = nn.Linear(64, 64), nn.Linear(64, dim)
        self.no_mask = nn.Embedding(1, dim)

    def positions(self, xy):
        angle = paddle.matmul(xy * 2.0 - 1.0, self.fourier) * (2 * math.pi)
        return paddle.concat([paddle.sin(angle), paddle.cos(angle)], axis=-1)

    @staticmethod
    def grid(height: int, width: int):
        y = (paddle.arange(height, dtype="float32") + 0.5) / height
        x = (paddle.arange(width, dtype="float32") + 0.5) / width
        return y, x

    def image_positions(self, height: int, width: int):
        y, x = self.grid(height, width)
        xx = x.unsqueeze(0).expand([height, width])
        yy = y.unsqueeze(1).expand([height, width])
        return self.positions(paddle.stack([xx, yy], axis=-1).reshape([1, height * width, 2]))

    def sparse(self, xy, labels):
        labels = labels.unsqueeze(2)
        tokens = self.positions(xy) * (labels != -1.0).astype("float32")
        for row, value in enumerate(LABELS):
            tokens = tokens + (labels == value).astype("float32") * self.label.weight[row]
        return tokens

    def maps(self, xy, labels, height: int, width: int):
        """Soft maps of a prompt on a grid of twice the height and width [N, 11 x 2 x 2, height x width].

        Clicks at two scales, the box, its distances: each a product of rows and columns, which are kept apart by
        whether they are the first or the second of a cell.
        """
        y, x = self.grid(2 * height, 2 * width)
        y, x = (axis.reshape([-1, 2]).transpose([1, 0]).reshape([-1]) for axis in (y, x))
        dx = (xy[:, :, 0:1] - x) ** 2 * -0.5
        dy = (xy[:, :, 1:2] - y) ** 2 * -0.5
        positive, negative, first, last = (
            (labels == label).astype("float32").unsqueeze(2) for label in (1.0, 0.0, 2.0, 3.0)
        )
        scales = (0.03**-2, 0.12**-2)
        at_y = [paddle.exp((dy * scale).clip(min=-40.0)) for scale in scales] * 2
        at_x = [paddle.exp((dx * scale).clip(min=-40.0)) * on for on in (positive, negative) for scale in scales]
        at_y = paddle.stack(at_y, axis=1).reshape([0, 4, -1, 2, 1, height]).transpose([0, 1, 3, 4, 5, 2])
        at_x = paddle.stack(at_x, axis=1).reshape([0, 4, -1, 2, 1, width]).transpose([0, 1, 4, 3, 2, 5])
        clicks = paddle.matmul(at_y, at_x)
        low, high, has_box = (xy * first).sum(1), (xy * last).sum(1), first.sum(1)
        left, right = x - low[:, 0:1], high[:, 0:1] - x
        top, bottom = y - low[:, 1:2], high[:, 1:2] - y
        box_x, box_y = paddle.ones_like(left) * has_box, paddle.ones_like(top) * has_box
        inside_x, inside_y = (
            functional.sigmoid((one * 100.0).clip(-20.0, 20.0)) * functional.sigmoid((other * 100.0).clip(-20.0, 20.0))
            for one, other in ((left, right), (top, bottom))
        )
        inside_y = inside_y * has_box
        left, right, top, bottom = ((side * 8.0).clip(-1.0, 1.0) for side in (left, right, top, bottom))
        count = paddle.ones_like(top) * positive.sum(1) * 0.25
        rows = paddle.stack([inside_y, box_y, box_y, top, bottom, box_y, count], axis=1)
        columns = paddle.stack([inside_x, left, right, box_x, box_x, box_x, paddle.ones_like(left)], axis=1)
        boxes = rows.reshape([0, 7, 2, 1, height, 1]) * columns.reshape([0, 7, 1, 2, 1, width])
        return paddle.concat([clicks, boxes], axis=1).reshape([0, 44, height * width])

    def dense(self, xy, labels, mask_input, has_mask, height: int, width: int):
        """What the prompt adds to the image: one term of N prompts, one of the previous masks (1 or N)."""
        tokens = height * width
        # The weights go by the four places of a cell and then by map; the maps are the other way round.
        weight = self.dense1.weight.reshape([4, 11, -1]).transpose([2, 1, 0]).reshape([-1, 44])
        maps = self.maps(xy, labels, height, width)
        drawn = functional.relu(paddle.matmul(weight, maps) + self.dense1.bias.unsqueeze(1))
        drawn = paddle.matmul(drawn, self.dense2.weight, transpose_x=True) + self.dense2.bias
        cells = mask_input.reshape([-1, height, 8, width, 8]).transpose([0, 1, 3, 2, 4])
        cells = cells.reshape([-1, tokens, 64]).clip(-16.0, 16.0) * 0.25
        masked = self.mask2(functional.relu(self.mask1(cells)))
        on = has_mask.unsqueeze(1).unsqueeze(2)
        return drawn, masked * on + self.no_mask.weight[0] * (1.0 - on)


class Layer(nn.Layer):
    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attention, self.norm1 = Attention(dim, heads), nn.LayerNorm(dim)
        self.token_to_image, self.norm2 = Attention(dim, heads, inner), nn.LayerNorm(dim)
        self.up, self.down, self.norm3 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
        self.image_to_token, self.norm4 = Attention(dim, heads, inner), nn.LayerNorm(dim)
        self.spread = nn.Conv2D(dim, dim, 7, 1, 3, groups=dim)

    def forward(self, tokens, prompt, image, grid, height: int, width: int):
        with_prompt = tokens + prompt
        tokens = self.norm1(tokens + self.self_attention(with_prompt, with_prompt, tokens))
        placed = image + grid
        tokens = self.norm2(tokens + self.token_to_image.of_tokens(tokens + prompt, placed, image))
        tokens = self.norm3(tokens + self.down(functional.relu(self.up(tokens))))
        image = self.norm4(image + self.image_to_token.of_cells(placed, tokens + prompt, tokens))
        # Cells learn of an object through its tokens alone; this lets them agree with their neighbours.
        x = image.transpose([0, 2, 1]).reshape([-1, image.shape[2], height, width])
        return tokens, image + self.spread(x).flatten(2).transpose([0, 2, 1])


class MaskDecoder(nn.Layer):
    def __init__(self, dim: int = DIM, inner: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1 + MASKS, dim)
        self.layers = nn.LayerList([Layer(dim, heads, inner) for _ in range(2)])
        self.final, self.norm = Attention(dim, heads, inner), nn.LayerNorm(dim)
        self.up16, self.up8 = nn.Linear(dim, 4 * FINE16), nn.Linear(FINE16, 4 * FINE8)
        self.up4 = nn.Linear(FINE8, 4 * FINE4)
        self.hyper1 = nn.LayerList([nn.Linear(dim, dim) for _ in range(MASKS)])
        self.hyper2 = nn.LayerList([nn.Linear(dim, FINE4 + 1 + PIXEL + 1) for _ in range(MASKS)])
        self.select = nn.Linear(FINE16, PIXEL)
        self.iou1, self.iou2 = nn.Linear(dim, dim), nn.Linear(dim, MASKS)

    def forward(self, at16, at8, at4, pixels, image, grid, prompt, height: int, width: int):
        cells = height * width
        own = self.tokens.weight.unsqueeze(0) + paddle.zeros_like(prompt[:, 0:1])
        prompt = paddle.concat([own, prompt], axis=1)
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, prompt, image, grid, height, width)
        tokens = self.norm(tokens + self.final.of_tokens(tokens + prompt, image + grid, image))
        # Transposed convolutions of stride 2, as a linear layer on each cell: 32 -> 16 -> 8 -> 4 pixels.
        x = functional.relu(product(image, self.up16) + (at16 + self.up16.bias)).reshape([-1, cells, 4, FINE16])
        # What a quarter of a cell looks for in its 16 pixels; prompts are the columns of the product.
        local = self.select(x).reshape([-1, 4 * cells, PIXEL]).transpose([1, 2, 0])
        local = paddle.matmul(pixels, local).transpose([2, 0, 1]).reshape([-1, 1, 64 * cells])
        # relu(x + a) is max(x, -a) + a, and what is linear in `a` is computed once an image: one pass less over pixels.
        at8 = at8 + self.up8.bias
        x = paddle.maximum(product(x, self.up8), -at8).reshape([-1, cells, 16, FINE8])
        at4 = at4 + (product(at8.reshape([-1, cells, 16, FINE8]), self.up4) + self.up4.bias)
        cells4 = paddle.maximum(product(x, self.up4), -at4).reshape([-1, cells * 64, FINE4])
        everywhere = paddle.concat([at4.reshape([-1, FINE4]), pixels.reshape([-1, PIXEL])], axis=1).transpose([1, 0])
        iou = self.iou2(functional.relu(self.iou1(tokens[:, 0])))

        def masks(first: int, last: int):
            hidden = [functional.relu(self.hyper1[i](tokens[:, 1 + i])) for i in range(first, last)]
            weights = paddle.stack([self.hyper2[first + i](x) for i, x in enumerate(hidden)], axis=1)
            count = last - first
            logits = paddle.matmul(weights[:, :, :FINE4], cells4, transpose_y=True) + weights[:, :, FINE4 : FINE4 + 1]
            # What the prompt as a whole looks for in every pixel.
            wide = paddle.concat([weights[:, :, :FINE4], weights[:, :, FINE4 + 1 : -1]], axis=2)
            wide = paddle.matmul(wide.reshape([-1, FINE4 + PIXEL]), everywhere)
            logits = logits + wide.reshape([-1, count, 64 * cells]) + local * (1.0 + weights[:, :, -1:])
            logits = logits.reshape([-1, width, 2, 2, 2, 2, 2, 2]).transpose([0, 2, 4, 6, 1, 3, 5, 7])
            return logits.reshape([-1, count, 8 * height, 8 * width])

        return masks(0, 1), iou[:, 0:1], masks(1, MASKS), iou[:, 1:]


class SamTiny(nn.Layer):
    """The whole network.

    Inputs of `forward`: image float32 [1, 3, S, S] (RGB, normalised, zero-padded at right and bottom);
    coords float32 [N, P, 2] (x, y in pixels of that frame); labels float32 [N, P] (see LABELS); mask_input
    float32 [N or 1, 1, S/4, S/4] logits of a previous mask; has_mask float32 [N or 1]. Outputs: single-mask
    logits [N, 1, S/4, S/4] and predicted IoU [N, 1], multi-mask logits [N, 3, S/4, S/4] and IoU [N, 3].
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.prompt, self.decoder = ImageEncoder(), PromptEncoder(), MaskDecoder()

    def forward(self, image, coords, labels, mask_input, has_mask):
        at32, at16, at8, at4, pixels = self.encoder(image)
        height, width = mask_input.shape[2] // 8, mask_input.shape[3] // 8
        xy = coords / paddle.to_tensor([float(STRIDE * width), float(STRIDE * height)])
        drawn, masked = self.prompt.dense(xy, labels, mask_input, has_mask, height, width)
        grid = self.prompt.image_positions(height, width)
        tokens = self.prompt.sparse(xy, labels)
        return self.decoder(at16, at8, at4, pixels, (at32 + masked) + drawn, grid, tokens, height, width)
