"""Writes the folders that open_clip, the official CyCLIP code and transformers read.

Each writer takes (folder, checkpoint, tokenizer, dtype): an epath.Path, a Checkpoint whose `model`
is complete, a tokenizer of data/tokenizers.py, and the weights' dtype. It returns the names of the
files that hold all weights; the first of them is the one that is read back.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from cyclip_jax.data.tokenizers import Tokenizer
from cyclip_jax.errors import UserError
from cyclip_jax.files import write_atomically, write_json
from cyclip_jax.interop.checkpoint import Checkpoint, other_resizing
from cyclip_jax.interop.files import cast, write_pytorch, write_safetensors
from cyclip_jax.interop.folders import (
    CLIP_VOCAB_SIZE,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_PREPROCESS,
    TRANSFORMERS_CONFIG,
)
from cyclip_jax.interop.hf_tokenizer import tokenizer_files
from cyclip_jax.interop.names import COUNT, to_transformers
from cyclip_jax.models.presets import head_count
from cyclip_jax.models.towers import VISION_TOWERS, attention_width

_BICUBIC = 3  # PIL's number of the filter

# {format: {image tower that its readers have: the pool that it has there}}.
_OPENAIS = {"resnet": "attention", "vit": "class_token"}
READERS_TOWERS: dict[str, dict[str, str]] = {
    "open_clip": _OPENAIS,
    "cyclip": _OPENAIS,
    "transformers": {"vit": _OPENAIS["vit"]},
    "onnx": _OPENAIS,
}
# The formats that have a place for the bias of the sigmoid loss.
_WITH_BIAS = ("open_clip", "onnx")


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
    if "logit_bias" in checkpoint.weights and export_format not in _WITH_BIAS:
        raise UserError(
            f"{checkpoint.source} has a bias of the similarities, for which {export_format} has no "
            f"place; choose the format {' or '.join(_WITH_BIAS)}"
        )
    differing = other_resizing(checkpoint)
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


def _check_tower(checkpoint, export_format):
    """Raises UserError where the readers of a format have no such image tower, or no such pool."""
    own = checkpoint.model["vision_tower"], checkpoint.model["pool"]
    if own in READERS_TOWERS[export_format].items():
        return
    tower = VISION_TOWERS[own[0]].title
    if own[0] in READERS_TOWERS[export_format]:
        tower += f" with the pool {own[1]}"
    able = [name for name, towers in READERS_TOWERS.items() if own in towers.items()]
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
    which OpenAI's own `clip.load` takes as well; but not for a model with a bias.
    """
    weights = cast(checkpoint.weights, dtype)
    write_safetensors(folder / "open_clip_model.safetensors", weights)
    hf_tokenizer = not _is_clips(checkpoint)
    if hf_tokenizer:
        _write_files(folder, tokenizer_files(tokenizer))
    config = open_clip_config(checkpoint, hf_tokenizer=hf_tokenizer)
    write_json(folder / OPEN_CLIP_CONFIG, config)
    written = ["open_clip_model.safetensors"]
    # OpenAI's loader would refuse a bias.
    if importlib.util.find_spec("torch") is not None and "logit_bias" not in weights:
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


def open_clip_config(checkpoint: Checkpoint, *, hf_tokenizer: bool) -> dict[str, Any]:
    """Returns the content of open_clip_config.json.

    Args:
      checkpoint: a completed Checkpoint.
      hf_tokenizer: whether the folder holds a Hugging Face tokenizer; open_clip's own, which is
        CLIP's, is used otherwise.
    """
    model, width = checkpoint.model, checkpoint.model["vision_width"]
    channels = attention_width(model["vision_tower"], width)
    text = {
        "context_length": model["context_length"],
        "vocab_size": model["vocab_size"],
        "width": model["text_width"],
        "heads": model["text_heads"],
        "layers": model["text_layers"],
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
            "vision_cfg": {
                "image_size": model["image_size"],
                "layers": model["vision_layers"],
                "width": width,
                "head_width": channels // model["vision_heads"],
                "patch_size": model["patch_size"],
            },
            "text_cfg": text,
        },
        "preprocess_cfg": {
            theirs: checkpoint.preprocess[ours] for theirs, ours in OPEN_CLIP_PREPROCESS.items()
        },
    }


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
