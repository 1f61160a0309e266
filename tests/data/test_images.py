"""Decoding, resizing and cropping, against Pillow."""

import dataclasses
import functools
import io
import struct
import zlib

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

from cyclip_jax.data import augment, images
from cyclip_jax.data.transform import AUGMENTATIONS, DECODERS, MAX_PIXELS, Transform
from cyclip_jax.errors import UserError

PICTURES = {
    "astronaut": skimage.data.astronaut(),
    "coffee": skimage.data.coffee(),
    "chelsea": skimage.data.chelsea(),
    "rocket": skimage.data.rocket(),
}

# With a signature: a constant picture would be decoded while TensorFlow simplifies the graph.
decode = tf.function(images.decode, input_signature=[tf.TensorSpec([], tf.string)])


SMALL_CROP = {"augmentation": "random_resized_crop", "crop_scale": (0.05, 0.3)}
SEED = images.example_seed(5, 0, 7)


def transform_graph(size=16, **options):
    """Encoded bytes, and a seed if need be, → uint8 [size, size, 3]."""
    return _transform_graph(size, tuple(options.items()))


@functools.cache
def _transform_graph(size, options):
    return tf.function(
        lambda encoded, seed=SEED: images.transform(
            encoded, seed, size=size, settings=Transform(**dict(options))
        ),
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64)],
        autograph=False,  # which is not needed and half of the time
    )


def encode(image, file_format, **options):
    """The bytes of a file; `image` is a Pillow image or uint8 [h, w, 3]."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


def pillow_decode(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def small_picture(mode):
    """A picture of odd sides, 61 x 45 pixels; its alpha channel, if it has one, is a ramp."""
    picture = Image.fromarray(PICTURES["chelsea"]).resize((61, 45))
    if mode not in ("RGBA", "LA"):
        return picture.convert(mode)
    ramp = Image.fromarray(np.arange(45 * 61).reshape(45, 61).astype(np.uint8))
    picture = picture.convert(mode)
    picture.putalpha(ramp)
    return picture


def cases():
    for mode in ("RGB", "L", "CMYK"):
        yield f"jpeg {mode}", encode(small_picture(mode), "JPEG", quality=90)
    for subsampling in (0, 1):
        jpeg = encode(small_picture("RGB"), "JPEG", subsampling=subsampling)
        yield f"jpeg subsampling {subsampling}", jpeg
    yield "jpeg progressive", encode(small_picture("RGB"), "JPEG", progressive=True)
    for mode in ("RGB", "L", "1", "P", "RGBA", "LA"):
        yield f"png {mode}", encode(small_picture(mode), "PNG")
    translucent = bytes(range(256))
    yield "png P tRNS", encode(small_picture("P"), "PNG", transparency=translucent)
    yield "png L tRNS", encode(small_picture("L"), "PNG", transparency=100)
    for mode in ("RGB", "RGBA"):
        yield f"webp {mode}", encode(small_picture(mode), "WEBP")
        yield f"webp lossless {mode}", encode(small_picture(mode), "WEBP", lossless=True)
    for file_format in ("WEBP", "GIF"):
        second = small_picture("RGB").rotate(180)
        animation = encode(small_picture("RGB"), file_format, save_all=True, append_images=[second])
        yield f"{file_format.lower()} animation", animation
    for mode in ("RGB", "L", "P"):
        yield f"gif {mode}", encode(small_picture(mode), "GIF")
    for mode in ("RGB", "L", "P", "RGBA"):
        yield f"bmp {mode}", encode(small_picture(mode), "BMP")
    picture = small_picture("P")
    commonest = int(np.bincount(np.asarray(picture).ravel()).argmax())
    yield "gif transparent", encode(picture, "GIF", transparency=commonest)
    yield "bmp 1", encode(small_picture("1"), "BMP")


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("encoded", [pytest.param(encoded, id=name) for name, encoded in cases()])
def test_decoding_equals_pillow(encoded):
    image = decode(encoded).numpy()

    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pillow_decode(encoded))


def test_sixteen_bits_keep_the_upper_eight():
    grey = np.arange(45 * 61, dtype=np.uint16).reshape(45, 61) * 23
    image = decode(encode(Image.fromarray(grey), "PNG")).numpy()

    np.testing.assert_array_equal(image, np.repeat((grey >> 8)[..., None], 3, axis=-1))


def test_the_accurate_dct_is_what_makes_jpeg_equal_pillow():
    encoded = encode(PICTURES["coffee"], "JPEG", quality=90)
    fast = tf.io.decode_jpeg(encoded, channels=3).numpy()

    assert np.abs(fast.astype(int) - pillow_decode(encoded)).mean() > 0.1
    assert np.abs(decode(encoded).numpy().astype(int) - pillow_decode(encoded)).mean() < 0.01


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"BM", id="two bytes of BMP"),
        pytest.param(b"RIFF", id="four bytes of WebP"),
        pytest.param(b"<html>404 not found</html>", id="a web page"),
        pytest.param(encode(small_picture("RGB"), "JPEG")[:-200], id="half a JPEG"),
        pytest.param(encode(small_picture("RGB"), "PNG")[:-200], id="half a PNG"),
        pytest.param(encode(small_picture("RGB"), "PNG")[:20], id="half a header of PNG"),
        pytest.param(b"\xff\xd8\xff", id="three bytes of JPEG"),
        pytest.param(encode(small_picture("RGB"), "WEBP")[:-200], id="half a WebP"),
        pytest.param(encode(small_picture("P"), "BMP")[:-200], id="half a BMP"),
    ],
)
def test_what_is_no_whole_picture_is_refused(encoded):
    for refuse in (decode, transform_graph(decoder="fast"), transform_graph(**SMALL_CROP)):
        with pytest.raises(tf.errors.InvalidArgumentError):
            refuse(encoded)


def png_chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def black_png(width, height):
    """A whole PNG of one bit per pixel: 400 megapixels are 50 kilobytes."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 1)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def with_sides(encoded, width, height):
    """The same file but for its header, which claims other sides."""
    content = bytearray(encoded)
    if encoded[:3] == b"GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif encoded[:2] == b"BM":
        content[18:26] = struct.pack("<ii", width, height)
    elif encoded[:2] == b"\xff\xd8":
        start = encoded.index(b"\xff\xc0") + 5  # the frame's header: length, bits, height, width
        content[start : start + 4] = struct.pack(">HH", height, width)
    elif encoded[12:16] == b"VP8 ":
        content[26:30] = struct.pack("<HH", width, height)
    elif encoded[12:16] == b"VP8L":
        alpha_and_version = content[24] & 0xF0
        content[21:25] = struct.pack("<I", (height - 1) << 14 | (width - 1))
        content[24] |= alpha_and_version
    elif encoded[12:16] == b"VP8X":
        content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


def animation(file_format):
    return encode(
        small_picture("RGB"),
        file_format,
        save_all=True,
        append_images=[small_picture("RGB").rotate(180)],
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("encoded", "sides"),
    [
        pytest.param(encoded, sides, id=name)
        for name, encoded, sides in (
            ("PNG", black_png(20_000, 20_000), (20_000, 20_000)),
            ("JPEG", encode(small_picture("RGB"), "JPEG"), (20_000, 20_000)),
            ("GIF", animation("GIF"), (12_000, 9_000)),
            ("BMP", encode(small_picture("RGB"), "BMP"), (20_000, 30_000)),
            ("lossy WebP", encode(small_picture("RGB"), "WEBP"), (16_000, 15_000)),
            (
                "lossless WebP",
                encode(small_picture("RGB"), "WEBP", lossless=True),
                (16_384, 16_383),
            ),
            ("animated WebP", animation("WEBP"), (16_384, 16_383)),
        )
    ],
)
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(encoded, sides):
    width, height = sides
    encoded = with_sides(encoded, width, height)
    refusals = []
    for refuse in (decode, transform_graph(decoder="fast"), images.decode):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            refuse(encoded)
        refusals.append(str(caught.value))
    expected = f"{width} × {height} pixels, more than data.max_pixels = 100000000"
    if width * height > 2 * MAX_PIXELS and encoded[:2] == b"BM":
        expected = "more pixels than data.max_pixels = 100000000"  # Pillow names no size
    assert all(expected in refusal for refusal in refusals), refusals


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "encoded",
    [
        *(encode(small_picture("RGB"), name) for name in ("JPEG", "PNG", "WEBP", "BMP")),
        encode(small_picture("RGB"), "WEBP", lossless=True),
        encode(small_picture("RGBA"), "WEBP", lossless=True),
        animation("WEBP"),
        animation("GIF"),
    ],
    ids=["JPEG", "PNG", "WebP", "BMP", "lossless WebP", "alpha WebP", "animated WebP", "GIF"],
)
def test_the_limit_of_pixels_is_one_of_exactly_so_many(encoded):
    pixels = 61 * 45

    assert images.decode(encoded, max_pixels=pixels).shape == (45, 61, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="61 × 45 pixels, more than"):
        images.decode(encoded, max_pixels=pixels - 1)


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_counts_for_nothing_and_stays_what_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 45 // 3)

    assert decode(encode(small_picture("RGB"), "BMP")).shape == (45, 61, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(b"<html>404 not found</html>")
    assert Image.MAX_IMAGE_PIXELS == 61 * 45 // 3


def pillow_resize_and_crop(image, size):
    """The reference: torchvision's Resize and CenterCrop, by Pillow. uint8 [size, size, 3]."""
    height, width = image.shape[:2]
    if height <= width:
        height, width = size, int(size * width / height)
    else:
        height, width = int(size * height / width), size
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@functools.cache
def preprocess(size):
    """Encoded bytes → uint8 [size, size, 3]."""
    return tf.function(
        lambda encoded: images.resize_and_centre_crop(images.decode(encoded), size),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


def mean_and_tail(image, expected):
    """Mean and 99.9th percentile of the absolute difference, in grey levels."""
    difference = np.abs(image.astype(int) - expected)
    return difference.mean(), np.percentile(difference, 99.9)


def shapes_of(picture):
    """The picture, lying and standing, and a part of it, odd and smaller than most sizes."""
    return {
        "as it is": picture,
        "transposed": picture.transpose(1, 0, 2),
        "odd": picture[:211, 33:340],
        "small": picture[100:197, 60:125],
    }


@pytest.mark.parametrize("size", [97, 224, 299])
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_preprocessing_is_pillows_to_a_quarter_of_a_grey_level(name, file_format, size):
    for shape, picture in shapes_of(PICTURES[name]).items():
        encoded = encode(np.ascontiguousarray(picture), file_format)
        image = preprocess(size)(encoded).numpy()
        expected = pillow_resize_and_crop(pillow_decode(encoded), size)
        mean, tail = mean_and_tail(image, expected)

        assert image.dtype == np.uint8 and image.shape == (size, size, 3)
        assert mean <= 0.25 and tail <= 2, (shape, mean, tail)


@pytest.mark.parametrize("name", PICTURES)
def test_bilinear_would_not_pass_for_pillows_bicubic(name):
    picture = PICTURES[name]
    height, width = 224 * np.array(picture.shape[:2]) // min(picture.shape[:2])
    bilinear = tf.image.resize(picture, [height, width], "bilinear", antialias=True)
    top, left = (height - 224 + 1) // 2, (width - 224 + 1) // 2
    bilinear = np.rint(bilinear.numpy())[top : top + 224, left : left + 224]
    mean, tail = mean_and_tail(bilinear, pillow_resize_and_crop(picture, 224))

    assert mean > 0.25 and tail > 2


@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (400, 3), (224, 224), (225, 224)])
def test_any_shape_fills_the_square(sides):
    height, width = sides
    picture = np.asarray(Image.fromarray(PICTURES["coffee"]).resize((width, height)))
    image = images.resize_and_centre_crop(tf.constant(picture), 224).numpy()

    mean, tail = mean_and_tail(image, pillow_resize_and_crop(picture, 224))
    assert mean <= 0.25 and tail <= 2


@pytest.mark.parametrize("size", range(7, 12))
def test_the_overshoot_of_the_kernel_is_clipped_and_not_wrapped(size):
    """Beside a white stripe on black the cubic kernel falls below 0, on it above 255.

    Several odd sizes, because processors cast whole vectors otherwise than what is left over.
    """
    picture = np.zeros([5, 5, 3], np.uint8)
    picture[:, 2:4] = 255
    image = images.resize_and_centre_crop(tf.constant(picture), size).numpy()

    difference = image.astype(int) - pillow_resize_and_crop(picture, size)
    assert np.abs(difference).max() <= 2


@tf.function
def box(height, width, seed, scale, ratio):
    return tf.stack(images.random_box(height, width, seed, scale, ratio))


def boxes(height, width, count, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    """(top, left, height, width) for `count` seeds, int64 [count, 4]."""
    height, width = tf.constant(height, tf.int64), tf.constant(width, tf.int64)
    seeds = [images.example_seed(0, 0, index) for index in range(count)]
    return np.array([box(height, width, seed, scale, ratio) for seed in seeds])


def test_a_crop_is_the_same_for_the_same_seed_and_another_for_another():
    image = tf.constant(PICTURES["astronaut"])
    crop = tf.function(lambda seed: images.random_resized_crop(image, 32, seed))
    crops = [crop(images.example_seed(0, 0, index)).numpy() for index in (1, 1, 2)]

    assert crops[0].shape == (32, 32, 3) and crops[0].dtype == np.uint8
    np.testing.assert_array_equal(crops[0], crops[1])
    assert np.any(crops[0] != crops[2])


def pillow_random_crop(picture, size, seed, scale):
    """The box of `random_resized_crop`, cut and resized by Pillow. uint8 [size, size, 3]."""
    sides = images.height_and_width(picture)
    top, left, height, width = box(*sides, seed, scale, (3 / 4, 4 / 3)).numpy()
    cut = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))


def test_a_crop_is_its_box_resized_by_pillow():
    picture = PICTURES["rocket"]
    seed = images.example_seed(1, 2, 3)
    image = images.random_resized_crop(tf.constant(picture), 97, seed, (0.3, 0.6)).numpy()

    mean, tail = mean_and_tail(image, pillow_random_crop(picture, 97, seed, (0.3, 0.6)))
    assert mean <= 0.25 and tail <= 2


def test_boxes_keep_to_the_asked_shares_and_shapes_and_reach_everywhere():
    top, left, height, width = boxes(100, 120, 300, scale=(0.2, 0.6)).T
    share, aspect = height * width / (100 * 120), width / height

    assert np.all((top >= 0) & (left >= 0) & (top + height <= 100) & (left + width <= 120))
    # Whole pixels round a box of about 60 x 60 by up to 2%.
    assert share.min() >= 0.2 * 0.98 and share.max() <= 0.6 * 1.02
    assert share.min() < 0.25 and share.max() > 0.55
    assert aspect.min() >= 0.75 * 0.97 and aspect.max() <= 4 / 3 * 1.03
    assert aspect.min() < 0.8 and aspect.max() > 1.25
    assert np.any(top == 0) and np.any(top + height == 100)
    # Area and place are drawn apart from each other.
    assert abs(np.corrcoef(share, top / (100 - height + 1))[0, 1]) < 0.2


def test_where_no_box_fits_the_largest_centred_one_is_taken():
    wide = boxes(50, 200, 3)
    tall = boxes(200, 50, 3)
    photograph = boxes(400, 600, 20)  # even at 3:2 nine tenths of the area never fit

    np.testing.assert_array_equal(wide, [[0, 66, 50, 67]] * 3)
    np.testing.assert_array_equal(tall, [[66, 0, 67, 50]] * 3)
    np.testing.assert_array_equal(photograph, [[0, 33, 400, 533]] * 20)


def test_example_seeds_differ_in_each_of_their_three_parts():
    parts = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (-1, 0, 0)]
    seeds = {tuple(images.example_seed(*part).numpy().tolist()) for part in parts}

    assert len(seeds) == len(parts)
    assert images.example_seed(3, 1, 4).dtype == tf.int64


def test_example_seeds_stay_what_they_were():
    """A change here would change what a resumed run sees."""
    assert images.example_seed(3, 1, 4).numpy().tolist() == [-6676658365508583353, 4]


def test_colour_jitter_is_a_pure_function_of_its_seed_and_bounded():
    picture = np.full((8, 8, 3), (180, 90, 40), np.uint8)

    def jitter(index, strength):
        return images.colour_jitter(picture, images.example_seed(0, 0, index), strength).numpy()

    np.testing.assert_array_equal(jitter(1, 0.2), jitter(1, 0.2))
    changes = np.array([np.abs(jitter(i, 0.2).astype(int) - picture).mean() for i in range(20)])
    small = np.array([np.abs(jitter(i, 0.02).astype(int) - picture).mean() for i in range(20)])
    assert changes.min() > 1 and len(set(changes)) == 20
    assert small.max() < 10 < changes.max()
    assert jitter(1, 0.2).dtype == np.uint8 and jitter(1, 0.2).shape == (8, 8, 3)
    assert np.ptp(jitter(1, 0.2), axis=(0, 1)).max() == 0  # the same change everywhere


@pytest.mark.parametrize("crop_scale", [(0.05, 0.3), (0.3, 0.8)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_crop_fused_with_decoding_has_the_pixels_of_one_after_the_other(subsampling, crop_scale):
    """Fully so: the margin that is decoded around the box keeps the colours at its edges."""
    picture = np.asarray(Image.fromarray(PICTURES["chelsea"]).resize((171, 147)))
    encoded = encode(picture, "JPEG", quality=90, subsampling=subsampling)
    transform = transform_graph(augmentation="random_resized_crop", crop_scale=crop_scale)
    for index in range(10):
        seed = images.example_seed(0, 0, index)
        expected = images.random_resized_crop(images.decode(encoded), 16, seed, crop_scale)

        np.testing.assert_array_equal(transform(encoded, seed), expected)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "GIF"])
def test_of_other_formats_crop_and_centre_are_the_parts_one_after_the_other(file_format, decoder):
    encoded = encode(small_picture("RGB"), file_format)
    cropped = transform_graph(decoder=decoder, **SMALL_CROP)
    centred = transform_graph(decoder=decoder)
    image = images.decode(encoded)

    np.testing.assert_array_equal(centred(encoded), images.resize_and_centre_crop(image, 16))
    expected = images.random_resized_crop(image, 16, SEED, SMALL_CROP["crop_scale"])
    np.testing.assert_array_equal(cropped(encoded), expected)


@pytest.mark.parametrize("options", [{}, SMALL_CROP], ids=["centre", "crop"])
def test_the_fast_decoder_is_the_exact_one_where_no_halving_leaves_enough_pixels(options):
    picture = small_picture("RGB").resize((47, 31))  # 31 is less than twice 16
    encoded = encode(picture, "JPEG")
    exact = transform_graph(**options)(encoded)
    fast = transform_graph(decoder="fast", **options)(encoded)

    np.testing.assert_array_equal(exact, fast)


@pytest.mark.parametrize("enlarged", [1, 2, 4])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_the_fast_decoder_is_pillows_to_two_and_a_half_grey_levels(name, augmentation, enlarged):
    """At a half, a quarter and an eighth of the sides, which are odd, as is the crop's place."""
    height, width = (side * enlarged + 3 for side in PICTURES[name].shape[:2])
    picture = Image.fromarray(PICTURES[name]).resize((width, height), Image.Resampling.LANCZOS)
    encoded = encode(picture, "JPEG", quality=90)
    decoded = pillow_decode(encoded)
    options = {"augmentation": augmentation, "crop_scale": (0.6, 0.9)}
    image = transform_graph(96, decoder="fast", **options)(encoded).numpy()

    if augmentation == "none":
        expected = pillow_resize_and_crop(decoded, 96)
    else:
        expected = pillow_random_crop(decoded, 96, SEED, (0.6, 0.9))
    mean, tail = mean_and_tail(image, expected)
    assert mean <= 2.5 and tail <= 30, (mean, tail)
    assert mean > 0.25  # otherwise nothing was saved


EVERYTHING = {
    "augmentation": "random_resized_crop",
    "crop_scale": (0.3, 1.0),
    "horizontal_flip": True,
    "policy": "autoaugment",
    "colour_jitter": 0.3,
}


@pytest.mark.parametrize(
    ("options", "is_plain"),
    [
        ({}, True),
        ({"decoder": "fast"}, True),
        (SMALL_CROP, True),
        ({"decoder": "fast", **SMALL_CROP}, True),
        (EVERYTHING, False),
        ({"policy": "randaugment"}, False),
    ],
    ids=["centre", "fast centre", "crop", "fast crop", "everything", "randaugment"],
)
def test_a_picture_of_one_pixel_goes_through_every_transform(options, is_plain):
    for file_format in ("PNG", "JPEG"):
        encoded = encode(np.full((1, 1, 3), 90, np.uint8), file_format)
        for index in range(10):
            seed = images.example_seed(0, 0, index)
            image = transform_graph(**options)(encoded, seed).numpy()

            assert image.shape == (16, 16, 3) and image.dtype == np.uint8
            assert np.all(image == 90) or not is_plain


def test_one_graph_takes_every_format_and_is_a_pure_function_of_the_seed():
    transform = transform_graph(**EVERYTHING)
    for _, encoded in cases():
        first, second = transform(encoded).numpy(), transform(encoded).numpy()

        assert first.shape == (16, 16, 3)
        np.testing.assert_array_equal(first, second)


def test_each_random_part_has_a_stream_of_its_own_and_they_follow_in_order():
    encoded = encode(PICTURES["chelsea"], "PNG")

    @tf.function(autograph=False)
    def after_the_flip(image, seed):
        image = augment.auto_augment(image, seed + images.POLICY_STREAM)
        return images.colour_jitter(image, seed + 1, EVERYTHING["colour_jitter"])

    flips = []
    for index in range(20):
        seed = images.example_seed(0, 0, index)
        image = images.random_resized_crop(images.decode(encoded), 16, seed, (0.3, 1.0))
        both = [after_the_flip(side, seed).numpy() for side in (image, image[:, ::-1])]
        result = transform_graph(**EVERYTHING)(encoded, seed).numpy()
        matches = [np.abs(result.astype(int) - side).max() <= 1 for side in both]
        assert sum(matches) == 1
        flips.append(matches[1])
    assert 4 <= sum(flips) <= 16


def test_colour_jitter_and_crop_are_those_of_runs_begun_before_there_was_one_transform():
    """As pipelines build it, with AutoGraph."""
    encoded = encode(PICTURES["coffee"], "JPEG")
    options = {"augmentation": "random_resized_crop", "colour_jitter": 0.4}
    dataset = tf.data.Dataset.from_tensors(encoded).map(
        lambda encoded: images.transform(encoded, SEED, size=32, settings=Transform(**options))
    )
    image = next(iter(dataset))

    @tf.function(autograph=False)
    def before(encoded):
        cropped = images.random_resized_crop(images.decode(encoded), 32, SEED, (0.9, 1.0))
        return images.colour_jitter(cropped, SEED + 1, 0.4)

    np.testing.assert_array_equal(image, before(encoded))


@pytest.mark.parametrize(
    ("augmentation", "policy"), [("none", "autoaugment"), ("random_resized_crop", "none")]
)
def test_two_views_are_two_transforms_with_random_numbers_of_their_own(augmentation, policy):
    encoded = encode(PICTURES["coffee"], "JPEG")
    options = {"augmentation": augmentation, "horizontal_flip": True}
    first = Transform(crop_scale=(0.1, 0.5), **options)
    second = dataclasses.replace(first, policy=policy, colour_jitter=0.2)

    @functools.partial(tf.function, autograph=False)
    def both(seed):
        views = images.two_views(encoded, seed, size=32, settings=first, second=second)
        alone = (
            images.transform(encoded, seed, size=32, settings=first),
            images.transform(encoded, seed + images.SECOND_VIEW, size=32, settings=second),
        )
        return views, alone

    for index in range(4):
        views, alone = both(images.example_seed(0, 0, index))
        np.testing.assert_array_equal(views[0], alone[0])
        np.testing.assert_array_equal(views[1], alone[1])
        assert np.any(views[0] != views[1])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"decoder": "quick"}, ["'quick'", "config.data.decoder", "'exact', 'fast'"]),
        (
            {"augmentation": "crop"},
            ["'crop'", "config.data.augmentation", "'none', 'random_resized_crop'"],
        ),
        (
            {"policy": "RandAugment"},
            ["'RandAugment'", "config.data.policy", "'none', 'randaugment', 'autoaugment'"],
        ),
        ({"horizontal_flip": "no"}, ["'no'", "config.data.horizontal_flip", "False, True"]),
        ({"crop_scale": (0.5, 0.4)}, ["(0.5, 0.4)", "config.data.crop_scale"]),
        ({"crop_scale": (0.0, 1.0)}, ["(0.0, 1.0)", "config.data.crop_scale"]),
        ({"colour_jitter": 1.0}, ["1.0", "config.data.colour_jitter"]),
        ({"max_pixels": 0}, ["0", "config.data.max_pixels"]),
    ],
    ids=str,
)
def test_an_option_that_means_nothing_is_refused_at_once(option, words):
    with pytest.raises(UserError) as caught:
        Transform(**option)
    assert all(word in str(caught.value) for word in words)


def test_what_is_random_wants_a_seed():
    with pytest.raises(ValueError, match="example_seed"):
        settings = Transform(horizontal_flip=True)
        images.transform(encode(small_picture("RGB"), "PNG"), size=8, settings=settings)
