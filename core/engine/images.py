"""Images in rows: PNG or JPEG, as bytes or in base64, decoded within bounds."""

import base64
import io
import warnings
from typing import Any

from PIL import Image, ImageOps

from core.engine.data import Row
from core.errors import InvalidDataError

FORMATS = ("PNG", "JPEG")

MOST_PIXELS = 50_000_000
"""A few bytes can stand for any number of equal pixels."""


def image_bytes(row: Row, column: str) -> bytes:
    """The file in a column; it can be decoded.

    Raises:
        InvalidDataError: no such column, or no image in it; the message names the row.
    """
    try:
        data = file_in(row.get(column))
    except ValueError as error:
        raise row.error(f"column {column!r} holds text that is no base64.") from error
    if data is None:
        raise row.lacks(column, "a PNG or JPEG image, as bytes or in base64")
    try:
        decode(data)
    except InvalidDataError as error:
        raise row.error(f"column {column!r}: {error.message}") from error
    return data


def file_in(value: Any) -> bytes | None:
    """The file that a row holds: base64 text, bytes, or `{"bytes": …}` as datasets writes it; None if it is none.

    Raises:
        ValueError: it is text that is no base64.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    return value if isinstance(value, bytes) else None


def decode(data: bytes) -> Image.Image:
    """An image in RGB, upright: cameras store it as they were held, and say how.

    Raises:
        InvalidDataError: it is broken, of another format, or has more than `MOST_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Reads no more than the header.
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise InvalidDataError(f"the image has {image.width} by {image.height} pixels, more than {MOST_PIXELS}.")
        return _upright(image).convert("RGB")
    except (InvalidDataError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InvalidDataError(f"the image has more than {MOST_PIXELS} pixels.") from error
    except Exception as error:  # decoders raise whatever their input leads them to
        raise InvalidDataError("the image cannot be read: it is damaged, or neither PNG nor JPEG.") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; as it is stored where these cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever a spoilt block makes of the parser
        return image
