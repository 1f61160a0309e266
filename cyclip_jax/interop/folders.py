"""Reads files and folders with weights and settings that other programs or our exports wrote."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cyclip_jax.data.transform import check_colours
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, how_written, parse_json
from cyclip_jax.interop.checkpoint import OUR_PREPROCESS, Checkpoint
from cyclip_jax.interop.files import read_weights
from cyclip_jax.interop.names import from_transformers
from cyclip_jax.interop.open_clip_config import settings_of_open_clip
from cyclip_jax.interop.weights import sizes_of
from cyclip_jax.runtime.sections import constructed
from cyclip_jax.runtime.setting_types import check_type

# The file in which an export describes itself: its format has no place for all of this.
DESCRIPTION = "cyclip_jax.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"
CLIP_VOCAB_SIZE = 49_408
# What a folder is read from, the first first: safetensors need no PyTorch.
_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
# The same, an index of their parts, and variants such as model.fp16.safetensors.
_NAMED_WEIGHTS = re.compile(
    r"(open_clip_)?(pytorch_)?model(\.\w+)?\.(safetensors|bin)(\.index\.json)?"
)
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

# PIL's numbers of resampling filters.
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint in any format except that of our workdirs.

    Args:
      path: a safetensors or PyTorch file, a folder of open_clip or transformers, or an export.

    Raises:
      UserError: the path does not exist, is of another kind, or holds an architecture that our
        models cannot express.
    """
    path = _folder_of_settings(absolute(path))
    settings = settings_of(path)
    if not path.is_dir():
        return _assemble(path, path, settings)
    files = settings.get("weights")
    return _assemble(path, path / files[0] if files else _weight_file(path), settings)


def settings_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the settings that lie beside weights, without reading the weights.

    Args:
      path: as for `read_checkpoint`. Of a file, only settings about that very file count.

    Returns:
      A dict with "model", "preprocess" and "tokenizer" as in a Checkpoint; a key is missing if
      nothing tells its value. The dict of an export has everything that it says of itself.

    Raises:
      UserError: as for `read_checkpoint`.
    """
    path = _folder_of_settings(absolute(path))
    if not path.exists():
        raise UserError(f"there is no file or directory {path}{how_written(path)}")
    told = _settings_of(path)
    _check_types(told, path if path.is_dir() else path.parent)
    return told


def _settings_of(path):
    """The dict of `settings_of` as it is written."""
    folder = path if path.is_dir() else path.parent
    description = _description(folder)
    if description and path.is_dir() and description["weights"] == []:
        raise UserError(
            f"{path} holds an {description['format']} export, from which no weights are read; give "
            "the checkpoint that was exported"
        )
    if description and (path.is_dir() or path.name in description["weights"]):
        return description
    if not path.is_dir() and not _is_described(path):
        return {}
    try:
        if (folder / OPEN_CLIP_CONFIG).exists():
            return settings_of_open_clip(folder, _json(folder / OPEN_CLIP_CONFIG, "model_cfg"))
        if (folder / TRANSFORMERS_CONFIG).exists():
            return _of_transformers(folder)
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"the settings in {folder} cannot be understood ({error!r}); give them as their "
            "program writes them"
        ) from error
    return {}


def _check_types(told, folder):
    """Raises UserError where the settings beside weights are not of the types that they must be."""
    for section in ("model", "preprocess"):
        check_type(f"{folder}: {section}", told.get(section, {}), Mapping)
    preprocess = OUR_PREPROCESS | told.get("preprocess", {})
    check_colours(str(folder), preprocess["image_mean"], preprocess["image_std"])
    kinds = {"vision_heads": int | None, "text_heads": int | None, "quick_gelu": bool | None}
    for name, kind in kinds.items():
        check_type(f"{folder}: {name}", told.get("model", {}).get(name), kind)
    tokenizer = told.get("tokenizer")
    check_type(f"{folder}: tokenizer", tokenizer, Mapping | None)
    if tokenizer is not None:
        constructed(_Tokenizer, tokenizer, f"{folder}: tokenizer")


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer of an export, as it must be written."""

    tokenizer: str
    vocabulary: str | None
    keep_end_of_text: bool = True


def _folder_of_settings(path):
    """The folder of a file of settings, which names the model as well as its folder does."""
    return (
        path.parent if path.name in (DESCRIPTION, OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG) else path
    )


def _is_described(path):
    """Says whether the settings in the folder of a file of weights, or an index, are about it."""
    if _NAMED_WEIGHTS.fullmatch(path.name):
        return True
    others = [other for other in path.parent.iterdir() if other.name.endswith(_ENDINGS)]
    if others != [path]:
        return False
    config = path.parent / TRANSFORMERS_CONFIG
    is_clip = config.exists() and _json(config).get("model_type") == "clip"
    return is_clip or (path.parent / OPEN_CLIP_CONFIG).exists()


def _assemble(source, path, description):
    """Makes a Checkpoint of a weight file, or the index of several, and what is known of it."""
    weights = openai_names(_read_all(path), path)
    sizes = sizes_of(weights, source=path)
    model = sizes | description.get("model", {})
    differing = [
        f"{name} is {value} in the settings and {sizes[name]} in the weights"
        for name, value in model.items()
        if name in sizes and name not in ("name", "image_size") and sizes[name] != value
    ]
    if differing:
        raise UserError(
            f"{source} contradicts itself: {', '.join(differing)}; give it the settings of these "
            "weights"
        )
    is_clips_own = model["vocab_size"] == CLIP_VOCAB_SIZE
    by_size = {"tokenizer": "clip_bpe", "vocabulary": None} if is_clips_own else None
    return Checkpoint(
        source=str(source),
        weights=weights,
        model=model | {"image_size": sizes["image_size"]},
        tokenizer=description.get("tokenizer", by_size),
        preprocess=description.get("preprocess", {}),
        vocabulary_sum=description.get("vocabulary_sum"),
        step=description.get("step"),
    )


def _read_all(path):
    if path.name.endswith(".index.json"):
        parts = _json(path, "weight_map")["weight_map"]
        check_type(f"{path}: weight_map", parts, Mapping)
        check_type(f"{path}: weight_map", list(parts.values()), Sequence[str])
        files = sorted(set(parts.values()))
        return {k: v for file in files for k, v in read_weights(path.parent / file).items()}
    return read_weights(path)


def openai_names(
    weights: dict[str, np.ndarray], source: str | os.PathLike[str]
) -> dict[str, np.ndarray]:
    """Renames weights to OpenAI's names, if they have those of open_clip or transformers."""
    if any(name.startswith(("vision_model.", "text_model.")) for name in weights):
        try:
            return from_transformers(weights)
        except ValueError as error:
            raise UserError(
                f"{source} has weights whose shapes do not fit each other ({error}); save the "
                "model again"
            ) from error
    if "text.positional_embedding" in weights:  # open_clip's models with a text tower of its own
        return {name.removeprefix("text."): array for name, array in weights.items()}
    return weights


def _weight_file(folder):
    names = [path.name for path in folder.iterdir()]
    chosen = weights_among(names)
    if chosen is not None:
        return folder / chosen
    files = sorted(name for name in names if name.endswith(_ENDINGS))
    found = f"several ({', '.join(files)})" if files else "none"
    raise UserError(
        f"{folder} is not the workdir of a run, and it should hold one file of weights but holds "
        f"{found}; name the file itself"
    )


def weights_among(names: Collection[str]) -> str | None:
    """The file of weights, or the index of several, that is read of a folder with these files.

    Returns:
      Its name; None where there is none, or no telling which is meant.
    """
    for name in _WEIGHT_FILES:
        for whole_or_index in (name, f"{name}.index.json"):
            if whole_or_index in names:
                return whole_or_index
    files = [name for name in names if name.endswith(_ENDINGS)]
    return files[0] if len(files) == 1 else None


def _json(path, *keys):
    """Reads an object from a JSON file; raises UserError if it is none or lacks one of the keys."""
    try:
        content = parse_json(epath.Path(path).read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not an object with settings; give the file "
            "that its program wrote"
        )
    for key in keys:
        if key not in content:
            raise UserError(f"{path} lacks {key!r}; give the file that its program wrote")
    return content


def _description(folder):
    """Reads what an export says of itself, with its vocabulary's full path; {} if it is none."""
    path = folder / DESCRIPTION
    if not path.exists():
        return {}
    description = _json(path, "format", "weights", "model", "tokenizer", "preprocess", "step")
    try:
        check_type(f"{path}: weights", description["weights"], Sequence[str])
        description["model"] = {
            name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for name, value in description["model"].items()
        }
        vocabulary = description["tokenizer"]["vocabulary"]
        description["tokenizer"]["vocabulary"] = str(folder / vocabulary)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be understood ({error!r}); give the file as the export wrote it"
        ) from error
    return description


def _of_transformers(folder):
    config = _json(folder / TRANSFORMERS_CONFIG)
    if config.get("model_type") != "clip":
        raise UserError(
            f"{folder} is neither the workdir of a run nor a CLIP model of transformers, because "
            f"its {TRANSFORMERS_CONFIG} says model_type {config.get('model_type')!r}; use another"
        )
    vision, text = (
        {**(config.get(f"{tower}_config") or {}), **(config.get(f"{tower}_config_dict") or {})}
        for tower in ("vision", "text")
    )
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (vision, text)}
    epsilons = {tower.get("layer_norm_eps", 1e-5) for tower in (vision, text)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"} or epsilons != {1e-5}:
        raise UserError(
            f"{folder} has the activations {sorted(activations)} and the LayerNorm epsilons "
            f"{sorted(epsilons)}, and our towers share quick_gelu or gelu and have 1e-5; choose "
            "another model"
        )
    # Old configs say 2, and transformers then looks for the largest id, as we do.
    last = text.get("vocab_size", CLIP_VOCAB_SIZE) - 1
    if text.get("eos_token_id", last) not in (2, last):
        raise UserError(
            f"{folder} reads texts at token {text['eos_token_id']}, and our model reads them at "
            f"the largest, {last}; choose another model"
        )
    return {
        "model": {
            "quick_gelu": activations == {"quick_gelu"},
            "vision_heads": vision.get("num_attention_heads", 12),
            "text_heads": text.get("num_attention_heads", 8),
        },
        "preprocess": _transformers_preprocess(folder),
    }


def _transformers_preprocess(folder):
    """Reads the preprocessing; transformers names the file otherwise from version 5 on."""
    if (folder / "preprocessor_config.json").exists():
        processor = _json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").exists():
        processor = _json(folder / "processor_config.json").get("image_processor", {})
    else:
        return {}
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    left_out = [step for step in steps if not processor.get(step, True)]
    if left_out or abs(255 * processor.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise UserError(
            f"{folder} prepares images without {', '.join(left_out) or 'scaling them to [0, 1]'}, "
            "which our preprocessing always does; choose another model"
        )
    size = processor.get("size", {})
    is_shortest = isinstance(size, int) or "shortest_edge" in size or not size
    known = {name: processor[name] for name in ("image_mean", "image_std") if processor.get(name)}
    return known | {
        "interpolation": _RESAMPLING.get(processor.get("resample", 3), "another"),
        "resize_mode": "shortest" if is_shortest else "squash",
    }
