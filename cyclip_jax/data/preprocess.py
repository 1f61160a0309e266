"""Pictures of any kind as a model takes them."""

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from cyclip_jax.data.pillow import as_rgb
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources.ranges import DATA_URI
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, expanded, how_written
from cyclip_jax.models.clip import normalise_images

# A path, an encoded file's bytes, a PIL image or pixels, uint8 [h, w, 3].
Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def preprocessor(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    resize_mode: str = "shortest",
) -> Callable[[Picture | Sequence[Picture]], Float[Array, "n h w 3"]]:
    """Makes the function that prepares pictures for a model.

    Args:
      image_size: pixels per side.
      mean: mean of the RGB values in [0, 1], three numbers.
      std: standard deviation of the RGB values, three numbers.
      resize_mode: how a picture becomes a square, see `data.transform.Transform`.

    Returns:
      Function from a picture or a list of them to normalised float32 [N, image_size, image_size,
      3].
      A picture is a path, an encoded file's bytes, a PIL image or uint8 [h, w, 3].
    """

    def preprocess(images):
        """One picture or several -> normalised float32 [N, size, size, 3].

        Args:
          images: a path, an encoded file's bytes, a PIL image or uint8 [h, w, 3], or a list.
        """
        from cyclip_jax.data.images import RESIZES  # TensorFlow: slow to import

        several = images if isinstance(images, list | tuple) else [images]
        if not several:
            raise UserError("there is no picture to prepare")
        resize = RESIZES[resize_mode]
        pixels = [resize(_pixels(image), image_size).numpy() for image in several]
        return normalise_images(jnp.asarray(np.stack(pixels)), mean=mean, std=std)

    return preprocess


def _pixels(image):
    """One picture of any kind as uint8 [h, w, 3]."""
    from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

    if isinstance(image, Image.Image):
        image = np.asarray(as_rgb(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise UserError(
                f"a picture must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
            )
        return image
    name = "the bytes given" if isinstance(image, bytes) else expanded(image)
    if DATA_URI.match(name):
        raise UserError("a picture is given as a data: URI; give its bytes, by base64.b64decode")
    try:
        return pixels_of(image if isinstance(image, bytes) else absolute(name).read_bytes())
    except OSError as error:
        raise UserError(f"{name} cannot be read{how_written(name)}: {error}") from error
    except Unreadable as error:
        raise UserError(f"{name} cannot be decoded as a picture: {error.detail}") from error
