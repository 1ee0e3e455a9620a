"""What the endpoint sends, as data: validated, and documented in OpenAPI."""

from pydantic import BaseModel, ConfigDict, Field

Rate = float | tuple[float, ...]


class Reason(BaseModel):
    """Why there is no answer."""

    status: int = Field(description="HTTP status of this reason", examples=[422])
    code: str = Field(description="one word, for programs", examples=["damaged"])
    message: str = Field(description="for people", examples=["damaged or truncated (image file is truncated)"])


class Refused(BaseModel):
    """A request that is not answered."""

    error: Reason


class ImageAnswer(BaseModel):
    """The answer to one image: classes and probabilities, best first; or the reason for none.

    Also an image of none of the classes has them: they are what it resembles most.
    """

    name: str = Field(description="as the client called it", examples=["leaf.jpg"])
    classes: list[str] = Field(default=[], examples=[["cultivar 12", "cultivar 3"]])
    probabilities: list[float] = Field(default=[], description="0 … 1", examples=[[0.91, 0.04]])
    unfamiliarity: float | None = Field(
        default=None,
        description="distance from the known classes, beyond 1 for an image of none of them; null where the model was "
        "not calibrated at the keep rate",
        examples=[0.42],
    )
    none_of_these: bool | None = Field(default=None, description="whether unfamiliarity is beyond 1", examples=[False])
    error: Reason | None = None


class Answer(BaseModel):
    """The answers to the images of a request, in their order."""

    model: str = Field(examples=["leaves"])
    keep_rate: Rate = Field(description="share of tokens kept at each location", examples=[0.5])
    results: list[ImageAnswer]
    together: ImageAnswer | None = Field(
        default=None, description="one answer for all images that could be read, where the request asks for it"
    )


class ModelAnswer(BaseModel):
    """One model of the endpoint."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    classes: list[str]
    image_size: int = Field(description="side of what the model sees, in pixels")
    backbone: str
    reduction: str
    keep_rate: Rate = Field(description="where a request names none")
    keep_rate_range: tuple[float, float] | None = Field(
        description="what a request may name, above the first and up to the second; null where it may not"
    )
    gmacs: float = Field(description="10⁹ multiply-accumulate operations an image, of the method, at its keep rate")
    computed_gmacs: float = Field(description="what is computed of it")
    gmacs_of: str = Field(description="which images it is the cost of: every image, or of ATS a mean, or noise")
    params: int


class Limits(BaseModel):
    """What a request may hold."""

    files: int
    file_bytes: int
    request_bytes: int
    pixels: int
    queue: int


class Models(BaseModel):
    """What is served."""

    models: list[ModelAnswer]
    limits: Limits


class Health(BaseModel):
    """Whether the process lives, and whether it takes requests."""

    live: bool
    ready: bool
