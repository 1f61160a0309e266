"""Takes weights under OpenAI names (see names.py) from a model, and fits them into one."""

import contextlib
import math
import os
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float

from cyclip_jax.errors import UserError
from cyclip_jax.interop.names import (
    COUNT,
    from_torch_layout,
    layer_count,
    to_torch_layout,
    torch_name,
)
from cyclip_jax.losses.classes import HEAD
from cyclip_jax.models.transformer import SWITCHES
from cyclip_jax.models.vit import sin_cos_positions
from cyclip_jax.parallel import Tree

_Leaf = TypeVar("_Leaf")
_LISTED = 20  # how many names an error lists for each kind of mismatch
# The position embeddings whose shape, [1 + grid², width], depends on the image size.
_VIT_POSITIONS = "visual.positional_embedding"
_RESNET_POSITIONS = "visual.attnpool.positional_embedding"
_SIGLIP_POSITIONS = "visual.trunk.pos_embed"  # [1, grid², width]
_SCALARS = ("logit_scale", "logit_bias")
# {switch of a block: a weight that blocks have with it}
_OF_SWITCH = {
    "qk_norm": "attn.ln_q.weight",
    "scale_heads": "attn.head_scale",
    "scale_attn_inner": "attn.ln_inner.weight",
    "scale_attn": "ln_attn.weight",
    "scale_fc": "mlp.ln.weight",
}
# What reading sizes off the shapes of other weights raises.
_NO_SIZES = (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError)
# What a model is taken in, by its tree's first names.
PARTS = ("visual", "text", *_SCALARS)
# OpenAI's and older files hold these entries besides weights.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def weights_of(tree: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """Returns the weights of a model under OpenAI's names.

    Args:
      tree: {"params": …, "batch_stats": …}, nested dicts of arrays.

    Returns:
      {OpenAI name: numpy array}, in which BatchNorm's statistics have a count of zero batches.
    """
    weights = {}
    for name, path, leaf in _named_leaves(tree):
        weights[name] = np.array(to_torch_layout(path, np.asarray(leaf)), order="C")
        if name.endswith(".running_var"):
            weights[name.replace("running_var", COUNT)] = np.zeros((), np.int64)
    return weights


def fixed_weights(settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What PyTorch has among the weights and ours computes: position embeddings that do not train.

    Args:
      settings: of the model, with its sizes.

    Returns:
      {OpenAI name: numpy array}, empty for most models.
    """
    if settings["vision_positions"] != "sin_cos":
        return {}
    side = settings["image_size"] // settings["patch_size"]
    return fixed_positions(settings["vision_width"], side)


def fixed_positions(width: int, side: int) -> dict[str, np.ndarray]:
    """The same of a ViT that has them, by its channels and the patches along a side of an image."""
    return {_VIT_POSITIONS: sin_cos_positions(width, side)}


def _is_fixed(positions):
    """Whether position embeddings are those of `fixed_weights`."""
    if positions.ndim != 2 or positions.shape[1] % 4:
        return False
    side = _grid(len(positions))
    table = None if side is None else sin_cos_positions(positions.shape[1], side)
    return table is not None and np.allclose(positions, table, rtol=0, atol=1e-3)


def shapes_of(abstract: Mapping[str, Tree]) -> dict[str, tuple[int, ...]]:
    """Returns {OpenAI name: shape in PyTorch} of a model's trees, without BatchNorm's counts."""
    return {
        name: to_torch_layout(path, np.broadcast_to(0.0, leaf.shape)).shape
        for name, path, leaf in _named_leaves(abstract)
    }


def check_parts(parts: Collection[str], source: str | None) -> None:
    """Raises UserError unless parts of a model, config.init_parts, may be taken from a source."""
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"config.init_parts has {part!r}; the parts of a model are {', '.join(PARTS)}"
            )
    if parts and source is None:
        raise UserError(
            "config.init_parts says what is taken from config.init_from, which is not set; set it "
            "to the model that they come from"
        )


def takes(part: str, parts: Collection[str]) -> bool:
    """Whether a part of a model is among those that are taken; () stands for all."""
    return not parts or part in parts


def only_parts(trees: Mapping[str, Tree], parts: Collection[str]) -> dict[str, Tree]:
    """{"params": …, "batch_stats": …} with the parts that are taken alone."""
    return {
        kind: {name: part for name, part in tree.items() if takes(name, parts)}
        for kind, tree in trees.items()
    }


def _part_of(name):
    """The part that a weight with an OpenAI name is of."""
    if name in _SCALARS:
        return name
    return next((part for part in ("visual", HEAD) if name.startswith(f"{part}.")), "text")


def without_head(weights: Mapping[str, _Leaf]) -> dict[str, _Leaf]:
    """What {OpenAI name: …} has besides a head of classes."""
    return {name: leaf for name, leaf in weights.items() if _part_of(name) != HEAD}


def fit(
    weights: Mapping[str, np.ndarray],
    abstract: Mapping[str, Tree],
    *,
    source: str | os.PathLike[str],
    parts: Collection[str] = (),
) -> dict[str, Tree]:
    """Arranges weights as a model's trees.

    A position embedding of another image size is interpolated, and a warning says so.

    Args:
      weights: {OpenAI name: numpy array}. Scalars may have the shape [1], and BatchNorm's
        counts may be absent.
      abstract: {"params": …, "batch_stats": …}, nested dicts of arrays or jax.ShapeDtypeStruct.
      source: what to call the weights in messages.
      parts: those of PARTS that are taken, whatever the others are; () is all.

    Returns:
      The same trees with numpy arrays, which have the dtypes of `abstract`; of `only_parts`.

    Raises:
      UserError: weights are missing, unexpected or of another shape, or their numbers are not
        finite; the error lists all of them.
    """
    weights = {
        name: array.reshape(()) if name in _SCALARS and array.size == 1 else array
        for name, array in weights.items()
        if not name.endswith(COUNT) and name not in _NO_WEIGHTS and takes(_part_of(name), parts)
    }
    if HEAD not in abstract["params"]:  # a fine-tuned model without its head is a model too
        weights = without_head(weights)
    abstract = only_parts(abstract, parts)
    expected = shapes_of(abstract)
    if _VIT_POSITIONS not in expected and _is_fixed(weights.get(_VIT_POSITIONS, np.zeros(0))):
        del weights[_VIT_POSITIONS]  # the model computes them
    weights = _interpolated(weights, expected, source)
    with np.errstate(over="ignore"):
        weights |= {
            name: weights[name].astype(leaf.dtype)
            for name, _, leaf in _named_leaves(abstract)
            if name in weights
        }
    _check(weights, expected, source)
    leaves = [from_torch_layout(path, weights[name]) for name, path, _ in _named_leaves(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def sizes_of(
    weights: Mapping[str, np.ndarray], *, source: str | os.PathLike[str]
) -> dict[str, Any]:
    """Returns the keyword arguments of `create_model` that the shapes of weights tell.

    These are the sizes that shapes show, so not the numbers of heads, and `logit_bias` where there
    is one.

    Raises:
      UserError: the weights are not those of a CLIP model as OpenAI builds it.
    """
    try:
        return _vision_sizes(weights) | _text_sizes(weights) | _bias_in(weights)
    except _NO_SIZES as error:
        raise UserError(
            f"{source} holds no CLIP model with the names of OpenAI, open_clip or transformers "
            f"({error}; its first names: {', '.join(list(weights)[:5])}); choose another file"
        ) from error


def _vision_sizes(weights):
    if _SIGLIP_POSITIONS in weights:
        return _siglip_sizes(weights)
    is_resnet = "visual.attnpool.q_proj.weight" in weights
    positions = len(weights[_RESNET_POSITIONS if is_resnet else _VIT_POSITIONS])
    grid = _grid(positions)
    if grid is None:
        raise ValueError(f"its {positions} image positions are not one more than a square")
    if is_resnet:
        return {
            "name": "RN50",
            "vision_tower": "resnet",
            "image_size": 32 * grid,
            "vision_layers": tuple(
                layer_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)
            ),
            "vision_width": weights["visual.layer1.0.conv1.weight"].shape[0],
        }
    width, _, patch_size, _ = weights["visual.conv1.weight"].shape
    return {
        "name": "ViT-B/32",
        "vision_tower": "vit",
        "image_size": patch_size * grid,
        "vision_layers": layer_count(weights, "visual.transformer.resblocks."),
        "vision_width": width,
        "patch_size": patch_size,
        "vision_positions": "sin_cos" if _is_fixed(weights[_VIT_POSITIONS]) else "learned",
        "vision_block": _switches(weights, "visual."),
        **({"pool": "attention"} if "visual.attn_pool.query" in weights else {}),
    }


def _siglip_sizes(weights):
    width, _, patch_size, _ = weights["visual.trunk.patch_embed.proj.weight"].shape
    grid = _grid(1 + weights[_SIGLIP_POSITIONS].shape[1])
    if grid is None:
        raise ValueError("its image positions are not a square")
    return {
        "name": "ViT-B/16-SigLIP",
        "quick_gelu": False,
        "vision_tower": "siglip",
        "image_size": patch_size * grid,
        "vision_layers": layer_count(weights, "visual.trunk.blocks."),
        "vision_width": width,
        "patch_size": patch_size,
    }


def _switches(weights, prefix):
    """Which of SWITCHES the blocks of a tower have."""
    block = f"{prefix}transformer.resblocks.0."
    return tuple(switch for switch in SWITCHES if block + _OF_SWITCH[switch] in weights)


def _bias_in(weights):
    return {"logit_bias": True} if "logit_bias" in weights else {}


def _text_sizes(weights):
    has_bias = "text_projection.bias" in weights
    width, embed_dim = (
        weights["text_projection.weight"].shape[::-1]
        if has_bias
        else weights["text_projection"].shape
    )
    return {
        "embed_dim": embed_dim,
        "context_length": weights["positional_embedding"].shape[0],
        "vocab_size": weights["token_embedding.weight"].shape[0],
        "text_width": width,
        "text_layers": layer_count(weights, "transformer.resblocks."),
        "text_block": _switches(weights, ""),
        "text_projection_bias": has_bias,
    }


def _named_leaves(tree):
    """Yields (OpenAI name, path without its first key, leaf) of each leaf, in JAX's order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = tuple(entry.key for entry in path[1:])
        yield torch_name(path), path, leaf


def _check(weights, expected, source):
    shared = [name for name in expected if name in weights]
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} ({list(weights[name].shape)} here, {list(expected[name])} in the model)"
            for name in shared
            if weights[name].shape != expected[name]
        ],
        "not finite": [name for name in shared if not np.isfinite(weights[name]).all()],
    }
    if any(problems.values()):
        listed = "".join(_listed(kind, names) for kind, names in problems.items() if names)
        raise UserError(
            f"the weights of {source} do not fit the model, and nothing was changed:{listed}"
            + _settings_that_fit(weights, expected)
        )


def _settings_that_fit(weights, expected):
    """Names the settings with which the model has the shapes of the weights; "" if none do."""
    zeros = {name: np.broadcast_to(0.0, shape) for name, shape in expected.items()}
    theirs, ours = {}, {}
    for sizes in (_vision_sizes, _text_sizes, _bias_in):
        with contextlib.suppress(*_NO_SIZES):  # not of OpenAI's towers, or not taken
            own = sizes(zeros)
            theirs, ours = theirs | sizes(weights), ours | own
    # An image size makes no difference, because position embeddings are interpolated.
    changed = [
        f"config.model.{name}={theirs[name]} (here {ours.get(name)})"
        for name in theirs
        if name not in ("name", "image_size") and theirs[name] != ours.get(name)
    ]
    longer = ""
    if theirs.get("context_length", math.inf) < ours.get("context_length", 0):
        longer = ", or config.init_keep_positions=20, which stretches their positions"
    return f"\n  the weights need {', '.join(changed)}{longer}" if changed else ""


def _listed(kind, names):
    shown = "".join(f"\n    {name}" for name in names[:_LISTED])
    rest = f"\n    and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"\n  {kind} ({len(names)}):{shown}{rest}"


def _grid(positions):
    """Returns the side of the grid of 1 + side² positions, or None if there is no such side."""
    side = math.isqrt(max(positions - 1, 0))
    return side if side and 1 + side**2 == positions else None


def _interpolated(weights, expected, source):
    for name in (_VIT_POSITIONS, _RESNET_POSITIONS, _SIGLIP_POSITIONS):
        if name not in expected or name not in weights:
            continue
        old, shape = weights[name], expected[name]
        if old.shape == shape or old.ndim != len(shape) or old.shape[-1] != shape[-1]:
            continue
        is_siglips = name == _SIGLIP_POSITIONS  # without a row for the class token
        old_side, side = (_grid(rows + is_siglips) for rows in (old.shape[-2], shape[-2]))
        if old_side is None or side is None:
            continue  # `_check` reports the shapes
        logging.warning(
            "%s has position embeddings for %d×%d places of an image; they are interpolated "
            "to %d×%d.",
            source,
            old_side,
            old_side,
            side,
            side,
        )
        if is_siglips:
            old = np.concatenate([old[0, :1], old[0]])
        new = interpolate_positions(old, side)
        weights = {**weights, name: new[None, 1:] if is_siglips else new}
    return weights


def interpolate_positions(
    embedding: Float[np.ndarray, "1+old_side**2 width"], side: int
) -> Float[np.ndarray, "1+side**2 width"]:
    """Interpolates position embeddings to another grid: bicubic and antialiased, as open_clip does.

    Args:
      embedding: [1 + old_side², width]; the first row belongs to the class token or the mean.
      side: the side of the new grid.

    Returns:
      [1 + side², width] with the same dtype.
    """
    old_side = _grid(len(embedding))
    width = embedding.shape[1]
    grid = jnp.asarray(embedding[1:], jnp.float32).reshape(old_side, old_side, width)
    grid = jax.image.resize(grid, (side, side, width), "cubic", antialias=True)
    grid = np.asarray(grid, embedding.dtype).reshape(side * side, width)
    return np.concatenate([embedding[:1], grid])
