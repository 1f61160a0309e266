"""Decoding, resizing and cropping, against Pillow."""

import functools
import io

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

from cyclip_jax.data import images

PICTURES = {
    "astronaut": skimage.data.astronaut(),
    "coffee": skimage.data.coffee(),
    "chelsea": skimage.data.chelsea(),
    "rocket": skimage.data.rocket(),
}

# With a signature: a constant picture would be decoded while TensorFlow simplifies the graph.
decode = tf.function(images.decode, input_signature=[tf.TensorSpec([], tf.string)])


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
        pytest.param(encode(small_picture("RGB"), "WEBP")[:-200], id="half a WebP"),
        pytest.param(encode(small_picture("P"), "BMP")[:-200], id="half a BMP"),
    ],
)
def test_what_is_no_whole_picture_is_refused(encoded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(encoded)


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
    return tf.stack(images._random_box(height, width, seed, scale, ratio))


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


def test_a_crop_is_its_box_resized_by_pillow():
    picture = PICTURES["rocket"]
    seed = images.example_seed(1, 2, 3)
    image = images.random_resized_crop(tf.constant(picture), 97, seed, (0.3, 0.6)).numpy()
    top, left, height, width = (
        int(side)
        for side in images._random_box(
            *images._height_and_width(picture), seed, (0.3, 0.6), (3 / 4, 4 / 3)
        )
    )
    cut = picture[top : top + height, left : left + width]
    expected = Image.fromarray(cut).resize((97, 97), Image.Resampling.BICUBIC)

    mean, tail = mean_and_tail(image, np.asarray(expected))
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
