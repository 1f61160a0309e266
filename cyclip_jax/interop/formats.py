"""Writes the folders that open_clip, the official CyCLIP code and transformers read.

Each writer takes (folder, checkpoint, tokenizer, dtype): an epath.Path, a Checkpoint whose `model`
is complete, a tokenizer of data/tokenizers.py, and the weights' dtype. It returns the names of the
files that hold all weights; the first of them is the one that is read back.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from cyclip_jax.data.tokenizers import Tokenizer
from cyclip_jax.errors import UserError
from cyclip_jax.files import write_atomically, write_json
from cyclip_jax.interop.checkpoint import OUR_PREPROCESS, Checkpoint
from cyclip_jax.interop.files import cast, write_pytorch, write_safetensors
from cyclip_jax.interop.folders import (
    CLIP_VOCAB_SIZE,
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
)
from cyclip_jax.interop.hf_tokenizer import tokenizer_files
from cyclip_jax.interop.names import COUNT, to_transformers
from cyclip_jax.interop.open_clip_config import open_clip_config, trunk_name
from cyclip_jax.models.presets import head_count
from cyclip_jax.models.towers import VISION_TOWERS, attention_width
from cyclip_jax.models.transformer import LAYER_NORM_EPSILON

_BICUBIC = 3  # PIL's number of the filter

# {format: {image tower that its readers have: the pools that it has there}}.
_OPENAIS = {"resnet": ("attention",), "vit": ("class_token",)}
_OPEN_CLIPS = {tower: kind.pools for tower, kind in VISION_TOWERS.items()}
READERS_TOWERS: dict[str, Mapping[str, Sequence[str]]] = {
    "open_clip": _OPEN_CLIPS,
    "cyclip": _OPENAIS,
    "transformers": {"vit": _OPENAIS["vit"]},
    "onnx": _OPEN_CLIPS,
}
# What of a model OpenAI's does not have, and all but open_clip's readers lack: {setting: (OpenAI's
# value, what the other values are in a sentence)}.
_OPENAIS_OWN = {
    "vision_block": ((), "blocks with {}"),
    "text_block": ((), "text blocks with {}"),
    "text_attention": ("causal", "{} attention of texts"),
    "text_pool": ("argmax", "texts that are read at the {} token"),
    "text_projection_bias": (False, "a text projection with a bias"),
    "text_epsilon": (LAYER_NORM_EPSILON, "text norms with the epsilon {}"),
}
# The formats in which models are open_clip's. They have a place for the sigmoid loss's bias, too.
_OF_OPEN_CLIP = ("open_clip", "onnx")


def check_format(checkpoint: Checkpoint, export_format: str) -> None:
    """Checks that a format can hold a model, and warns if its readers would compute another one.

    Args:
      checkpoint: a completed Checkpoint.
      export_format: "open_clip", "cyclip", "transformers" or "onnx".

    Raises:
      UserError: the format cannot hold the model.
    """
    tower, width = checkpoint.model["vision_tower"], checkpoint.model["vision_width"]
    _check_tower(checkpoint, export_format)
    others = _unlike_openais(checkpoint)
    if others and export_format not in _OF_OPEN_CLIP:
        raise UserError(
            f"{checkpoint.source} has {others[0]}, for which {export_format} has no place; choose "
            f"the format {' or '.join(_OF_OPEN_CLIP)}"
        )
    resizing = ("interpolation", "resize_mode")
    differing = [name for name in resizing if checkpoint.preprocess[name] != OUR_PREPROCESS[name]]
    if export_format in ("transformers", "onnx") and differing:
        raise UserError(
            f"{checkpoint.source} prepares its images with another {' and '.join(differing)}, "
            f"which the format {export_format} cannot express; choose the format open_clip"
        )
    # A bare state dict has no place for these settings: its readers derive them from the widths.
    assumed = {
        "quick_gelu": True,
        "vision_heads": head_count(attention_width(tower, width)),
        "text_heads": head_count(checkpoint.model["text_width"]),
    }
    other = {name: checkpoint.model[name] for name, value in assumed.items()}
    if export_format in ("open_clip", "cyclip") and other != assumed:
        logging.warning(
            "Readers of %s that know only OpenAI's models assume %s, and this model has %s.",
            "cyclip.pt" if export_format == "cyclip" else "openai.pt",
            assumed,
            other,
        )


def _unlike_openais(checkpoint):
    """What a model has besides its image tower that OpenAI's do not, in words."""
    others = [
        words.format(", ".join(value) if isinstance(value, tuple) else value)
        for name, (usual, words) in _OPENAIS_OWN.items()
        if (value := checkpoint.model[name]) not in (usual, None)
    ]
    return others + ["a bias of the similarities"] * ("logit_bias" in checkpoint.weights)


def _check_tower(checkpoint, export_format):
    """Raises UserError where the readers of a format have no such image tower, or no such pool."""
    kind, pool = checkpoint.model["vision_tower"], checkpoint.model["pool"]
    tower = VISION_TOWERS[kind].title
    if pool in READERS_TOWERS[export_format].get(kind, ()):
        if kind == "siglip" and trunk_name(checkpoint.model) is None:
            raise UserError(
                f"{checkpoint.source} has {tower} in a size for which timm, by which open_clip "
                "builds it, has no name; cyclip_jax.load reads the workdir itself"
            )
        return
    if kind in READERS_TOWERS[export_format]:
        tower += f" with the pool {pool}"
    able = [name for name, towers in READERS_TOWERS.items() if pool in towers.get(kind, ())]
    remedy = "cyclip_jax.load reads the workdir itself"
    if able:
        remedy = "choose the format " + ", ".join([*able[:-2], " or ".join(able[-2:])])
    raise UserError(
        f"{checkpoint.source} has {tower}, and {export_format} has no CLIP with {tower}; {remedy}"
    )


def write_open_clip(
    folder: epath.Path, checkpoint: Checkpoint, tokenizer: Tokenizer, dtype: str
) -> list[str]:
    """Writes a folder with its tokenizer, which open_clip loads as `local-dir:FOLDER`.

    If PyTorch is installed, the folder also gets openai.pt, a bare state dict under OpenAI's names,
    which OpenAI's own `clip.load` takes as well; but not for a model unlike OpenAI's.
    """
    weights = cast(checkpoint.weights, dtype)
    write_safetensors(folder / "open_clip_model.safetensors", weights)
    hf_tokenizer = not _is_clips(checkpoint)
    if hf_tokenizer:
        _write_files(folder, tokenizer_files(tokenizer))
    config = open_clip_config(checkpoint, hf_tokenizer=hf_tokenizer)
    write_json(folder / OPEN_CLIP_CONFIG, config)
    written = ["open_clip_model.safetensors"]
    # OpenAI's loader would refuse whatever OpenAI's models do not have.
    is_openais = checkpoint.model["pool"] in _OPENAIS.get(checkpoint.model["vision_tower"], ())
    is_openais &= not _unlike_openais(checkpoint)
    if importlib.util.find_spec("torch") is not None and is_openais:
        write_pytorch(folder / "openai.pt", _with_step(checkpoint, weights))
        written.append("openai.pt")
    return written


def write_cyclip(
    folder: epath.Path, checkpoint: Checkpoint, tokenizer: Tokenizer, dtype: str
) -> list[str]:
    """Writes cyclip.pt, which the official CyCLIP code evaluates as its --checkpoint."""
    del tokenizer  # the official code has CLIP's own tokenizer
    weights = _with_step(checkpoint, cast(checkpoint.weights, dtype))
    # "epoch" counts finished epochs: where the official code trains on, it starts with the next.
    epoch = checkpoint.metrics.get("epoch", 0)
    write_pytorch(folder / "cyclip.pt", weights, epoch=int(epoch), name="cyclip_jax")
    return ["cyclip.pt"]


def write_transformers(
    folder: epath.Path, checkpoint: Checkpoint, tokenizer: Tokenizer, dtype: str
) -> list[str]:
    """Writes what `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read."""
    weights = to_transformers(cast(checkpoint.weights, dtype))
    write_safetensors(folder / "model.safetensors", weights)
    write_json(folder / TRANSFORMERS_CONFIG, transformers_config(checkpoint, dtype))
    write_json(folder / "preprocessor_config.json", preprocessor_config(checkpoint))
    _write_files(folder, tokenizer_files(tokenizer))
    return ["model.safetensors"]


def transformers_config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json for transformers' CLIPModel."""
    model = checkpoint.model
    shared = {
        "hidden_act": "quick_gelu" if model["quick_gelu"] else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": model["embed_dim"],
    }
    end_of_text = model["vocab_size"] - 1
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": dtype,
        "projection_dim": model["embed_dim"],
        "logit_scale_init_value": float(checkpoint.weights["logit_scale"]),
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": model["vocab_size"],
            "max_position_embeddings": model["context_length"],
            "hidden_size": model["text_width"],
            "intermediate_size": 4 * model["text_width"],
            "num_hidden_layers": model["text_layers"],
            "num_attention_heads": model["text_heads"],
            "bos_token_id": end_of_text - 1,
            "eos_token_id": end_of_text,
            "pad_token_id": end_of_text if _is_clips(checkpoint) else 0,
            **shared,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": model["image_size"],
            "patch_size": model["patch_size"],
            "hidden_size": model["vision_width"],
            "intermediate_size": 4 * model["vision_width"],
            "num_hidden_layers": model["vision_layers"],
            "num_attention_heads": model["vision_heads"],
            **shared,
        },
    }


def preprocessor_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json for transformers' CLIPImageProcessor."""
    size = checkpoint.model["image_size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": checkpoint.preprocess["image_mean"],
        "image_std": checkpoint.preprocess["image_std"],
    }


def _is_clips(checkpoint):
    """Says whether the tokenizer is CLIP's own, which open_clip and the official code contain."""
    is_bpe = (checkpoint.tokenizer or {}).get("tokenizer") == "clip_bpe"
    return is_bpe and checkpoint.model["vocab_size"] == CLIP_VOCAB_SIZE


def _with_step(checkpoint, weights):
    """Sets BatchNorm's counts of batches as PyTorch would have them: one batch for each step."""
    return {
        name: np.asarray(checkpoint.step or 0) if name.endswith(COUNT) else array
        for name, array in weights.items()
    }


def _write_files(folder, files):
    for name, content in files.items():
        write_atomically(folder / name, content)


WRITERS: dict[str, Callable[[epath.Path, Checkpoint, Tokenizer, str], list[str]]] = {
    "open_clip": write_open_clip,
    "cyclip": write_cyclip,
    "transformers": write_transformers,
}
