"""PyTorch checkpoints in and out: open_clip, the official CyCLIP code, transformers, ONNX."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.interop.checkpoint import check_settings
from cyclip_jax.interop.files import from_tensor, unwrapped
from cyclip_jax.interop.folders import openai_names, read_checkpoint
from cyclip_jax.interop.weights import fit, weights_of
from cyclip_jax.models.clip import CLIP, split_model

if TYPE_CHECKING:
    import torch

__all__ = ["load_torch", "to_torch"]


def to_torch(model: CLIP) -> dict[str, np.ndarray]:
    """The parameters and statistics of a model under OpenAI's names.

    Args:
      model: a CLIP module (see models/clip.py).

    Returns:
      {name: numpy array} in PyTorch's layouts: open_clip's model takes it as its state dict, once
      the arrays are tensors.
    """
    _, params, batch_stats = split_model(model)
    return weights_of({"params": params, "batch_stats": batch_stats})


def load_torch(
    model: CLIP,
    source: "str | os.PathLike[str] | Mapping[str, np.ndarray | torch.Tensor]",
) -> None:
    """Replaces the parameters and statistics of a model by PyTorch weights, all or none.

    Args:
      model: a CLIP module; it keeps its dtypes.
      source: a state dict under the names of OpenAI, open_clip or transformers (tensors or arrays),
        or the path of a PyTorch or safetensors file, of a folder of open_clip or transformers, or
        of an export. (The workdir of a run is opened by `cyclip_jax.load`.)

    Raises:
      UserError: what does not fit, everything in one list; the model is then unchanged.
    """
    if isinstance(source, str | os.PathLike):
        checkpoint = read_checkpoint(source)
        weights, name = checkpoint.weights, str(source)
    else:
        checkpoint = None
        name = "the state dict"
        arrays = {key: _as_array(value, key) for key, value in source.items()}
        weights = openai_names(unwrapped(arrays, name), name)
    _, params, batch_stats = split_model(model)
    tree = fit(weights, {"params": params, "batch_stats": batch_stats}, source=name)
    if checkpoint is not None:
        check_settings(checkpoint, _settings(model))
    for kind, variables in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        state = nnx.state(model, variables)
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree[kind]))
        nnx.update(model, state)


def _settings(model):
    """What a model computes that no shape tells."""
    return {
        "quick_gelu": model.text.transformer.resblocks[0].quick_gelu,
        "vision_heads": model.visual.heads,
        "text_heads": model.text.heads,
    }


def _as_array(value, name):
    array = from_tensor(value, name) if hasattr(value, "detach") else np.asarray(value)
    if not isinstance(name, str) or array.dtype.kind in "OSUc":
        raise UserError(f"a state dict has names and numbers, not {name!r}: {type(value).__name__}")
    return array
