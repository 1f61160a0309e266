"""RandAugment and AutoAugment: policies of random operations on a picture.

Every operation takes and gives a uint8 picture and means what it means in torchvision, whose
definitions the field trains with: geometry by nearest neighbours on black, magnitudes from
torchvision's ranges. All of it is a TensorFlow graph, made for `tf.data.Dataset.map`, and a pure
function of its arguments.
"""

from __future__ import annotations

import collections.abc
import math
import typing

import numpy as np
import tensorflow as tf
from jaxtyping import Float, UInt8

# Luma of ITU-R BT.601, with torchvision's digits.
LUMA = (0.2989, 0.587, 0.114)

# AutoAugment's policy for ImageNet (Cubuk et al. 2019, table 9): 25 sub-policies, each of two
# operations as (name, probability, level of 0 … 9). Where an operation has no magnitude, the level
# that the search found is without effect and stands as None.
IMAGENET_POLICY: tuple[tuple[tuple[str, float, int | None], ...], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
    (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
    (("Color", 0.4, 0), ("Equalize", 0.6, None)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
)

RAND_AUGMENT_LEVELS = 31
AUTO_AUGMENT_LEVELS = 10


def rand_augment(
    image: UInt8[tf.Tensor, "h w 3"],
    seed: tf.Tensor,
    operations: int = 2,
    level: int = 9,
) -> UInt8[tf.Tensor, "h w 3"]:
    """RandAugment (Cubuk et al. 2020): operations drawn with equal chances, all at one level.

    The defaults are torchvision's: 2 of 14 operations (all but Invert), the same one twice where
    chance has it, at level 9 of 0 … 30. A magnitude that has a sign gets either, half the time.

    Args:
      image: uint8 [h, w, 3].
      seed: int64 [2], see `images.example_seed`.
      operations: how many follow each other, a Python int.
      level: 0 … 30, a Python int.

    Returns:
      uint8 [h, w, 3].
    """
    names = [name for name in OPERATIONS if name != "Invert"]
    magnitudes = tf.constant(magnitude_table(names, RAND_AUGMENT_LEVELS)[:, level])
    random = tf.random.stateless_uniform([operations, 2], seed, alg="philox")
    for i in range(operations):
        index = tf.cast(random[i, 0] * len(names), tf.int32)
        image = _apply_one_of(names, image, index, magnitudes[index], random[i, 1] < 0.5)
    return image


def auto_augment(image: UInt8[tf.Tensor, "h w 3"], seed: tf.Tensor) -> UInt8[tf.Tensor, "h w 3"]:
    """AutoAugment with the policy for ImageNet (Cubuk et al. 2019): one of 25 sub-policies.

    Each of its two operations is applied with its probability, its magnitude with either sign.

    Args:
      image: uint8 [h, w, 3].
      seed: int64 [2], see `images.example_seed`.

    Returns:
      uint8 [h, w, 3].
    """
    names = list(OPERATIONS)
    magnitudes = magnitude_table(names, AUTO_AUGMENT_LEVELS)
    indices = np.array([[names.index(name) for name, _, _ in pair] for pair in IMAGENET_POLICY])
    levels = np.array([[level or 0 for _, _, level in pair] for pair in IMAGENET_POLICY])
    chances = np.array([[chance for _, chance, _ in pair] for pair in IMAGENET_POLICY], np.float32)

    random = tf.random.stateless_uniform([5], seed, alg="philox")
    chosen = tf.cast(random[0] * len(IMAGENET_POLICY), tf.int32)
    pair = tf.constant(indices, tf.int32)[chosen]  # [2]
    magnitude = tf.constant(magnitudes[indices, levels])[chosen]  # [2]
    is_applied = random[1:3] < tf.constant(chances)[chosen]  # [2]
    index = tf.where(is_applied, pair, names.index("Identity"))
    for i in range(2):
        image = _apply_one_of(names, image, index[i], magnitude[i], random[3 + i] < 0.5)
    return image


def magnitude_table(
    names: collections.abc.Iterable[str], levels: int
) -> Float[np.ndarray, "operations levels"]:
    """Each operation's magnitude at each level, torchvision's ranges.

    Args:
      names: keys of OPERATIONS.
      levels: how many, the first the weakest.

    Returns:
      float32 [operations, levels].
    """
    shares = [level / (levels - 1) for level in range(levels)]
    table = [[OPERATIONS[name].magnitude(share) for share in shares] for name in names]
    return np.array(table, np.float32)


def apply_operation(
    name: str, image: UInt8[tf.Tensor, "h w 3"], magnitude: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """One operation at a given magnitude.

    Args:
      name: a key of OPERATIONS.
      image: uint8 [h, w, 3].
      magnitude: float32 scalar, its meaning see the operation; some ignore it.

    Returns:
      uint8 [h, w, 3].
    """
    return OPERATIONS[name].apply(image, tf.cast(magnitude, tf.float32))


def _apply_one_of(names, image, index, magnitude, is_negative):
    """The index-th of the named operations; only where it has a sign does `is_negative` count."""
    has_sign = tf.constant([OPERATIONS[name].has_sign for name in names])[index]
    magnitude = tf.where(has_sign & is_negative, -magnitude, magnitude)
    branches = [lambda name=name: apply_operation(name, image, magnitude) for name in names]
    result = tf.switch_case(index, branches)
    return tf.ensure_shape(result, image.shape)


def shear_x(
    image: UInt8[tf.Tensor, "h w 3"], tangent: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Row y, counted from the upper edge, moves left by tangent · y pixels."""
    return _by_nearest_neighbour(image, 1.0, tangent, 0.5 * tangent, 0.0, 1.0, 0.0)


def shear_y(
    image: UInt8[tf.Tensor, "h w 3"], tangent: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Column x, counted from the left edge, moves up by tangent · x pixels."""
    return _by_nearest_neighbour(image, 1.0, 0.0, 0.0, tangent, 1.0, 0.5 * tangent)


def translate_x(
    image: UInt8[tf.Tensor, "h w 3"], share: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Moves the picture right by this share of its width, in whole pixels."""
    pixels = tf.math.floor(tf.abs(share) * _sides(image)[1]) * tf.sign(share)
    return _by_nearest_neighbour(image, 1.0, 0.0, -pixels, 0.0, 1.0, 0.0)


def translate_y(
    image: UInt8[tf.Tensor, "h w 3"], share: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Moves the picture down by this share of its height, in whole pixels."""
    pixels = tf.math.floor(tf.abs(share) * _sides(image)[0]) * tf.sign(share)
    return _by_nearest_neighbour(image, 1.0, 0.0, 0.0, 0.0, 1.0, -pixels)


def rotate(
    image: UInt8[tf.Tensor, "h w 3"], degrees: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Turns the picture anticlockwise about its centre."""
    height, width = _sides(image)
    x, y = (width - 1) / 2, (height - 1) / 2
    radians = degrees * (math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    return _by_nearest_neighbour(
        image, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
    )


def brightness(
    image: UInt8[tf.Tensor, "h w 3"], change: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """The picture times 1 + change."""
    return _blend(image, 0.0, change)


def colour(
    image: UInt8[tf.Tensor, "h w 3"], change: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Away from (change > 0) or towards (< 0) the picture in grey."""
    return _blend(image, _grey(image), change)


def contrast(
    image: UInt8[tf.Tensor, "h w 3"], change: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Away from (change > 0) or towards (< 0) the picture's mean grey."""
    return _blend(image, tf.reduce_mean(_grey(image)), change)


def sharpness(
    image: UInt8[tf.Tensor, "h w 3"], change: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Away from (change > 0) or towards (< 0) a blurred picture; its outermost pixels stay."""
    kernel = np.ones([3, 3, 3, 1], np.float32) / 13
    kernel[1, 1] = 5 / 13
    pixels = tf.cast(image, tf.float32)[tf.newaxis]
    blurred = tf.round(tf.nn.depthwise_conv2d(pixels, kernel, [1, 1, 1, 1], "SAME")[0])
    height, width = _sides(image)
    y, x = tf.range(height)[:, tf.newaxis, tf.newaxis], tf.range(width)[:, tf.newaxis]
    is_inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return tf.where(is_inside, _blend(image, blurred, change), image)


def posterize(
    image: UInt8[tf.Tensor, "h w 3"], bits: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Keeps the upper `bits` of each 8."""
    lowest = tf.bitwise.left_shift(1, 8 - tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(256 - lowest, tf.uint8))


def solarize(
    image: UInt8[tf.Tensor, "h w 3"], threshold: float | tf.Tensor
) -> UInt8[tf.Tensor, "h w 3"]:
    """Inverts the values from the threshold on."""
    return tf.where(tf.cast(image, tf.float32) >= threshold, 255 - image, image)


def auto_contrast(
    image: UInt8[tf.Tensor, "h w 3"], _: float | tf.Tensor | None = None
) -> UInt8[tf.Tensor, "h w 3"]:
    """Stretches each channel to 0 … 255; one of a single value stays."""
    pixels = tf.cast(image, tf.float32)
    least = tf.reduce_min(pixels, axis=[0, 1])  # [3]
    greatest = tf.reduce_max(pixels, axis=[0, 1])  # [3]
    stretched = _to_uint8((pixels - least) * (255 / tf.maximum(greatest - least, 1)))
    return tf.where(greatest > least, stretched, image)


def equalize(
    image: UInt8[tf.Tensor, "h w 3"], _: float | tf.Tensor | None = None
) -> UInt8[tf.Tensor, "h w 3"]:
    """Makes the values of each channel about equally frequent, as Pillow does."""
    channel = tf.constant([0, 256, 512])
    flat = tf.cast(image, tf.int32) + channel  # [h, w, 3], each channel with bins of its own
    histogram = tf.math.bincount(flat, minlength=768, maxlength=768)
    histogram = tf.reshape(histogram, [3, 256])
    greatest = tf.cast(tf.reduce_max(image, axis=[0, 1]), tf.int32)  # [3]
    last = tf.gather(histogram, greatest, batch_dims=1)  # [3]
    step = ((tf.reduce_sum(histogram, axis=1) - last) // 255)[:, tf.newaxis]  # [3, 1]
    table = (tf.cumsum(histogram, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))  # [3, 256]
    return tf.gather(tf.cast(tf.reshape(table, [768]), tf.uint8), flat)


def invert(
    image: UInt8[tf.Tensor, "h w 3"], _: float | tf.Tensor | None = None
) -> UInt8[tf.Tensor, "h w 3"]:
    """The negative."""
    return 255 - image


def identity(
    image: UInt8[tf.Tensor, "h w 3"], _: float | tf.Tensor | None = None
) -> UInt8[tf.Tensor, "h w 3"]:
    """The picture."""
    return tf.identity(image)


class Operation(typing.NamedTuple):
    """An operation of the policies.

    Attributes:
      apply: function (image, magnitude) → image.
      magnitude: function of a level as a share of the highest, in [0, 1] → magnitude.
      has_sign: whether the magnitude is drawn with either sign.
    """

    apply: collections.abc.Callable[..., UInt8[tf.Tensor, "h w 3"]]
    magnitude: collections.abc.Callable[[float], float] = lambda share: 0.0
    has_sign: bool = False


# The ranges are torchvision's; for translations they are those of the first implementation, 150
# pixels of 331, as a share.
OPERATIONS: dict[str, Operation] = {
    "Identity": Operation(identity),
    "ShearX": Operation(shear_x, lambda share: 0.3 * share, True),
    "ShearY": Operation(shear_y, lambda share: 0.3 * share, True),
    "TranslateX": Operation(translate_x, lambda share: 150 / 331 * share, True),
    "TranslateY": Operation(translate_y, lambda share: 150 / 331 * share, True),
    "Rotate": Operation(rotate, lambda share: 30 * share, True),
    "Brightness": Operation(brightness, lambda share: 0.9 * share, True),
    "Color": Operation(colour, lambda share: 0.9 * share, True),
    "Contrast": Operation(contrast, lambda share: 0.9 * share, True),
    "Sharpness": Operation(sharpness, lambda share: 0.9 * share, True),
    "Posterize": Operation(posterize, lambda share: 8 - round(4 * share)),
    "Solarize": Operation(solarize, lambda share: 255 - 255 * share),
    "AutoContrast": Operation(auto_contrast),
    "Equalize": Operation(equalize),
    "Invert": Operation(invert),
}


def _by_nearest_neighbour(image, xx, xy, x, yx, yy, y):
    """Each pixel (column, row) from that nearest to (xx·column + xy·row + x, yx·… + yy·… + y)."""
    transform = tf.stack([tf.cast(number, tf.float32) for number in (xx, xy, x, yx, yy, y, 0, 0)])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _blend(image, other, change):
    """(1 + change) · image - change · other, cut to the range and, as in torchvision, rounded down.

    Args:
      image: uint8 [h, w, 3].
      other: float32, of a shape that broadcasts to the image's.
      change: above 0 to lead away from the other, -1 to arrive there.
    """
    return _to_uint8((1 + change) * tf.cast(image, tf.float32) - change * other)


def _to_uint8(pixels):
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


def _grey(image):
    """The picture in grey, float32 [h, w, 1] of whole numbers."""
    red, green, blue = tf.unstack(tf.cast(image, tf.float32), axis=-1)
    grey = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return tf.math.floor(grey)[..., tf.newaxis]


def _sides(image):
    """(height, width), float32 scalars."""
    sides = tf.cast(tf.shape(image), tf.float32)
    return sides[0], sides[1]
