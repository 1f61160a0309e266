"""From an encoded picture to uint8 pixels: decode, resize, crop, stateless augmentation.

Everything here is a TensorFlow graph function of one picture, made for `tf.data.Dataset.map`: for
usual formats no Python runs per image. Images stay uint8; normalisation happens on the device.
`transform` is all of it in one call; the functions below it are its parts.

The yardstick is Pillow, with which the published models were trained: the tests bound the
distance between each function here and its Pillow counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

from cyclip_jax.data import augment
from cyclip_jax.data.decoding import (
    decode,
    decode_jpeg,
    decode_part_of_jpeg,
    decode_reduced_jpeg,
    has_its_end,
    is_jpeg,
    jpeg_and_sides,
)
from cyclip_jax.data.transform import PLAIN, POLICIES, Transform

# The accelerators belong to JAX; TensorFlow would otherwise reserve their memory.
tf.config.set_visible_devices([], "GPU")

# What is added to an example's seed for each stream of random numbers; the crop has the seed as
# it is.
JITTER_STREAM, FLIP_STREAM, POLICY_STREAM = 1, 2, 3
# The same for all streams of a second view, so that they are other than those of the first. What it
# is added to are 128 random bits, so that further streams may have any number.
SECOND_VIEW = 1 << 32
# The same for negative images.
NEGATIVE = 1 << 33

CROP_RATIO = (3 / 4, 4 / 3)
# Decoding only a part of a JPEG has a price: of a whole picture it costs 1.2 times the usual, of a
# half 0.9, of a quarter 0.7.
PART_THAT_PAYS = 0.5


def transform(
    encoded: tf.Tensor | bytes,
    seed: tf.Tensor | None = None,
    *,
    size: int,
    settings: Transform = PLAIN,
) -> UInt8[tf.Tensor, "size size 3"]:
    """From a file's bytes to the square of pixels that a model sees.

    In this order: decode, crop and resize, flip, policy, colour jitter. Each draws from a stream of
    its own, so that switching one on leaves the others as they were. A pure function of its
    arguments.

    With `decoder="exact"` the pixels are those of `decode` and `resize_and_centre_crop` or
    `random_resized_crop`, whatever part of a JPEG has been decoded for them.

    `decoder="fast"` decodes a JPEG at a half, a quarter or an eighth of its sides where its crop
    then still has `size` pixels, which saves most of the work on large photographs. The pixels of
    such pictures differ from Pillow's by up to 2.5 grey levels on average, and by up to 30 at the
    99.9th percentile: edges are a little softer. All other pictures are equal to the exact ones.

    The exact decoder was measured on one core, with images of 224 pixels. It has 1.4 to 1.9 times
    the rate of Pillow for photographs of 500 × 375 pixels, 1.6 times for 640 × 480 and 2.1 times
    for 1280 × 960. The fast decoder has the same rate for the first, 2.2 and 4.2 times for the
    others. For crops that mostly keep less than half of a small photograph, the exact one is no
    slower, as it decodes only that part.

    Args:
      encoded: the file's bytes, a scalar string tensor; for the formats see `decode`.
      seed: int64 [2] (see `example_seed`); it is needed where anything is random.
      size: side of the result in pixels, a Python int.
      settings: what happens to the picture.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ValueError: something is random and there is no seed. This is raised at once.
      tf.errors.InvalidArgumentError: the bytes are not a whole picture of a known format, or the
        picture has too many pixels. This is raised while the graph runs.
    """
    if settings.is_random and seed is None:
        raise ValueError(
            "an image that is random needs a seed; pass example_seed(seed, epoch, index)"
        )
    return _augmented(_square(encoded, seed, size, settings), seed, settings)


def two_views(
    encoded: tf.Tensor | bytes,
    seed: tf.Tensor,
    *,
    size: int,
    settings: Transform,
    second: Transform,
) -> tuple[UInt8[tf.Tensor, "size size 3"], UInt8[tf.Tensor, "size size 3"]]:
    """`transform` of a picture with two settings, the second with random numbers of its own.

    Without random crops the picture is decoded once.

    Args:
      encoded, seed, size, settings: as of `transform`.
      second: what happens to the picture for its second view. Its decoder and its crop are those of
        `settings`.

    Returns:
      (first, second), each uint8 [size, size, 3]. The first is that of `transform`, bit for bit.
    """
    square = _square(encoded, seed, size, settings)
    second_seed = seed + SECOND_VIEW
    second_square = square
    if settings.augmentation != "none":
        second_square = _square(encoded, second_seed, size, second)
    return (
        _augmented(square, seed, settings),
        _augmented(second_square, second_seed, second),
    )


def _square(encoded, seed, size, settings):
    """The picture, cropped and resized, uint8 [size, size, 3]."""
    square = _fast_square if settings.decoder == "fast" else _exact_square
    return square(encoded, seed, size, settings)


def _augmented(image, seed, settings):
    """The square with what is random about it besides its crop; without a seed nothing is."""
    if seed is None:
        return image
    if settings.horizontal_flip:
        image = _flip_half_the_time(image, seed + FLIP_STREAM)
    policy = POLICIES[settings.policy]
    if policy is not None:
        image = getattr(augment, policy)(image, seed + POLICY_STREAM)
    if settings.colour_jitter:
        image = colour_jitter(image, seed + JITTER_STREAM, settings.colour_jitter)
    return image


def resize_and_centre_crop(
    image: UInt8[tf.Tensor, "h w 3"] | np.ndarray, size: int
) -> UInt8[tf.Tensor, "size size 3"]:
    """The reference preprocessing: bicubic resize of the shorter side, then the centre square.

    The longer side becomes int(size · long / short) and the crop starts at round((side - size)/2),
    as in torchvision. Only the pixels that the crop keeps are computed; their values are those of
    `tf.image.resize` and a slice. Pillow rounds to 8 bits between its two passes, hence the
    remaining difference of about 0.15 grey levels.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result in pixels, a Python int.

    Returns:
      uint8 [size, size, 3].
    """
    return _bicubic(image, size, *_centre_placement(*height_and_width(image), size))


def squash(
    image: UInt8[tf.Tensor, "h w 3"] | np.ndarray, size: int
) -> UInt8[tf.Tensor, "size size 3"]:
    """A bicubic resize of both sides, as SigLIP's models have it.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result in pixels, a Python int.

    Returns:
      uint8 [size, size, 3].
    """
    return _bicubic(image, size, *_squash_placement(*height_and_width(image), size))


# How a picture becomes a square without a random crop.
RESIZES = {"shortest": resize_and_centre_crop, "squash": squash}


def random_resized_crop(
    image: UInt8[tf.Tensor | np.ndarray, "h w 3"],
    size: int,
    seed: tf.Tensor,
    scale: Sequence[float] = (0.9, 1.0),
    ratio: Sequence[float] = CROP_RATIO,
) -> UInt8[tf.Tensor, "size size 3"]:
    """A random part of the image, resized to a square: torchvision's RandomResizedCrop.

    Ten boxes are drawn, and the first that fits is taken. If none fits, the largest centred box
    within `ratio` is taken. Boxes of nine tenths of the area and at most 4:3 never fit into a
    picture longer than 40:27, so that a photograph of 3:2 then always gives its centre. This is a
    pure function of its arguments.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result in pixels, a Python int.
      seed: int64 [2], see `example_seed`.
      scale: least and greatest share of the image's area.
      ratio: least and greatest width / height of the box.

    Returns:
      uint8 [size, size, 3].
    """
    box = random_box(*height_and_width(image), seed, scale, ratio)
    # Cut beforehand, so that no pixel from outside bleeds in, as in torchvision.
    return squash(_cut(image, *box), size)


def colour_jitter(
    image: UInt8[tf.Tensor, "h w 3"], seed: tf.Tensor, strength: float
) -> UInt8[tf.Tensor, "h w 3"]:
    """Changes brightness, contrast, saturation and hue at random, in this order.

    This is a pure function of its arguments.

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


def example_seed(
    seed: int | tf.Tensor, epoch: int | tf.Tensor, index: int | tf.Tensor
) -> tf.Tensor:
    """The seed of everything random about one example in one epoch.

    It depends on nothing else. So an example looks the same for any batch size, for any number of
    processes, and after a run was resumed.

    Args:
      seed: the seed of the run.
      epoch: which pass over the data this is.
      index: the example's number. All three are Python ints or int64 scalars.

    Returns:
      int64 [2], for `tf.random.stateless_*`.
    """
    pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    # The stubs of TensorFlow lack tf.random.experimental.
    fold_in = tf.random.experimental.stateless_fold_in  # pyright: ignore[reportAttributeAccessIssue]
    return fold_in(pair, tf.cast(index, tf.int64), alg="philox")


def _exact_square(encoded, seed, size, settings):
    """`decode` and the crop, uint8 [size, size, 3]."""
    if settings.augmentation == "none":
        return RESIZES[settings.resize_mode](decode(encoded, settings.max_pixels), size)

    def from_whole():
        return random_resized_crop(
            decode(encoded, settings.max_pixels), size, seed, settings.crop_scale
        )

    def from_jpeg():
        checked, height, width = jpeg_and_sides(encoded, settings.max_pixels)
        box = random_box(height, width, seed, settings.crop_scale, CROP_RATIO)
        is_small = box[2] * box[3] / (height * width) <= PART_THAT_PAYS
        image = tf.cond(
            # Of a file that breaks off a part may still be whole; it is to be refused all the same.
            is_small & has_its_end(checked),
            lambda: decode_part_of_jpeg(checked, height, width, box),
            lambda: _cut(decode_jpeg(checked), *box),
        )
        return squash(image, size)

    if settings.crop_scale[0] > PART_THAT_PAYS:
        return from_whole()
    return tf.cond(is_jpeg(encoded), from_jpeg, from_whole)


def _fast_square(encoded, seed, size, settings):
    """`_exact_square`, but from a JPEG decoded at 1/2, 1/4 or 1/8 where that has enough pixels."""

    def place(height, width):
        """The box that is resized, its corner and sides, and the resize, as of `_bicubic`."""
        if settings.augmentation == "none":
            whole = tf.zeros([2], tf.int64), tf.stack([height, width])
            return *whole, *_PLACEMENTS[settings.resize_mode](height, width, size)
        box = tf.stack(random_box(height, width, seed, settings.crop_scale, CROP_RATIO))
        return box[:2], box[2:], *_squash_placement(box[2], box[3], size)

    def possible_halvings():
        _, height, width = jpeg_and_sides(encoded, settings.max_pixels)
        _, _, scale, _ = place(height, width)
        return tf.reduce_sum(tf.cast(tf.reduce_max(scale) <= [1 / 2, 1 / 4, 1 / 8], tf.int32))

    halvings = tf.cond(is_jpeg(encoded), possible_halvings, lambda: 0)

    def from_reduced_jpeg():
        checked, height, width = jpeg_and_sides(encoded, settings.max_pixels)
        corner, sides, scale, translation = place(height, width)
        image, ratio = decode_reduced_jpeg(checked, halvings)
        # Only whole pixels can be cut off: the box begins within the first of those left.
        begin, end = corner // ratio, -(-(corner + sides) // ratio)
        image = image[begin[0] : end[0], begin[1] : end[1]]
        translation += scale * tf.cast(begin * ratio - corner, tf.float32)
        return _bicubic(image, size, scale * tf.cast(ratio, tf.float32), translation)

    return tf.cond(
        halvings > 0,
        from_reduced_jpeg,
        lambda: _exact_square(encoded, seed, size, settings),
    )


def _flip_half_the_time(image, seed):
    is_flipped = tf.random.stateless_uniform([], seed, alg="philox") < 0.5
    return tf.cond(is_flipped, lambda: tf.reverse(image, [1]), lambda: image)


def height_and_width(image: tf.Tensor | np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """The sides of a picture [h, w, 3], int64 scalars."""
    shape = tf.shape(image, tf.int64)
    return shape[0], shape[1]


def _cut(image, top, left, height, width):
    return image[top : top + height, left : left + width]


def _centre_placement(height, width, size):
    """Where `resize_and_centre_crop` puts each pixel: scale and translation as of `_bicubic`."""
    shorter = tf.minimum(height, width)
    resized = tf.stack([size * height // shorter, size * width // shorter])
    # tf.round rounds halves to even, as Python's round, and so torchvision, does.
    offset = tf.round(tf.cast(resized - size, tf.float32) / 2)
    return tf.cast(resized / tf.stack([height, width]), tf.float32), -offset


def _squash_placement(height, width, size):
    """The same of `squash`."""
    return tf.cast(size / tf.stack([height, width]), tf.float32), tf.zeros([2])


_PLACEMENTS = {"shortest": _centre_placement, "squash": _squash_placement}


def _bicubic(image, size, scale, translation):
    """Antialiased cubic convolution (a = -0.5, Pillow's BICUBIC), rounded to uint8.

    The same, to the last bit, as one ScaleAndTranslate of the image, which spends most of its time
    on the horizontal pass, pixel by pixel: with columns turned into rows, whole rows are added up
    at once, in half the time and the transpositions included.

    Args:
      image: uint8 [h, w, 3].
      size: side of the result.
      scale, translation: float32 [2], vertical and horizontal, in
        output position = scale · input position + translation.

    Returns:
      uint8 [size, size, 3].
    """
    height, width = height_and_width(image)
    rows = tf.reshape(image, [height, width * 3])
    rows = _bicubic_rows(rows, size, scale[0], translation[0])  # [size, w · 3]
    columns = tf.transpose(tf.reshape(rows, [size, width, 3]), [1, 0, 2])  # [w, size, 3]
    columns = tf.reshape(columns, [width, size * 3])
    columns = _bicubic_rows(columns, size, scale[1], translation[1])  # [size, size · 3]
    # The cubic kernel overshoots at edges, and what a cast makes of 256 depends on the processor.
    columns = tf.cast(tf.clip_by_value(tf.round(columns), 0.0, 255.0), tf.uint8)
    return tf.transpose(tf.reshape(columns, [size, size, 3]), [1, 0, 2])


def _bicubic_rows(rows, size, scale, translation):
    """The rows of [h, n], resized to float32 [size, n]."""
    return tf.raw_ops.ScaleAndTranslate(
        images=rows[tf.newaxis, :, tf.newaxis],  # a picture one pixel wide, of n channels
        size=[size, 1],
        scale=tf.stack([scale, 1.0]),
        translation=tf.stack([translation, 0.0]),
        kernel_type="keyscubic",
        antialias=True,
    )[0, :, 0]


def random_box(
    image_height: tf.Tensor,
    image_width: tf.Tensor,
    seed: tf.Tensor,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
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
