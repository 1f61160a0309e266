"""From a file's bytes to pixels: JPEG, PNG and WebP in the graph, other formats by Pillow.

Nearly everything here is a TensorFlow graph function of one picture. The yardstick is Pillow, with
which the published models were trained.
"""

from __future__ import annotations

import functools
import io
import re

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8
from PIL import Image

from cyclip_jax.data.pillow import as_rgb, open_picture
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.transform import MAX_PIXELS

# A flag in a WebP file's VP8X header (developers.google.com/speed/webp/docs/riff_container).
ANIMATION_FLAG = 0x02
# As long as the header of a WebP file that tells its size, the longest read here.
HEADER_BYTES = 30

# A pixel's colour is interpolated from its neighbours', of which a part's edge has none.
CHROMA_MARGIN = 2

_ASSERTION = re.compile(r"assertion failed: \[(.*)\]", re.DOTALL)
_DAMAGED = re.compile(r"(?:Invalid|Failed to decode) (JPEG|PNG|WebP)\b")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # differs from run to run


def decode(encoded: tf.Tensor | bytes, max_pixels: int = MAX_PIXELS) -> UInt8[tf.Tensor, "h w 3"]:
    """Decodes a picture of any format that Pillow reads; an animation gives its first frame.

    The format is found in the content. Grey becomes RGB and an alpha channel is dropped without
    blending, as Pillow's `convert("RGB")` does. JPEG (also CMYK and progressive), PNG and still
    WebP are decoded in the graph. The pixels are equal to Pillow's, up to its own build of libjpeg,
    except for values of more than 8 bits, see `as_rgb`. Rarer formats are left to Pillow itself:
    GIF, BMP, TIFF, PPM and others, and animated WebP, whose frames TensorFlow 2.21 writes past
    their memory.

    Orientation tags are ignored, as in the reference. The size is read from the file's header
    before anything is decoded.

    Args:
      encoded: the file's bytes, or a scalar string tensor of them.
      max_pixels: pictures of more pixels are refused, a Python int.

    Returns:
      uint8 [h, w, 3].

    Raises:
      tf.errors.InvalidArgumentError: the bytes are not a whole picture of a known format, or one of
        more than max_pixels.
    """
    header = _header(encoded)
    is_png = tf.strings.substr(header, 0, 4) == b"\x89PNG"
    is_webp = (tf.strings.substr(header, 0, 4) == b"RIFF") & (
        tf.strings.substr(header, 8, 4) == b"WEBP"
    )

    def decode_webp():
        checked = _refuse_larger(encoded, *_webp_sides(header), max_pixels)
        return tf.cond(
            _is_animated(header),
            lambda: _decode_by_pillow(checked, max_pixels),
            lambda: tf.image.decode_webp(checked)[0, :, :, :3],
        )

    def decode_png():
        checked = _refuse_larger(encoded, *_png_sides(header), max_pixels)
        return tf.io.decode_png(checked, channels=3)

    image = tf.case(
        [
            (is_jpeg(encoded), lambda: decode_jpeg(jpeg_and_sides(encoded, max_pixels)[0])),
            (is_png, decode_png),
            (is_webp, decode_webp),
        ],
        default=lambda: _decode_by_pillow(encoded, max_pixels),
        exclusive=True,
    )
    return tf.ensure_shape(image, [None, None, 3])


def pixels_of(encoded: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """A picture's pixels as training sees them, uint8 [h, w, 3], before any resizing.

    Whoever checks, crops or stores a picture asks here, so that all see the same.

    Args:
      encoded: the file's bytes.
      max_pixels: pictures of more pixels are refused.

    Raises:
      Unreadable: the bytes are not a whole picture, or one of more than max_pixels.
    """
    try:
        return _graph(max_pixels)(tf.constant(encoded)).numpy()
    except tf.errors.OpError as error:
        raise unreadable(error) from error


@functools.cache
def _graph(max_pixels):
    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(
        lambda encoded: decode(encoded, max_pixels), input_signature=signature, autograph=False
    )


def unreadable(error: tf.errors.OpError) -> Unreadable:
    """What is wrong with a picture in plain words, from what its decoding in a graph raised."""
    # The last line says it, between the names that TensorFlow gave the operation.
    lines = error.message.split("\n\t [[")[0].split(" [Op:")[0].strip().splitlines() or [""]
    detail = lines[-1].split("}}")[-1].strip()
    if assertion := _ASSERTION.fullmatch(detail):
        detail = assertion[1]
    elif damaged := _DAMAGED.match(detail):
        detail = f"the {damaged[1]} is damaged or cut short"
    is_large = "data.max_pixels" in detail
    return Unreadable(
        "the image is too large" if is_large else "the image cannot be decoded", detail
    )


def is_jpeg(encoded: tf.Tensor | bytes) -> tf.Tensor:
    """Whether a file's bytes begin as those of a JPEG do, a bool scalar."""
    return tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"


def has_its_end(jpeg: tf.Tensor | bytes) -> tf.Tensor:
    """Whether the last bytes are JPEG's mark of the end, a bool scalar.

    Some whole files have more bytes after that mark.
    """
    return tf.strings.substr(jpeg, -2, 2) == b"\xff\xd9"


def jpeg_and_sides(
    encoded: tf.Tensor | bytes, max_pixels: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(the bytes, height, width) of a JPEG; running it fails where the picture is too large."""
    shape = tf.io.extract_jpeg_shape(encoded, tf.int64)
    return _refuse_larger(encoded, shape[0], shape[1], max_pixels), shape[0], shape[1]


def decode_jpeg(encoded: tf.Tensor | bytes, ratio: int = 1) -> UInt8[tf.Tensor, "h w 3"]:
    """Decodes a JPEG, with its sides divided by `ratio`, 1, 2, 4 or 8."""
    # The default, fast DCT is 0.6 grey levels away from Pillow; the accurate one costs no more.
    return tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def decode_reduced_jpeg(
    encoded: tf.Tensor | bytes, halvings: tf.Tensor
) -> tuple[UInt8[tf.Tensor, "h w 3"], tf.Tensor]:
    """Decodes a JPEG with halved sides, which costs libjpeg less than the whole picture.

    Args:
      encoded: the file's bytes.
      halvings: how often the sides are halved, int32, 1 … 3.

    Returns:
      uint8 [⌈h / ratio⌉, ⌈w / ratio⌉, 3] and the ratio, int64.
    """
    ratios = (2, 4, 8)
    decoders = [lambda ratio=ratio: decode_jpeg(encoded, ratio) for ratio in ratios]
    image = tf.switch_case(halvings - 1, decoders)
    return image, tf.constant(ratios, tf.int64)[halvings - 1]


def decode_part_of_jpeg(
    encoded: tf.Tensor | bytes,
    height: tf.Tensor,
    width: tf.Tensor,
    box: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
) -> UInt8[tf.Tensor, "box_height box_width 3"]:
    """A box of the picture that `decode_jpeg` gives, equal to it in every bit.

    Args:
      encoded: the file's bytes.
      height, width: the sides of the whole picture, int64 scalars.
      box: (top, left, height, width), int64 scalars.
    """
    top, left, box_height, box_width = box
    above, before = tf.minimum(top, CHROMA_MARGIN), tf.minimum(left, CHROMA_MARGIN)
    bottom = tf.minimum(top + box_height + CHROMA_MARGIN, height)
    right = tf.minimum(left + box_width + CHROMA_MARGIN, width)
    first_row, first_column = top - above, left - before
    window = tf.stack([first_row, first_column, bottom - first_row, right - first_column])
    image = tf.io.decode_and_crop_jpeg(
        encoded, tf.cast(window, tf.int32), channels=3, dct_method="INTEGER_ACCURATE"
    )
    return image[above : above + box_height, before : before + box_width]


def _header(encoded):
    """The first bytes, as many as HEADER_BYTES; zeros where the file is shorter."""
    first = tf.strings.substr(encoded, 0, HEADER_BYTES)
    return tf.strings.substr(tf.strings.join([first, bytes(HEADER_BYTES)]), 0, HEADER_BYTES)


def _is_animated(webp_header):
    is_extended = tf.strings.substr(webp_header, 12, 4) == b"VP8X"
    flags = tf.io.decode_raw(tf.strings.substr(webp_header, 20, 1), tf.uint8)[0]
    return is_extended & (tf.bitwise.bitwise_and(flags, ANIMATION_FLAG) > 0)


def _png_sides(header):
    """(height, width) from the first chunk, IHDR: four bytes each, the greatest first."""
    sides = tf.io.decode_raw(tf.strings.substr(header, 16, 8), tf.int32, little_endian=False)
    sides = tf.cast(sides, tf.int64)
    return sides[1], sides[0]


def _webp_sides(header: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(height, width) from the first chunk (developers.google.com/speed/webp/docs)."""
    kind = tf.strings.substr(header, 12, 4)

    def number(first, count):
        content = tf.io.decode_raw(tf.strings.substr(header, first, count), tf.uint8)
        return tf.reduce_sum(tf.cast(content, tf.int64) * [256**i for i in range(count)])

    def extended():  # 24 bits each, less one
        return number(27, 3) + 1, number(24, 3) + 1

    def lower_14_bits(bits):
        return tf.math.floormod(bits, 2**14)

    def lossless():  # 14 bits each, less one
        bits = number(21, 4)
        return lower_14_bits(bits // 2**14) + 1, lower_14_bits(bits) + 1

    def lossy():  # 14 bits each; the other two of 16 ask for an enlargement and count for nothing
        return lower_14_bits(number(28, 2)), lower_14_bits(number(26, 2))

    return tf.case([(kind == b"VP8X", extended), (kind == b"VP8L", lossless)], default=lossy)


def _refuse_larger(encoded, height, width, max_pixels):
    """The same bytes, which are so not decoded before their size is known to be allowed."""
    message = tf.strings.join(
        [
            tf.strings.as_string(width),
            " × ",
            tf.strings.as_string(height),
            f" pixels, more than data.max_pixels = {max_pixels}",
        ]
    )
    # Division, because a product of two sides of a PNG may be more than 63 bits hold.
    is_allowed = height <= max_pixels // tf.maximum(width, 1)
    return _with_assertion(encoded, is_allowed, message)


def _with_assertion(value, condition, message):
    """`value`, or an InvalidArgumentError with the message, a scalar string tensor."""
    # tf.debugging.Assert would write the message in bytes where no graph is built.
    check = tf.raw_ops.Assert(condition=condition, data=[message])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(value)


def _decode_by_pillow(encoded, max_pixels):
    def decode_first_frame(content):
        content = np.asarray(content, object).item()  # bytes in a graph, an array outside
        try:
            with open_picture(io.BytesIO(content), max_pixels) as picture:
                width, height = picture.size
                if width * height <= max_pixels:
                    return np.asarray(as_rgb(picture)), b""
                problem = f"{width} × {height} pixels, more than data.max_pixels = {max_pixels}"
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            problem = f"more pixels than data.max_pixels = {max_pixels}"
        except Image.UnidentifiedImageError:
            problem = "no picture of a known format"
        except Exception as error:  # Pillow's decoders raise whatever they stumble upon
            problem = f"the file is damaged: {_ADDRESS.sub('', str(error))}"
        return np.zeros((0, 0, 3), np.uint8), problem.encode()

    image, problem = tf.numpy_function(decode_first_frame, [encoded], [tf.uint8, tf.string])
    return _with_assertion(image, problem == b"", problem)
