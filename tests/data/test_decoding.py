"""One picture is the same to all: training, preparation, boxes of evaluations, and `load`."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cyclip_jax.data import images
from cyclip_jax.data.decoding import pixels_of, unreadable
from cyclip_jax.data.pillow import is_picture
from cyclip_jax.data.preprocess import preprocessor
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.shard_writer import Preparation, stored_picture
from cyclip_jax.evals.data.choices import Pictures

RAMP = np.linspace(0, 65_535, 96 * 64).reshape(64, 96)
GREY = (RAMP / 256).astype(np.uint8)  # what is seen of the ramp, mean 127.5


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def tiff(values):
    return encode(Image.fromarray(values), "TIFF")


DEEP = {
    "PNG of 16 bits": encode(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
    "TIFF of 16 bits": tiff(RAMP.astype(np.uint16)),
    "TIFF of 32 bits": tiff(RAMP.astype(np.int32)),
    "TIFF of 32 bits up to 255": tiff(GREY.astype(np.int32)),
    "PGM of 16 bits": b"P5\n96 64\n65535\n" + RAMP.astype(">u2").tobytes(),
    "floats up to 1": tiff((RAMP / 65_535).astype(np.float32)),
    "floats up to 255": tiff(GREY.astype(np.float32)),
    "floats up to 65,535": tiff(RAMP.astype(np.float32)),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_pictures_are_ramps_to_all_who_look(name, tmp_path):
    encoded, path = DEEP[name], tmp_path / "ramp"
    path.write_bytes(encoded)
    boxed = Pictures([(str(path), (0, 0, 96, 64))]).read(0).image
    for seen in (pixels_of(encoded), pixels_of(boxed)):
        assert np.abs(seen - GREY[:, :, None].astype(int)).max() <= 1

    _, resized, size = stored_picture(encoded, Preparation((), resize=32))
    assert size == (48, 32)
    assert abs(pixels_of(resized).mean() - 127.5) < 1
    _, kept, _ = stored_picture(encoded, Preparation(()))
    np.testing.assert_array_equal(pixels_of(kept), pixels_of(encoded))

    centre = images.transform(tf.constant(encoded), size=32).numpy()
    assert abs(centre.mean() - 127.5) < 1
    prepare = preprocessor(32, mean=(0,) * 3, std=(1 / 255,) * 3)
    for form in (encoded, Image.open(path)):
        np.testing.assert_allclose(np.asarray(prepare(form))[0], centre, atol=1.01)


@pytest.mark.parametrize("wrong, reason", [(1e9, "up to 1e\\+09"), (np.nan, "are no numbers")])
def test_values_without_a_white_are_refused(wrong, reason):
    values = (RAMP / 65_535).astype(np.float32)
    values[0, 0] = wrong
    with pytest.raises(Unreadable, match=f"the image cannot be decoded: .*{reason}"):
        pixels_of(tiff(values))


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


PICTURE = Image.fromarray(GREY).convert("RGB")
PNG, JPEG = encode(PICTURE, "PNG"), encode(PICTURE, "JPEG")
ODD = {
    "wrong checksum in tEXt": PNG[:33] + chunk(b"tEXt", b"a\0b", 1) + PNG[33:],
    "2 MiB of zTXt": PNG[:33] + chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(1 << 21))) + PNG[33:],
    "no IEND": PNG[:-12],
    "the last byte lost": PNG[:-1],
    "wrong checksum in IDAT": PNG[:-16] + b"\0\0\0\1" + PNG[-12:],
    "half a PNG": PNG[: len(PNG) // 2],
    "a whole JPEG": JPEG,
    "a JPEG without its end": JPEG[:-2],
    "a cut JPEG": JPEG[:-200],
    "a GIF without its end": encode(PICTURE, "GIF")[:-400],
    "an AVIF": encode(PICTURE, "AVIF"),
}


@pytest.mark.parametrize("name", ODD)
def test_preparing_keeps_what_training_reads_and_drops_what_it_refuses(name):
    def outcome(look):
        try:
            return look()
        except (Unreadable, tf.errors.OpError):
            return None

    trained = outcome(lambda: images.transform(tf.constant(ODD[name]), size=8).numpy())
    stored = outcome(lambda: stored_picture(ODD[name], Preparation(()))[1])
    resized = outcome(lambda: stored_picture(ODD[name], Preparation((), resize=32))[1])
    assert (trained is None) == (stored is None) == (resized is None)
    if stored is not None:
        again = images.transform(tf.constant(stored), size=8).numpy()
        np.testing.assert_array_equal(again, trained)


LARGE = encode(Image.new("L", (101, 100)), "PNG")


@pytest.mark.parametrize(
    "encoded, reason, detail",
    [
        (b"<html>", "cannot be decoded", "no picture of a known format"),
        (b"", "cannot be decoded", "no picture of a known format"),
        (PNG[:-80], "cannot be decoded", "the PNG is damaged or cut short"),
        (PNG[:20], "cannot be decoded", "the PNG is damaged or cut short"),
        (JPEG[:300], "cannot be decoded", "the JPEG is damaged or cut short"),
        (encode(PICTURE, "WEBP")[:100], "cannot be decoded", "the WebP is damaged or cut short"),
        (LARGE, "is too large", "101 × 100 pixels, more than data.max_pixels = 10000"),
    ],
)
def test_reasons_are_plain_words_in_and_outside_a_graph(encoded, reason, detail):
    with pytest.raises(Unreadable) as by_graph:
        pixels_of(encoded, 10_000)
    with pytest.raises(tf.errors.OpError) as eager:
        images.decode(tf.constant(encoded), 10_000)
    for problem in (by_graph.value, unreadable(eager.value)):
        assert (problem.reason, problem.detail) == (f"the image {reason}", detail)


def test_a_damaged_file_of_a_rarer_format_is_called_so():
    with pytest.raises(Unreadable, match=r"decoded: the file is damaged: .*truncated"):
        pixels_of(encode(PICTURE, "BMP")[:-100])


def test_a_picture_is_told_by_how_it_begins():
    for file_format in ("PPM", "TIFF", "JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000"):
        assert is_picture(io.BytesIO(encode(PICTURE, file_format)), 10**8), file_format
    others = (b"", b"Filename;Width\n", b"a cat\n", b"%PDF-1.4", b"<svg/>", b"%!PS-Adobe\n", b"{}")
    for content in others:
        assert not is_picture(io.BytesIO(content), 10**8), content
    assert is_picture(io.BytesIO(LARGE[:100]), 10)
