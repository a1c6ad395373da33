"""MaskSeg-tiny: the small model of instance segmentation that ovseg trains and ships, on EfficientNet-Lite0."""

from __future__ import annotations

from ovseg_export.builders.configs import COCO_LABELS

SIZE = 288  # side of the input, pixels
STRIDES = (16, 32)  # of the cells that answer for objects
WIDTH = 96  # channels of the pyramid
TOWER = 2  # convolutions before each output
BINS = 16  # a distance is the mean of a distribution over so many cells
PROTOTYPES, PROTOTYPE_WIDTH, MASK_STRIDE = 32, 64, 4
NMS = {"score_threshold": 0.01, "nms_threshold": 0.6, "nms_top_k": 300, "keep_top_k": 100}

# COCO's name to the names of the emoji that show it, as `drawing` writes them. Where sets name a picture differently
# (FxEmoji has names of its own), every name stands here. What shows a thing with something else is left out.
DRAWINGS: dict[str, tuple[str, ...]] = {
    "bicycle": ("bicycle",),
    "car": ("automobile", "sport utility vehicle", "taxi", "police car", "oncoming automobile", "oncoming taxi",
            "oncoming police car", "racing car", "racecar", "recreational vehicle"),
    "motorcycle": ("motorcycle", "motor scooter"),
    "airplane": ("airplane", "small airplane"),
    "bus": ("bus", "oncoming bus", "trolleybus"),
    "train": ("locomotive", "steam locomotive", "train", "high speed train", "high speed train bullet nose",
              "bullet train", "railway car", "light rail", "tram", "tram car", "metro", "monorail"),
    "truck": ("delivery truck", "articulated lorry", "fire engine", "pickup truck"),
    "boat": ("sailboat", "speedboat", "motor boat", "ship", "canoe", "ferry", "passenger ship"),
    "traffic light": ("horizontal traffic light", "vertical traffic light"),
    "bird": ("bird", "eagle", "duck", "dove", "dove of peace", "owl", "parrot", "flamingo", "swan", "peacock",
             "rooster", "goose", "penguin", "chicken", "baby chick", "front facing baby chick", "black bird",
             "front facing chick", "hatching chick"),
    "cat": ("cat", "cat face", "black cat", "catside"),
    "dog": ("dog", "dog face", "poodle", "guide dog", "service dog", "dogside"),
    "horse": ("horse", "horse face"),
    "sheep": ("ewe", "ram", "sheep"),
    "cow": ("cow", "cow face", "ox"),
    "elephant": ("elephant",),
    "bear": ("bear", "polar bear", "bear face"),
    "zebra": ("zebra",),
    "giraffe": ("giraffe",),
    "backpack": ("backpack", "school backpack", "school satchel"),
    "umbrella": ("umbrella", "umbrella with rain drops", "umbrella on ground", "closed umbrella"),
    "handbag": ("handbag",),
    "suitcase": ("luggage",),
    "frisbee": ("flying disc",),
    "sports ball": ("soccer ball", "basketball", "american football", "baseball", "softball", "tennis ball",
                    "volleyball", "rugby football"),
    "kite": ("kite",),
    "skateboard": ("skateboard",),
    "bottle": ("bottle with popping cork", "baby bottle", "lotion bottle"),
    "wine glass": ("wine glass", "red wine glass", "white wine glass"),
    "cup": ("teacup without handle", "hot beverage", "cup with straw"),
    "knife": ("kitchen knife", "hocho"),
    "spoon": ("spoon",),
    "bowl": ("bowl with spoon", "steaming bowl", "green salad", "cooked rice"),
    "banana": ("banana",),
    "apple": ("red apple", "green apple"),
    "sandwich": ("sandwich", "hamburger"),
    "orange": ("tangerine",),
    "broccoli": ("broccoli",),
    "carrot": ("carrot",),
    "hot dog": ("hot dog",),
    "pizza": ("pizza", "slice of pizza"),
    "donut": ("doughnut",),
    "cake": ("birthday cake", "shortcake", "cupcake"),
    "chair": ("chair",),
    "couch": ("couch and lamp",),
    "potted plant": ("potted plant",),
    "bed": ("bed",),
    "toilet": ("toilet",),
    "tv": ("television",),
    "laptop": ("laptop",),
    "mouse": ("computer mouse", "one button mouse", "two button mouse", "three button mouse"),
    "book": ("closed book", "green book", "blue book", "orange book", "notebook", "notebook with decorative cover",
             "open book", "ledger", "notebook decorative cover"),
    "clock": ("alarm clock", "mantelpiece clock", "mantlepiece clock", "one oclock", "two oclock", "three oclock",
              "four oclock", "five oclock", "six oclock", "seven oclock", "eight oclock", "nine oclock",
              "ten oclock", "eleven oclock", "twelve oclock", "one thirty", "three thirty", "five thirty",
              "seven thirty", "ten thirty", "clock oclock", "clock thirty"),
    "vase": ("amphora",),
    "scissors": ("scissors", "black scissors"),
    "teddy bear": ("teddy bear",),
    "toothbrush": ("toothbrush",),
}  # fmt: skip
LABELS = tuple(label for label in COCO_LABELS if label in DRAWINGS)
