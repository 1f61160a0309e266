"""Encoders with a known answer: they read colour and shape off the pixels and the caption."""

import numpy as np

from cyclip_jax.evals import Encoders
from tests.pictures import COLOURS, SHAPES, draw

SIZE = 40  # of the pictures as they are drawn, so that none is resized


def fake_encoders(batch_size, misread=lambda colour: colour):
    """Encoders under which a picture and its caption are one and the same unit vector.

    Args:
      batch_size: as config.batch_size.
      misread: what the image encoder takes a colour for.
    """
    names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    table = np.eye(len(names) + 1, dtype=np.float32)  # the last one stands for all else

    def encode_image(images):
        numbers = {draw(s, c).tobytes(): names.index(f"{misread(c)} {s}") for s, c in _all()}
        return table[[numbers.get(image.tobytes(), -1) for image in images]]

    def tokenize(texts):
        words = [" ".join(text.split()[-2:]) for text in texts]
        return np.array([[names.index(w) if w in names else len(names)] for w in words], np.int32)

    return Encoders(
        encode_features=lambda images: 3 * encode_image(images),
        encode_text=lambda tokens: table[tokens[:, 0]],
        gather=lambda rows: rows,
        loss=lambda images, texts: {"loss": len(images)},
        tokenize=tokenize,
        image_size=SIZE,
        batch_size=batch_size,
    )


def _all():
    return [(shape, colour) for shape in SHAPES for colour in COLOURS]
