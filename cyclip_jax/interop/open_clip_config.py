"""open_clip_config.json: what it says of a model, and how one of ours is written in it."""

import os
import re
from collections.abc import Mapping
from typing import Any

from cyclip_jax.errors import UserError
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.models.presets import PRESETS, head_count
from cyclip_jax.models.text import TEXT_POOLS
from cyclip_jax.models.towers import attention_width, tower_of_layers
from cyclip_jax.models.transformer import LAYER_NORM_EPSILON, SWITCHES
from cyclip_jax.models.vit import POOL_HEADS

# The keys of open_clip's preprocess_cfg, and what a Checkpoint calls them.
OPEN_CLIP_PREPROCESS = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "interpolation",
    "resize_mode": "resize_mode",
}

# Settings of open_clip's towers. The first three name a tokenizer; the next change nothing here.
_TOKENIZER = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
_NO_MATTER = (
    *("output_tokens", "patch_dropout", "pad_id", "hf_model_pretrained"),
    *("hf_proj_type", "hf_pooler_type", "timm_model_pretrained"),
    *("timm_drop", "timm_drop_path"),
)
_SIZES = (
    *("image_size", "layers", "width", "head_width", "patch_size", "heads"),
    *("context_length", "vocab_size"),
)
# What ours can have of the settings that both towers, the image tower or the text tower have.
_BOTH = {
    "mlp_ratio": (4, 4.0),
    "block_type": ("default", "custom"),
    **dict.fromkeys(SWITCHES, (True,)),
}
_POOLS = {"tok": "class_token", "avg": "mean"}
_VISION = {
    "pool_type": tuple(_POOLS),
    "pos_embed_type": ("learnable", "sin_cos_2d"),  # the weights tell which
    "attentional_pool": (True,),
    "attn_pooler_queries": (1,),
    "attn_pooler_heads": (POOL_HEADS,),
}
_TEXT = {
    "proj_type": ("linear",),
    "pool_type": TEXT_POOLS,
    "no_causal_mask": (True,),
    "proj_bias": (True,),
}
# timm's trunks of SigLIP's image towers: {size: the preset with it}, and what images they are for.
_TRUNK = re.compile(r"vit_(base|large)_patch16_siglip_(\d+)")
_TRUNKS = {"base": PRESETS["ViT-B/16-SigLIP"], "large": PRESETS["ViT-L/16-SigLIP-256"]}
_TRUNK_IMAGES = {"base": (224, 256, 384, 512), "large": (256, 384, 512)}
_OF_TRUNK = {"timm_pool": ("map",), "timm_proj": ("none",), "timm_proj_bias": ()}


def settings_of_open_clip(
    folder: str | os.PathLike[str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What an open_clip_config.json says of a model.

    Args:
      folder: where it lies, for messages.
      config: its content.

    Returns:
      {"model", "preprocess", and "tokenizer" where it is not ours}, as in a Checkpoint.

    Raises:
      UserError: the model has something that ours cannot have.
    """
    model = config["model_cfg"]
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    trunk = vision.get("timm_model_name")
    allowed = _BOTH | _VISION if trunk is None else {"timm_model_name": (trunk,), **_OF_TRUNK}
    problems = _problems("vision_cfg", vision, allowed) + _problems("text_cfg", text, _BOTH | _TEXT)
    named = None if trunk is None else _TRUNK.fullmatch(trunk)
    if trunk is not None and named is None:
        problems.insert(0, f"vision_cfg.timm_model_name = {trunk!r}")
    if problems:
        raise UserError(
            f"{folder} holds an open_clip model with settings that ours cannot have: "
            f"{', '.join(problems)}; choose another model"
        )
    size = vision.get("image_size", 224)
    if isinstance(size, list) and len(set(size)) > 1:
        raise UserError(
            f"{folder} holds an open_clip model for images of {size} pixels, and ours take square "
            "images; choose another model"
        )
    of_vision = _of_vision(vision) if named is None else _of_trunk(named[1])
    preprocess = config.get("preprocess_cfg", {})
    description: dict[str, Any] = {
        "model": {
            "quick_gelu": bool(model.get("quick_gelu", False)),
            **of_vision,
            **_of_text(text),
        },
        "preprocess": {
            ours: value
            for theirs, ours in OPEN_CLIP_PREPROCESS.items()
            if (value := preprocess.get(theirs)) is not None
        },
    }
    if any(text.get(name) for name in _TOKENIZER):
        description["tokenizer"] = None
    return description


def _problems(section, settings, allowed):
    """What of a tower's settings ours cannot have, ["section.name = value"]."""
    harmless = (*_NO_MATTER, *_TOKENIZER, *_SIZES)
    problems = [
        f"{section}.{name} = {value!r}"
        for name, value in settings.items()
        if name not in (*harmless, "norm_kwargs", "eos_id")
        and value not in (None, False, {}, *allowed.get(name, ()))
        and not (name.startswith("attn_pooler") and not settings.get("attentional_pool"))
    ]
    # An image tower's LayerNorm has PyTorch's epsilon.
    norm = dict(settings.get("norm_kwargs") or {})
    epsilon = norm.pop("eps", LAYER_NORM_EPSILON)
    if norm or (section == "vision_cfg" and epsilon != LAYER_NORM_EPSILON):
        problems.append(f"{section}.norm_kwargs = {settings['norm_kwargs']!r}")
    if settings.get("attentional_pool") and settings.get("attn_pooler_queries") != 1:
        queries = settings.get("attn_pooler_queries", 256)
        problems.append(f"{section}.attn_pooler_queries = {queries}")
    return list(dict.fromkeys(problems))


def _of_vision(vision):
    tower = tower_of_layers(vision.get("layers", 12))
    features = attention_width(tower, vision.get("width", 768))
    told = {"vision_heads": features // vision.get("head_width", 64)}
    if tower != "vit":
        return told
    pool = _POOLS[vision.get("pool_type", "tok")]
    return {
        **told,
        "pool": "attention" if vision.get("attentional_pool") else pool,
        "vision_block": _switches(vision),
    }


def _of_trunk(size):
    return {"vision_tower": "siglip", "vision_heads": head_count(_TRUNKS[size]["vision_width"])}


def _of_text(text):
    pool = text.get("pool_type", "argmax")
    return {
        "text_heads": text.get("heads", 8),
        "text_attention": "full" if text.get("no_causal_mask") else "causal",
        "text_pool": pool,
        **({"text_eos_id": text.get("eos_id", 2)} if pool == "eos" else {}),
        "text_epsilon": (text.get("norm_kwargs") or {}).get("eps", LAYER_NORM_EPSILON),
        "text_block": _switches(text),
    }


def _switches(settings):
    return tuple(name for name in SWITCHES if settings.get(name))


def trunk_name(model: Mapping[str, Any]) -> str | None:
    """timm's name of the trunk of a model with SigLIP's image tower; None where it has none."""
    same = ("vision_layers", "vision_width", "patch_size", "embed_dim")
    for size, preset in _TRUNKS.items():
        if (
            model["vision_heads"] == head_count(preset["vision_width"])
            and all(model[key] == preset[key] for key in same)
            and model["image_size"] in _TRUNK_IMAGES[size]
        ):
            return f"vit_{size}_patch16_siglip_{model['image_size']}"
    return None


def open_clip_config(checkpoint: Checkpoint, *, hf_tokenizer: bool) -> dict[str, Any]:
    """Returns the content of open_clip_config.json.

    Args:
      checkpoint: a completed Checkpoint.
      hf_tokenizer: whether the folder holds a Hugging Face tokenizer; open_clip's own, which is
        CLIP's, is used otherwise.
    """
    model = checkpoint.model
    text = {
        "context_length": model["context_length"],
        "vocab_size": model["vocab_size"],
        "width": model["text_width"],
        "heads": model["text_heads"],
        "layers": model["text_layers"],
        **_unusual_text(model),
    }
    if hf_tokenizer:
        # open_clip takes the tokenizer from the folder; the name says only which kind it is.
        text |= {"hf_tokenizer_name": "cyclip_jax", "tokenizer_kwargs": {"clean": "whitespace"}}
    bias = checkpoint.weights.get("logit_bias")
    return {
        "model_cfg": {
            "embed_dim": model["embed_dim"],
            **({} if bias is None else {"init_logit_bias": float(bias)}),
            "quick_gelu": model["quick_gelu"],
            "vision_cfg": _vision_cfg(model),
            "text_cfg": text,
        },
        "preprocess_cfg": {
            theirs: checkpoint.preprocess[ours] for theirs, ours in OPEN_CLIP_PREPROCESS.items()
        },
    }


def _vision_cfg(model):
    if model["vision_tower"] == "siglip":
        return {
            "image_size": model["image_size"],
            "timm_model_name": trunk_name(model),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        }
    channels = attention_width(model["vision_tower"], model["vision_width"])
    return {
        "image_size": model["image_size"],
        "layers": model["vision_layers"],
        "width": model["vision_width"],
        "head_width": channels // model["vision_heads"],
        "patch_size": model["patch_size"],
        **_unusual_vision(model),
    }


def _unusual_vision(model):
    """Settings of a ViT that open_clip's towers do not have by themselves."""
    if model["vision_tower"] != "vit":
        return {}
    unusual: dict[str, Any] = dict.fromkeys(model["vision_block"], True)
    if model["pool"] == "mean":
        unusual["pool_type"] = "avg"
    if model["pool"] == "attention":
        unusual |= {
            "attentional_pool": True,
            "attn_pooler_queries": 1,
            "attn_pooler_heads": POOL_HEADS,
        }
    if model["vision_positions"] == "sin_cos":
        unusual["pos_embed_type"] = "sin_cos_2d"
    return unusual


def _unusual_text(model):
    unusual: dict[str, Any] = dict.fromkeys(model["text_block"], True)
    if model["text_attention"] == "full":
        unusual["no_causal_mask"] = True
    if model["text_pool"] != "argmax":
        unusual["pool_type"] = model["text_pool"]
    if model["text_pool"] == "eos":
        unusual["eos_id"] = model["text_eos_id"]
    if model["text_projection_bias"]:
        unusual["proj_bias"] = True
    if model["text_epsilon"] != LAYER_NORM_EPSILON:
        unusual["norm_kwargs"] = {"eps": model["text_epsilon"]}
    return unusual
