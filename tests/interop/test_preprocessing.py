import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

from cyclip_jax.data.images import RESIZES
from cyclip_jax.interop.pretrained import load
from cyclip_jax.models.clip import normalise_images
from tests.interop.models import embed
from tests.pictures import COLOURS, SHAPES, draw
from tests.pytorch import open_clip, torch

PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "cat", "hubble_deep_field", "retina")


def pictures():
    """Photographs of several shapes that scikit-image carries, uint8 RGB."""
    return [getattr(skimage.data, name)() for name in PICTURES if hasattr(skimage.data, name)]


def as_open_clip(images, size, resize_mode="shortest"):
    """open_clip's own evaluation transform, [N, size, size, 3]."""
    transform = open_clip.image_transform(size, is_train=False, resize_mode=resize_mode)
    return np.stack([transform(Image.fromarray(image)).permute(1, 2, 0) for image in images])


def as_we_do(images, size, resize_mode="shortest"):
    pixels = [RESIZES[resize_mode](tf.constant(image), size).numpy() for image in images]
    return np.asarray(normalise_images(np.stack(pixels)))


@pytest.mark.parametrize("size, resize_mode", [(64, "shortest"), (224, "shortest"), (64, "squash")])
def test_pictures_are_what_open_clip_makes_of_them(size, resize_mode):
    images = pictures()
    assert len(images) >= 4
    ours, theirs = (make(images, size, resize_mode) for make in (as_we_do, as_open_clip))
    std = np.array(open_clip.OPENAI_DATASET_STD)
    difference = abs(ours - theirs) * std  # of RGB in [0, 1]
    print(
        f"size {size}: mean {difference.mean() * 255:.3f}/255, max {difference.max() * 255:.1f}/255"
    )
    assert difference.mean() < 1 / 255


def test_another_filter_would_fail_that_test():
    image = pictures()[0]
    bilinear = tf.image.resize(image, (64, 64), "nearest").numpy().astype(np.uint8)
    std = np.array(open_clip.OPENAI_DATASET_STD)
    theirs = as_open_clip([image], 64)
    assert (abs(np.asarray(normalise_images(bilinear[None])) - theirs) * std).mean() > 1 / 255


def test_a_trained_model_embeds_both_alike(finished):
    model, _, _ = load(finished[0])
    drawings = [draw(shape, colour, 90) for shape in SHAPES for colour in COLOURS]
    images = drawings + pictures()
    tokens = np.full((len(images), 8), 63, np.int32)
    embeds = [embed(model, make(images, 32), tokens)[0] for make in (as_we_do, as_open_clip)]
    centred = [np.asarray(e) - np.mean(embeds[0], axis=0) for e in embeds]
    centred = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in centred]
    cosines = np.sum(centred[0] * centred[1], axis=1)
    others = (centred[0] @ centred[1].T)[: len(drawings), : len(drawings)]
    others = others[~np.eye(len(drawings), dtype=bool)]
    print(f"smallest cosine {cosines.min():.6f}; of two drawings {others.mean():.2f} on average")
    assert cosines.min() > 0.999
    assert others.mean() < 0.5  # so that it means something


assert torch  # imported first: see tests/pytorch.py
