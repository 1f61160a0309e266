"""Reads and writes the models of open_clip, the official CyCLIP code, transformers and ONNX."""

import os
import sys
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
from cyclip_jax.interop.hub import located
from cyclip_jax.interop.weights import fit, fixed_positions, weights_of
from cyclip_jax.models.clip import CLIP, split_model
from cyclip_jax.models.vit import VisionTransformer

if TYPE_CHECKING:
    import torch

__all__ = ["load_torch", "to_torch"]


def to_torch(model: CLIP) -> dict[str, np.ndarray]:
    """Returns the parameters and statistics of a model under OpenAI's names.

    Args:
      model: a CLIP module (see models/clip.py).

    Returns:
      {name: numpy array} in PyTorch's layouts. Once the arrays are tensors, it is a state dict that
      open_clip's model loads.
    """
    _, params, batch_stats = split_model(model)
    weights, visual = weights_of({"params": params, "batch_stats": batch_stats}), model.visual
    if isinstance(visual, VisionTransformer) and visual.positional_embedding is None:
        weights |= fixed_positions(len(visual.class_embedding[...]), visual.grid[0])
    return weights


def load_torch(
    model: CLIP,
    source: "str | os.PathLike[str] | Mapping[str, np.ndarray | torch.Tensor]",
) -> None:
    """Replaces all parameters and statistics of a model by PyTorch weights.

    Where anything does not fit, nothing is replaced.

    Args:
      model: a CLIP module; it keeps its dtypes.
      source: a state dict under the names of OpenAI, open_clip or transformers (tensors or arrays),
        or the path of a PyTorch or safetensors file, of a folder of open_clip or transformers, or
        of an export, or hf-hub:user/name. (`cyclip_jax.load` opens the workdir of a run.)

    Raises:
      UserError: the weights do not fit the model; the error lists everything that does not.
    """
    if isinstance(source, str | os.PathLike):
        checkpoint = read_checkpoint(located(source))
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
    """Returns the settings of a model that the shapes of its weights do not show."""
    text, visual = model.text, model.visual
    return {
        "quick_gelu": text.transformer.resblocks[0].quick_gelu,
        "vision_heads": visual.heads,
        "text_heads": text.heads,
        "pool": visual.pool,
        "text_attention": "causal" if text.transformer.resblocks[0].attn.is_causal else "full",
        "text_pool": text.pool,
        "text_epsilon": text.ln_final.epsilon,
        **({"text_eos_id": text.eos_id} if text.pool == "eos" else {}),
    }


def _as_array(value, name):
    torch = sys.modules.get("torch")  # where PyTorch is not imported, nothing is its tensor
    is_tensor = torch is not None and isinstance(value, torch.Tensor)
    array = from_tensor(value, name) if is_tensor else np.asarray(value)
    if not isinstance(name, str) or array.dtype.kind in "OSUc":
        raise UserError(
            f"the state dict has {name!r}: {type(value).__name__}; give it names with arrays or "
            "tensors of real numbers"
        )
    return array
