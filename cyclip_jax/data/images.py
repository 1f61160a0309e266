"""From an encoded picture to uint8 pixels: decode, resize, crop, stateless augmentation.

Everything here is a TensorFlow graph function of one picture, made for `tf.data.Dataset.map`: for
usual formats no Python runs per image. Images stay uint8; normalisation happens on the device.

The yardstick is Pillow, with which the published models were trained: the tests bound the
distance between each function here and its Pillow counterpart.
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

# The accelerators belong to JAX; TensorFlow would otherwise reserve their memory.
tf.config.set_visible_devices([], "GPU")

# A flag in a WebP file's VP8X header (developers.google.com/speed/webp/docs/riff_container).
ANIMATION_FLAG = 0x02


def decode(encoded):
    """Decodes a JPEG, PNG, WebP, GIF or BMP file, of an animation the first frame.

    The format is found in the content. Grey becomes RGB and an alpha channel is dropped without
    blending, as Pillow's `convert("RGB")` does. JPEG (also CMYK and progressive), PNG and still
    WebP are decoded in the graph and come out equal to Pillow's, up to its own build of libjpeg,
    but for 16-bit PNG: it keeps the upper 8 bits, where Pillow clips grey ones to white. What is
    rare (GIF, BMP, animated WebP, whose frames TensorFlow 2.21 writes past their memory) is left
    to Pillow itself.

    Orientation tags are ignored, as in the reference.

    Args:
      encoded: the file's bytes, a scalar string tensor.

    Returns:
      uint8 [h, w, 3].

    Raises:
      tf.errors.InvalidArgumentError: the bytes are not a whole picture of a known format.
    """
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    image = tf.case(
        [
            (is_jpeg, lambda: _decode_jpeg(encoded)),
            (is_png, lambda: tf.io.decode_png(encoded, channels=3)),
            (_is_still_webp(encoded), lambda: tf.image.decode_webp(encoded)[0, :, :, :3]),
        ],
        default=lambda: _decode_by_pillow(encoded),
        exclusive=True,
    )
    return tf.ensure_shape(image, [None, None, 3])


def resize_and_centre_crop(image, size):
    """The reference preprocessing: bicubic resize of the shorter side, then the centre square.

    The longer side becomes int(size · long / short) and the crop starts at round((side - size)/2),
    as in torchvision. One ScaleAndTranslate computes only the pixels that the crop keeps; it gives
    the same values as `tf.image.resize` and a slice, in 0.86 of the time. Pillow rounds to 8 bits
    between its two passes, hence the remaining difference of about 0.15 grey levels.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result in pixels, a Python int.

    Returns:
      uint8 [size, size, 3].
    """
    height, width = _height_and_width(image)
    shorter = tf.minimum(height, width)
    resized = tf.stack([size * height // shorter, size * width // shorter])
    # tf.round rounds halves to even, as Python's round, and so torchvision, does.
    offset = tf.round(tf.cast(resized - size, tf.float32) / 2)
    scale = tf.cast(resized / tf.stack([height, width]), tf.float32)
    return _bicubic(image, size, scale, -offset)


def random_resized_crop(image, size, seed, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random part of the image, resized to a square: torchvision's RandomResizedCrop.

    Ten boxes are drawn and the first that fits is taken; if none fits, the largest centred box
    within `ratio`. Mind that boxes of nine tenths of the area and at most 4:3 never fit into a
    picture longer than 40:27, so that a photograph of 3:2 then always gives its centre. A pure
    function of its arguments.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result in pixels, a Python int.
      seed: int64 [2], see `example_seed`.
      scale: least and greatest share of the image's area.
      ratio: least and greatest width / height of the box.

    Returns:
      uint8 [size, size, 3].
    """
    top, left, height, width = _random_box(*_height_and_width(image), seed, scale, ratio)
    # Cut before resizing, so that, as in torchvision, no pixel from outside the box bleeds in.
    box = image[top : top + height, left : left + width]
    return _bicubic(box, size, tf.cast(size / tf.stack([height, width]), tf.float32), [0.0, 0.0])


def colour_jitter(image, seed, strength):
    """Brightness, contrast, saturation and hue moved at random, in this order.

    A pure function of its arguments.

    Args:
      image: uint8 [h, w, 3].
      seed: int64 [2], see `example_seed`.
      strength: in [0, 1): brightness moves by up to ± this share of the whole range, contrast and
        saturation by a factor in 1 ± this, hue by up to ± a quarter of this of the colour circle.

    Returns:
      uint8 [h, w, 3].
    """
    seeds = tf.random.split(seed, 4, alg="philox")
    low, high = 1 - strength, 1 + strength
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.stateless_random_brightness(image, strength, seeds[0])
    image = tf.image.stateless_random_contrast(image, low, high, seeds[1])
    image = tf.clip_by_value(image, 0, 1)  # the two that follow want colours
    image = tf.image.stateless_random_saturation(image, low, high, seeds[2])
    image = tf.image.stateless_random_hue(image, strength / 4, seeds[3])
    return tf.image.convert_image_dtype(image, tf.uint8, saturate=True)


def example_seed(seed, epoch, index):
    """The seed of everything random about one example in one epoch.

    It depends on nothing else, so neither the batch size, nor the number of processes, nor a
    resumption changes what an example looks like.

    Args:
      seed, epoch, index: whole numbers, Python ints or int64 scalars.

    Returns:
      int64 [2], for `tf.random.stateless_*`.
    """
    pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.stateless_fold_in(pair, tf.cast(index, tf.int64), alg="philox")


def _decode_jpeg(encoded):
    # The default, fast DCT is 0.6 grey levels away from Pillow; the accurate one costs no more.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _is_still_webp(encoded):
    # A file header and that of the first chunk, VP8X if there may be an animation.
    header = tf.strings.substr(tf.strings.join([encoded, bytes(21)]), 0, 21)
    is_webp = (tf.strings.substr(header, 0, 4) == b"RIFF") & (
        tf.strings.substr(header, 8, 4) == b"WEBP"
    )
    is_extended = tf.strings.substr(header, 12, 4) == b"VP8X"
    flags = tf.io.decode_raw(tf.strings.substr(header, 20, 1), tf.uint8)[0]
    is_animated = is_extended & (tf.bitwise.bitwise_and(flags, ANIMATION_FLAG) > 0)
    return is_webp & ~is_animated


def _decode_by_pillow(encoded):
    def decode_first_frame(content):
        content = np.asarray(content, object).item()  # bytes in a graph, an array outside
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return np.asarray(picture.convert("RGB")), np.array(True)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return np.zeros((0, 0, 3), np.uint8), np.array(False)

    image, is_picture = tf.numpy_function(decode_first_frame, [encoded], [tf.uint8, tf.bool])
    check = tf.debugging.assert_equal(is_picture, True, "this is no picture of a known format")
    with tf.control_dependencies([check]):
        return tf.identity(image)


def _height_and_width(image):
    shape = tf.shape(image, tf.int64)
    return shape[0], shape[1]


def _bicubic(image, size, scale, translation):
    """Antialiased cubic convolution (a = -0.5, Pillow's BICUBIC), rounded to uint8.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result.
      scale, translation: float32 [2], vertical and horizontal, in
        output position = scale · input position + translation.

    Returns:
      uint8 [size, size, 3].
    """
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=[size, size],
        scale=scale,
        translation=translation,
        kernel_type="keyscubic",
        antialias=True,
    )[0]
    # The cubic kernel overshoots at edges, and what a cast makes of 256 depends on the processor.
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)


def _random_box(image_height, image_width, seed, scale, ratio):
    """(top, left, height, width) of `random_resized_crop`'s box, int64 scalars."""
    attempts = 10
    random = tf.random.stateless_uniform([4, attempts], seed, alg="philox")
    area = tf.cast(image_height * image_width, tf.float32)
    area *= scale[0] + (scale[1] - scale[0]) * random[0]
    log_ratio = tf.math.log(ratio)
    aspect = tf.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * random[1])
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int64)
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int64)
    fits = (widths > 0) & (widths <= image_width) & (heights > 0) & (heights <= image_height)

    def first_that_fits():
        i = tf.argmax(fits)
        height, width = heights[i], widths[i]
        # random < 1, so that every offset from 0 to the last possible one is equally likely.
        top = tf.cast(random[2, i] * tf.cast(image_height - height + 1, tf.float32), tf.int64)
        left = tf.cast(random[3, i] * tf.cast(image_width - width + 1, tf.float32), tf.int64)
        return top, left, height, width

    def largest_centred():
        height = _within(image_height, image_width, 1 / ratio[0])
        width = _within(image_width, image_height, ratio[1])
        return (image_height - height) // 2, (image_width - width) // 2, height, width

    return tf.cond(tf.reduce_any(fits), first_that_fits, largest_centred)


def _within(side, other_side, greatest_ratio):
    """`side`, cut to at most `greatest_ratio` · `other_side`, and to at least one pixel."""
    limit = tf.cast(tf.round(tf.cast(other_side, tf.float32) * greatest_ratio), tf.int64)
    return tf.maximum(tf.minimum(side, limit), 1)
