"""SAM-tiny: the small promptable segmentation model that ovseg trains and ships."""

SIZE = 512  # side of the square input frame, pixels
STRIDE = 32  # pixels of the frame for one token
WIDE16, WIDE32 = 128, 192  # channels at stride 16 and 32, where there is attention
DIM = 128  # width of tokens and embedding
FINE16, FINE8, FINE4 = 32, 16, 8  # channels at stride 16, 8 and 4
PIXEL = 32  # features of a pixel of stride 4, from which a prompt selects
MASKS = 4  # one single-mask token and three multi-mask tokens
LABELS = (-1.0, 0.0, 1.0, 2.0, 3.0)  # padding, negative, positive, top-left corner, bottom-right corner
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, ImageNet's, on 0..255
