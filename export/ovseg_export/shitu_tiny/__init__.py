"""ShiTu-tiny: the small main-body detector and the small embedding network that ovseg trains and ships."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, ImageNet's, on 0..1
REC_WIDTHS, REC_DEPTHS = (48, 96, 192), (1, 2, 2)  # channels and blocks at stride 4, 8, 16
REC_GRID = 3  # cells to a side that the embedding keeps apart
EMBEDDING = 256

DET_BLOCKS = 13  # of EfficientNet-Lite0: its first map of stride 32 is deep enough, the rest is most of its weights
DET_FROZEN = 3  # of these, blocks that stay as they were pretrained
DET_WIDTH = 64  # channels of the head
DET_STRIDE = 8  # pixels of the input for a cell of the detector's output
NMS = {"score_threshold": 0.025, "nms_threshold": 0.6, "nms_top_k": 1024, "keep_top_k": 100}  # every cell
REC_SIZE, DET_SIZE = 48, 256  # side of the inputs, pixels
