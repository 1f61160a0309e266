"""CyCLIP in JAX: contrastive image-text pretraining whose two geometries agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing the package imports none of these
    import numpy as np
    from jaxtyping import Array, Float, Int

    from cyclip_jax.models.clip import CLIP

__version__ = "0.2.0"
__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    text_windows: bool = False,
    **model: Any,
) -> tuple[
    CLIP, Callable[[Any], Float[Array, "n h w 3"]], Callable[[Any], Int[np.ndarray, "n ..."]]
]:
    """A trained model, ready to embed pictures and sentences.

        model, preprocess, tokenize = cyclip_jax.load("runs/cc3m")
        image_embeds, text_embeds, scale = model(preprocess("cat.jpg"), tokenize("a cat"))

    Args:
      path: the workdir of a run, an export, a folder of open_clip or transformers, a PyTorch or
        safetensors file with OpenAI's or transformers' names, or the name of a model on the Hugging
        Face Hub, hf-hub:user/name or hf-hub:user/name@revision. Of the latter only settings,
        vocabularies and safetensors are fetched.
      step: which checkpoint of a workdir; None is the newest.
      text_windows: whether a text too long for the model is read in windows, and its embedding is
        their mean, rather than cut.
      **model: settings of `create_model` that the checkpoint does not tell, e.g. quick_gelu=False
        for a bare file of weights, or that are to change, e.g. dtype="bfloat16".

    Returns:
      (model, preprocess, tokenize): a CLIP module in evaluation mode; a function from one picture
      or a list (paths, bytes, PIL images, uint8 [h, w, 3]) to its images, normalised float32
      [N, H, W, 3]; and a function from one text or a list to token ids, int32 [N, L], or with
      `text_windows` [N, W, L].

    Raises:
      UserError: what is not there, cannot be read, or is of another architecture.
    """
    from cyclip_jax.interop.pretrained import load  # brings what losses and models do without
    from cyclip_jax.runtime.started import quieten_tensorflow

    quieten_tensorflow()
    return load(path, step=step, text_windows=text_windows, **model)
