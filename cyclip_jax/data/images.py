"""From an encoded picture to uint8 pixels: decode, resize, crop, stateless augmentation.

Everything here is a TensorFlow graph function of one picture, made for `tf.data.Dataset.map`: no
Python runs per image. Images stay uint8; normalisation happens on the device.

The yardstick is Pillow, with which the published models were trained: the tests bound the
distance between each function here and its Pillow counterpart.
"""

import tensorflow as tf

# The accelerators belong to JAX; TensorFlow would otherwise reserve their memory.
tf.config.set_visible_devices([], "GPU")

# Of the flags in a WebP file's VP8X header (developers.google.com/speed/webp/docs/riff_container).
ANIMATION_FLAG = 0x02
ALPHA_FLAG = 0x10
BYTES_WITH_ALPHA_FLAG = [bytes([flags | ALPHA_FLAG]) for flags in range(256)]


def decode(encoded):
    """Decodes a JPEG, PNG, GIF (first frame), WebP (first frame) or BMP file.

    The format is found in the content. Grey becomes RGB and an alpha channel is dropped without
    blending, as Pillow's `convert("RGB")` does. Against Pillow:

    - JPEG (also CMYK and progressive), PNG up to 8 bits, WebP, opaque GIF, and BMP of 8 bits or
      more a pixel come out equal, up to Pillow's own build of libjpeg;
    - transparent pixels of a GIF are black here, and of the palette's colour in Pillow;
    - 16-bit PNG keeps the upper 8 bits; Pillow clips grey ones to 255, which leaves them white;
    - BMP of 1 or 4 bits a pixel is refused.

    Orientation tags are ignored, as in the reference.

    Args:
      encoded: the file's bytes, a scalar string tensor.

    Returns:
      uint8 [h, w, 3].

    Raises:
      tf.errors.InvalidArgumentError: the bytes are not a whole picture of a known format.
    """
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    is_bmp = tf.strings.substr(encoded, 0, 2) == b"BM"
    after_size = tf.minimum(8, tf.strings.length(encoded))
    is_webp = (tf.strings.substr(encoded, 0, 4) == b"RIFF") & (
        tf.strings.substr(encoded, after_size, 4) == b"WEBP"
    )
    image = tf.case(
        [
            (is_jpeg, lambda: _decode_jpeg(encoded)),
            (is_webp, lambda: _decode_webp(encoded)),
            (is_bmp, lambda: _decode_bmp(encoded)),
        ],
        default=lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
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


def _decode_webp(encoded):
    """uint8 [h, w, 3], of an animation the first frame.

    TensorFlow 2.21 writes four channels of every animation's frames, into memory for three where
    the header announces no alpha channel: the process dies of it. So the header is made to announce
    one.
    """
    flags = tf.io.decode_raw(tf.strings.substr(encoded, 20, 1), tf.uint8)[0]
    is_extended = tf.strings.substr(encoded, 12, 4) == b"VP8X"
    is_animated = is_extended & (tf.bitwise.bitwise_and(flags, ANIMATION_FLAG) > 0)
    with_alpha_flag = tf.strings.join(
        [
            tf.strings.substr(encoded, 0, 20),
            tf.gather(BYTES_WITH_ALPHA_FLAG, tf.cast(flags, tf.int32)),
            tf.strings.substr(encoded, 21, tf.strings.length(encoded)),
        ]
    )
    frames = tf.image.decode_webp(tf.where(is_animated, with_alpha_flag, encoded))
    return frames[0, :, :, :3]  # of [frames, h, w, 3 or 4]


def _decode_bmp(encoded):
    """uint8 [h, w, 3]. TensorFlow gives a palette picture's indices; their colours come from here.

    Header fields: Microsoft, BITMAPINFOHEADER (little-endian, after a file header of 14 bytes).
    """
    pixels = tf.io.decode_bmp(encoded)  # [h, w, 1, 3 or 4]

    def look_up():
        header_size = _int32_at(encoded, 14)
        compression = _int32_at(encoded, 30)
        colours_used = _int32_at(encoded, 46)
        tf.debugging.assert_equal(compression, 0, "a compressed BMP cannot be decoded")
        colours = tf.where(colours_used == 0, 256, colours_used)
        palette = tf.strings.substr(encoded, 14 + header_size, 4 * colours)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [-1, 4])  # blue, green, red, 0
        return tf.gather(palette[:, 2::-1], tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(tf.shape(pixels)[-1] == 1, look_up, lambda: pixels[..., :3])


def _int32_at(encoded, start):
    return tf.io.decode_raw(tf.strings.substr(encoded, start, 4), tf.int32, little_endian=True)[0]


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
