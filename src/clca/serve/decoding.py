"""From the bytes that a client sent to the tensor that the model takes; by what they are, whatever they are called."""

from PIL import Image
from torch import Tensor

from clca.data.decoding import Decoders
from clca.data.image_formats import Code, UnreadableImage
from clca.data.transforms import Transform, apply_transform
from clca.errors import ClcaError
from clca.serve.errors import Refusal

_STATUS: dict[Code, int] = {
    "not_an_image": 415, "too_many_pixels": 413, "too_long": 413, "too_narrow": 422, "damaged": 422, "too_slow": 422,
    "busy": 429,
}  # fmt: skip


def decode(data: bytes, transform: Transform, decoders: Decoders) -> Tensor:
    """Decode an image and apply the transform.

    Args:
        data: The image file.
        transform: RGB image → tensor.
        decoders: Where it is decoded.

    Raises:
        Refusal: As `decode_image`.
    """
    try:
        return apply_transform(transform, lambda resize: decoders.image(data, resize)[0])
    except ClcaError as error:
        raise _refusal(error) from None


def decode_image(data: bytes, decoders: Decoders) -> Image.Image:
    """Decode one image as `clca.data.images.read_image` does, in another process.

    Args:
        data: The image file.
        decoders: Where it is decoded.

    Raises:
        Refusal: 415 where this is no image of a format that is read, 413 where it is too large, 422 where it is
            damaged, a mere line, or takes too long, 429 where it takes long and others do as well.
    """
    try:
        return decoders.image(data)[0]
    except ClcaError as error:
        raise _refusal(error) from None


def _refusal(error: ClcaError) -> Refusal:
    code: Code = error.code if isinstance(error, UnreadableImage) else "damaged"
    return Refusal(_STATUS[code], code, str(error), {"Retry-After": "5"} if code == "busy" else None)
