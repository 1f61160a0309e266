"""Thumbnails by which pictures are compared, and descriptors of them by which they are found."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

LUMA, CHROMA = 32, 16  # pixels a side of a thumbnail's brightness and of its colours
SAMPLES = 16  # a side, in which parts are compared; their colours are in half of them
_FREQUENCIES = 7  # of its cosine transform, along each side
DIMENSION = _FREQUENCIES**2 - 1
# With less detail than this, a standard deviation in grey levels, a picture shows nothing.
_FLAT = 1.0

Span = tuple[float, float]
# The parts of a picture that are compared with other pictures, as spans of its height and width:
# all of it, and what is left after a crop of 5 % at every edge, at two edges, or in between.
_KEPT = 0.95
PARTS: tuple[tuple[Span, Span], ...] = (
    ((0, 1), (0, 1)),
    ((1 - _KEPT, _KEPT), (1 - _KEPT, _KEPT)),
    *(((y, y + _KEPT), (x, x + _KEPT)) for y in (0, 1 - _KEPT) for x in (0, 1 - _KEPT)),
    ((0.025, 0.975), (0.025, 0.975)),
)


class Thumbnails(NamedTuple):
    """The thumbnails of n pictures, each squeezed to a square: 1.5 KiB each.

    Attributes:
      luma: brightness Y, uint8 [n, 32, 32].
      chroma: colours Cb and Cr, uint8 [n, 2, 16, 16]; 128 is grey.
    """

    luma: UInt8[np.ndarray, "n 32 32"]
    chroma: UInt8[np.ndarray, "n 2 16 16"]

    def at(self, rows) -> "Thumbnails":
        """Those of some pictures."""
        return Thumbnails(self.luma[rows], self.chroma[rows])


def thumbnail(pixels: UInt8[np.ndarray, "h w 3"]) -> Thumbnails:
    """The thumbnail of one picture, as Thumbnails with n = 1."""
    small = Image.fromarray(pixels).resize((LUMA, LUMA), Image.Resampling.BILINEAR)
    planes = np.asarray(small.convert("YCbCr"))
    halves = planes[..., 1:].reshape(CHROMA, 2, CHROMA, 2, 2).astype(np.uint16).sum((1, 3))
    return Thumbnails(
        planes[None, ..., 0], ((halves + 2) // 4).astype(np.uint8).transpose(2, 0, 1)[None]
    )


def is_flat(luma: UInt8[np.ndarray, "n 32 32"]) -> np.ndarray:
    """Which pictures show nothing but one colour, or light that falls off, bool [n]."""
    weights = sampling(0, 1, LUMA, SAMPLES)
    values = (weights @ luma.astype(np.float32) @ weights.T).reshape(len(luma), SAMPLES**2)
    return without_shading(values).std(axis=1) < _FLAT


def without_shading(values: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
    """What a picture shows besides light that falls off, as that of a clear sky does.

    Args:
      values: brightness in SAMPLES² samples, of which the quadratic function of the place that is
        nearest to it is taken away.
    """
    return values - (values @ _SHADING) @ _SHADING.T


def _shading():
    """An orthonormal basis [samples, 6] of the quadratic functions of the place."""
    y, x = np.mgrid[:SAMPLES, :SAMPLES].reshape(2, -1) / SAMPLES - 0.5
    return np.linalg.qr(np.stack([np.ones_like(x), y, x, y * x, y * y, x * x], axis=1))[0]


def sampling(begin, end, size: int, samples: int) -> Float[np.ndarray, "... samples size"]:
    """Weights by which a line of pixels is sampled within spans of it.

    Each sample is the mean over its own share of the span.

    Args:
      begin, end: of the spans, as shares of the line, float [...].
      size: pixels of the line.
      samples: how many.
    """
    begin, end = (np.asarray(side, np.float32)[..., None] * size for side in (begin, end))
    edges = begin + (end - begin) * np.arange(samples + 1, dtype=np.float32) / samples
    pixels = np.arange(size, dtype=np.float32)
    covered = np.minimum(edges[..., 1:, None], pixels + 1) - np.maximum(
        edges[..., :-1, None], pixels
    )
    covered = np.maximum(covered, 0)
    return covered / covered.sum(axis=-1, keepdims=True)


def _cosines():
    """The first rows of the orthonormal cosine transform, [frequencies, samples]."""
    angles = np.outer(np.arange(_FREQUENCIES), np.arange(SAMPLES) + 0.5) * np.pi / SAMPLES
    return np.cos(angles) * np.sqrt((2 - (np.arange(_FREQUENCIES) == 0)) / SAMPLES)[:, None]


def _transforms():
    """{part's number: (of its rows, of its columns)}, each [frequencies, LUMA]."""
    return [
        tuple((_cosines() @ sampling(*span, LUMA, SAMPLES)).astype(np.float32) for span in part)
        for part in PARTS
    ]


_TRANSFORMS = _transforms()
_SHADING = _shading().astype(np.float32)
# Higher frequencies are weaker in pictures, and tell more.
_WEIGHTS = np.sqrt(np.maximum(np.hypot(*np.mgrid[:_FREQUENCIES, :_FREQUENCIES]), 1)).ravel()[1:]


def descriptors(luma: UInt8[np.ndarray, "n 32 32"], part: int) -> Float[np.ndarray, "n d"]:
    """Unit vectors whose products tell how alike parts of pictures are, float32 [n, DIMENSION].

    They are low frequencies of the brightness, without its mean: a change of brightness or contrast
    moves them little, and finer detail, as of another resolution, not at all.

    Args:
      luma: of thumbnails.
      part: which of PARTS.
    """
    rows, columns = _TRANSFORMS[part]
    spectrum = rows @ luma.astype(np.float32) @ columns.T
    flat = spectrum.reshape(len(luma), _FREQUENCIES**2)[:, 1:] * _WEIGHTS.astype(np.float32)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
