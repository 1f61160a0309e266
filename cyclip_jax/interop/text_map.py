"""A matrix for text embeddings as a part of a model's text projection."""

import dataclasses
import os
import zipfile

import numpy as np

from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, how_written
from cyclip_jax.interop.checkpoint import Checkpoint

_NAME = "text_map"


def with_text_map(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint whose text embeddings are t·W, before they get unit norm.

    Args:
      checkpoint: a Checkpoint.
      path: `text_map.npz` of the evaluation `labclip`, with W [D, D].

    Raises:
      UserError: there is no such file, or its matrix is not as wide as the embeddings.
    """
    file = absolute(path, "--text_map")
    if not file.exists():
        raise UserError(f"--text_map={path} is not there{how_written(path)}")
    try:
        with file.open("rb") as opened:
            text_map = np.load(opened, allow_pickle=False)[_NAME].astype(np.float64)
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--text_map={path} is no text_map.npz of the evaluation labclip ({error})"
        ) from error
    width = checkpoint.model["embed_dim"]
    if text_map.shape != (width, width):
        raise UserError(
            f"--text_map={path} has a matrix {list(text_map.shape)}, and the embeddings of "
            f"{checkpoint.source} have {width} numbers; choose the file of this model"
        )
    weights = dict(checkpoint.weights)
    if "text_projection" in weights:
        weights["text_projection"] = _times(weights["text_projection"], text_map)
    else:  # a layer with a bias, whose kernel PyTorch transposes
        kernel, bias = weights["text_projection.weight"], weights["text_projection.bias"]
        weights["text_projection.weight"] = _times(kernel.T, text_map).T
        weights["text_projection.bias"] = _times(bias, text_map)
    return dataclasses.replace(checkpoint, weights=weights)


def _times(array, text_map):
    return np.ascontiguousarray((array.astype(np.float64) @ text_map).astype(array.dtype))
