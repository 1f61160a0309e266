"""Gives our parameters the names that PyTorch users know.

"OpenAI names" are the names in OpenAI's CLIP; open_clip and the official CyCLIP code use them too.
transformers has names and layouts of its own. Weights are dicts {name: numpy array}.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# These rules, applied in order, turn one of our paths, joined by ".", into the OpenAI name.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^text\.token_embedding$", "token_embedding.weight"),
        (r"^text\.", ""),
        # timm's names of SigLIP's trunk
        (r"^(visual\.trunk)\.transformer\.resblocks\.", r"\1.blocks."),
        (r"^(visual\.trunk\.blocks\..*)\.ln_([12])\.", r"\1.norm\2."),
        (r"^(visual\.trunk\.blocks\..*)\.in_proj\.", r"\1.qkv."),
        (r"^(visual\.trunk\.blocks\..*)\.out_proj\.", r"\1.proj."),
        (r"^(visual\.trunk\.blocks\..*)\.c_fc\.", r"\1.mlp.fc1."),
        (r"^(visual\.trunk\.blocks\..*)\.c_proj\.", r"\1.mlp.fc2."),
        (r"^(visual\.trunk\.attn_pool)\.fc", r"\1.mlp.fc"),
        (r"^(visual\.trunk\.patch_embed)\.", r"\1.proj."),
        (r"\.stages\.(\d+)\.", lambda match: f".layer{int(match[1]) + 1}."),
        (r"\.downsample_conv\.", ".downsample.0."),
        (r"\.downsample_bn\.", ".downsample.1."),
        (r"(\.resblocks\.\d+)\.c_", r"\1.mlp.c_"),
        (r"(\.resblocks\.\d+)\.mlp_ln\.", r"\1.mlp.ln."),
        (r"(\.attn_pool\.attn\.[qkv]_proj)\.kernel$", r"\1_weight"),
        (r"\.in_proj\.kernel$", ".in_proj_weight"),
        (r"\.in_proj\.bias$", ".in_proj_bias"),
        (r"\.(kernel|scale)$", ".weight"),
        (r"\.(mean|var)$", r".running_\1"),
    )
)
# PyTorch's BatchNorm counts its batches beside each running mean; ours does not.
COUNT = "num_batches_tracked"


def torch_name(path: Iterable[str | int]) -> str:
    """Returns the OpenAI name of a parameter or statistic.

    Args:
      path: the keys of it in the model's tree, e.g. ("visual", "stages", 0, 1, "bn1", "scale").
    """
    name = ".".join(str(key) for key in path)
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def to_torch_layout(path: Sequence[str | int], array: np.ndarray) -> np.ndarray:
    """Orders the axes as PyTorch does.

    A convolution's kernel goes from [h, w, i, o] to [o, i, h, w], and a linear layer's from [i, o]
    to [o, i]. Everything else stays as it is.
    """
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch_layout(path: Sequence[str | int], array: np.ndarray) -> np.ndarray:
    """Undoes `to_torch_layout`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def layer_count(weights: Iterable[str], prefix: str) -> int:
    """Returns one more than the highest number in the names `<prefix><number>.…` of weights."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    matches = (pattern.match(name) for name in weights)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


# The names in transformers' CLIPModel, which spells "pre_layrnorm" like this.
_OUTSIDE_BLOCKS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCKS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_TRANSPOSED = ("visual.proj", "text_projection")  # OpenAI computes x @ W, transformers has a Linear
_QKV = "qkv"


def to_transformers(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames weights with OpenAI's names as transformers' CLIPModel does; for ViTs only."""
    renamed, fused = _transformers_names(weights)
    result = {
        theirs: weights[ours].T if ours in _TRANSPOSED else weights[ours]
        for ours, theirs in renamed.items()
        if ours in weights
    }
    for ours, theirs in fused.items():
        if ours in weights:
            result.update(zip(theirs, np.split(weights[ours], len(_QKV)), strict=True))
    return result


def from_transformers(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undoes `to_transformers`; names that it does not know stay as they are."""
    # Old files also hold the position numbers 0, 1, 2, …
    left = {name: array for name, array in weights.items() if not name.endswith("position_ids")}
    renamed, fused = _transformers_names(weights)
    result = {}
    for ours, theirs in renamed.items():
        if theirs in left:
            array = left.pop(theirs)
            result[ours] = array.T if ours in _TRANSPOSED else array
    for ours, theirs in fused.items():
        if all(name in left for name in theirs):
            result[ours] = np.concatenate([left.pop(name) for name in theirs])
    return result | left


def _transformers_names(weights):
    """Returns ({OpenAI name: their name}, {OpenAI name: their three, for query, key and value})."""
    renamed, fused = dict(_OUTSIDE_BLOCKS), {}
    for our_prefix, their_prefix in _BLOCKS.items():
        layers = max(layer_count(weights, our_prefix), layer_count(weights, their_prefix))
        for layer in range(layers):
            ours, theirs = f"{our_prefix}{layer}", f"{their_prefix}{layer}"
            for kind in ("weight", "bias"):
                for our_part, their_part in _IN_BLOCKS.items():
                    renamed[f"{ours}.{our_part}.{kind}"] = f"{theirs}.{their_part}.{kind}"
                fused[f"{ours}.attn.in_proj_{kind}"] = [
                    f"{theirs}.self_attn.{letter}_proj.{kind}" for letter in _QKV
                ]
    return renamed, fused
