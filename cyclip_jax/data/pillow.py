"""Pictures that Pillow opens, as training sees them."""

import io
import threading
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

# Guards Pillow's own limit of pixels, a variable of its module.
_limit = threading.Lock()

# Pillow knows these by their first bytes, and reads none of them by itself.
_NEVER_READ = ("EPS", "MPEG")
# Values of 32 bits do not tell which of them is white: it is the first of these that none exceeds.
_WHITES = {"I": (255, 65_535), "F": (1, 255, 65_535)}


def stored_format(encoded: bytes) -> str | None:
    """The feature for a file that shards hold as it is, by its first bytes; None for others."""
    if encoded[:3] == b"\xff\xd8\xff":
        return "jpg"
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    return None


def open_picture(file: BinaryIO, max_pixels: int) -> Image.Image:
    """A picture whose header has been read, with our limit of pixels in place of Pillow's."""
    with _limit:
        pillows_own = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_own


def is_picture(file: BinaryIO, max_pixels: int) -> bool:
    """Whether a file begins as a picture does that `decode` reads; no more of it is read."""
    start = file.read(16)
    file.seek(0)
    if stored_format(start):
        return True
    try:
        with open_picture(file, max_pixels) as picture:
            is_stub = isinstance(picture, ImageFile.StubImageFile)
            return not is_stub and picture.format not in _NEVER_READ
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # of more pixels than are allowed, which is said where it is decoded
    except Exception:  # Pillow's readers raise whatever they stumble upon
        return False


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB of 8 bits, with its alpha channel dropped without blending.

    Of 16 bits the upper 8 are kept, as of a PNG; Pillow's own `convert("RGB")` clips all of more
    than 255 to white. Integers of 32 bits, and floats, do not tell which value is white: it is 1
    (of floats), 255 or 65,535, the least that no value exceeds.

    Raises:
      ValueError: its values exceed all of these, or some are no numbers.
    """
    mode = picture.mode
    # Pillow widens the 16 bits of a PGM, and older versions those of a PNG.
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        picture = _upper_bits(np.asarray(picture))
    elif mode in _WHITES:
        values = np.asarray(picture)
        white = _white(values, _WHITES[mode])
        if white == 1:
            picture = Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))
        elif white == 65_535:
            picture = _upper_bits(values)
    return picture.convert("RGB")


def _upper_bits(values):
    return Image.fromarray((values.clip(0, 65_535) // 256).astype(np.uint8))


def _white(values, whites):
    greatest = values.max()
    if not np.isfinite(values).all():
        raise ValueError("some of its values are no numbers")
    for white in whites:
        if round(255 * float(greatest) / white) <= 255:  # as resizing may overshoot a little
            return white
    raise ValueError(f"its values go up to {greatest:g}, more than 16 bits hold")


def small_jpeg(pixels: UInt8[np.ndarray, "h w 3"], side: int, *, quality: int = 85) -> bytes:
    """The JPEG file of a picture, made to have at most `side` pixels in width and height."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return encoded_as(picture, "JPEG", quality=quality)


def encoded_as(picture: Image.Image, file_format: str, **options: int) -> bytes:
    """The bytes of a picture's file in a format of Pillow, with these of its options."""
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()
