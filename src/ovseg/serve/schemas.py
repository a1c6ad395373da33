"""Bodies of requests and responses, with PaddleX's names.

Where PaddleX's user guides and its release differ, requests may use either spelling and responses have both. What a
request has beyond these fields is ignored, as PaddleX does.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

ResultT = TypeVar("ResultT")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
IMAGE = "The image file as Base64, or its http(s) URL where the service fetches URLs."
VISUALIZE = "Whether `result.image` is wanted; null leaves it to the service, which gives it unless told otherwise."
POLYGONS = "Whether masks are wanted as polygons too."


class Request(BaseModel):
    """A body that is taken as it is: the string "1" is not a number."""

    model_config = ConfigDict(strict=True)


class Failure(BaseModel):
    """What every error has as its body."""

    logId: str = Field(description="UUID of the request.")  # noqa: N815
    errorCode: int = Field(description="The status code of the response.")  # noqa: N815
    errorMsg: str = Field(description="What is wrong, and what to do.")  # noqa: N815


class Healthy(Failure):
    """What health checks answer."""

    errorCode: Literal[0] = 0  # noqa: N815
    errorMsg: str = "Healthy"  # noqa: N815


class Success(BaseModel, Generic[ResultT]):
    """What every success has as its body."""

    logId: str = Field(description="UUID of the request.")  # noqa: N815
    errorCode: Literal[0] = 0  # noqa: N815
    errorMsg: Literal["Success"] = "Success"  # noqa: N815
    result: ResultT


class Mask(BaseModel):
    """A mask as COCO's run lengths; `pycocotools.mask.decode` takes it as it is."""

    rleResult: str = Field(description="The run lengths, under PaddleX's name.")  # noqa: N815
    counts: str = Field(description="The same, under the name that pycocotools wants.")
    size: tuple[int, int] = Field(description="Height and width of the mask.")
    offset: tuple[int, int] = Field(description="x and y, in the image, of the mask's top left corner.")
    polygons: list[list[float]] | None = Field(
        default=None, description="Outlines [x1, y1, x2, y2, ...] in pixels of the image, without holes, if asked for."
    )


# ---------------------------------------------------------------- open vocabulary segmentation

Row = list[Finite]


class PromptRequest(Request):
    """Segment what boxes or points show."""

    image: str = Field(description=IMAGE)
    prompt: list[Row] | list[list[Row]] = Field(
        description="Boxes [[x1, y1, x2, y2], ...] or points [[x, y], ...] in pixels of the image: a mask for each. "
        "Points may be in groups [[[x, y], ...], ...]: a mask for each group.",
        min_length=1,
        examples=[[[173, 18, 409, 309]]],
    )
    prompt_type: Literal["box", "point"] | None = Field(default=None, description="As in the user guide. Required.")
    promptType: Literal["box", "point"] | None = Field(  # noqa: N815
        default=None, description="The same, as in PaddleX's release. One of the two is required."
    )
    pointLabels: list[list[Literal[0, 1]]] | None = Field(  # noqa: N815
        default=None, description="For groups of points: 1 for a point of the object, 0 for one beside it."
    )
    visualize: bool | None = Field(default=None, description=VISUALIZE)
    polygons: bool = Field(default=False, description=POLYGONS)

    @model_validator(mode="after")
    def _one_type(self) -> PromptRequest:
        if self.prompt_type is None and self.promptType is None:
            raise ValueError('prompt_type is missing: give "box" or "point"')
        if None not in (self.prompt_type, self.promptType) and self.prompt_type != self.promptType:
            raise ValueError("prompt_type and promptType differ")
        return self

    @property
    def kind(self) -> Literal["box", "point"]:
        """The kind of prompt, under whichever name it was given."""
        return self.prompt_type or self.promptType or "box"


class MaskInfo(BaseModel):
    """The prompt of a mask."""

    label: Literal["box_prompt", "point_prompt"]
    prompt: Row | list[Row]
    point_labels: list[int] | None = None
    score: float | None = Field(
        default=None, description="IoU that the model expects the mask to have with the true one, where it tells."
    )


class PromptResult(BaseModel):
    """A mask for each prompt."""

    masks: list[Mask]
    mask_infos: list[MaskInfo] = Field(description="As in the user guide.")
    maskInfos: list[MaskInfo] = Field(description="The same, as in PaddleX's release.")  # noqa: N815
    image: str | None = Field(default=None, description="The image with the masks, a JPEG as Base64.")


# ---------------------------------------------------------------- instance segmentation


class InstanceRequest(Request):
    """Find the objects of the model's classes."""

    image: str = Field(description=IMAGE)
    threshold: Share | None = Field(default=None, description="Objects have a higher score; null is the model's own.")
    visualize: bool | None = Field(default=None, description=VISUALIZE)
    polygons: bool = Field(default=False, description=POLYGONS)


class Instance(BaseModel):
    """An object."""

    bbox: tuple[float, float, float, float] = Field(description="xmin, ymin, xmax, ymax in pixels of the image.")
    categoryId: int  # noqa: N815
    categoryName: str  # noqa: N815
    score: float
    mask: Mask = Field(description="The mask, cropped to the rounded box, as in PaddleX.")


class InstanceResult(BaseModel):
    """The objects of an image."""

    instances: list[Instance]
    image: str | None = Field(default=None, description="The image with the objects, a JPEG as Base64.")


# ---------------------------------------------------------------- image recognition

KEY = "The `indexKey` that building the index gave."
Id = Annotated[int, Field(ge=0, lt=2**63)]


class ImageLabelPair(Request):
    """A picture for an index."""

    image: str = Field(description=IMAGE)
    label: str = Field(min_length=1, max_length=1000)


class BuildRequest(Request):
    """Make an index of pictures."""

    imageLabelPairs: list[ImageLabelPair] = Field(min_length=1)  # noqa: N815


class AddRequest(BuildRequest):
    """Add pictures to an index."""

    indexKey: str = Field(description=KEY)  # noqa: N815


class RemoveRequest(Request):
    """Remove pictures from an index."""

    ids: list[Id] = Field(description="Ids of the pictures, from `idMap`.", min_length=1)
    indexKey: str = Field(description=KEY)  # noqa: N815


class RecognitionRequest(Request):
    """Find what an image shows in an index."""

    image: str = Field(description=IMAGE)
    indexKey: str | None = Field(default=None, description=f"{KEY} Null is the index of the configuration.")  # noqa: N815
    detThreshold: Share | None = None  # noqa: N815
    recThreshold: Finite | None = None  # noqa: N815
    hammingRadius: Finite | None = None  # noqa: N815
    topk: Annotated[int, Field(ge=1, le=1000)] | None = None
    visualize: bool | None = Field(default=None, description=VISUALIZE)


class IndexResult(BaseModel):
    """What an index holds."""

    idMap: dict[str, str] = Field(description="Label by id, as in the user guide.")  # noqa: N815
    imageCount: int = Field(description="Number of pictures, as in PaddleX's release.")  # noqa: N815


class BuildResult(IndexResult):
    """A new index."""

    indexKey: str = Field(description="Name of the index in other requests.")  # noqa: N815


class Recognised(BaseModel):
    """A label that an object may have."""

    label: str
    score: float


class DetectedObject(BaseModel):
    """An object of an image."""

    bbox: tuple[float, float, float, float] = Field(description="xmin, ymin, xmax, ymax in pixels of the image.")
    recResults: list[Recognised]  # noqa: N815
    score: float


class RecognitionResult(BaseModel):
    """The objects of an image."""

    detectedObjects: list[DetectedObject]  # noqa: N815
    image: str | None = Field(default=None, description="The image with the objects, a JPEG as Base64.")


# ---------------------------------------------------------------- what the page asks for


class Served(BaseModel):
    """A pipeline of the service."""

    name: str
    routes: list[str]
    labels: list[str] | None = Field(default=None, description="Class names, of instance segmentation.")


class Info(BaseModel):
    """What the service is and allows."""

    version: str
    pipelines: list[Served]
    samples: list[str] = Field(description="Images under /samples/ to try the pipelines on.")
    limits: dict[str, Any]
