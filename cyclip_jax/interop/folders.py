"""Reading what others wrote, and our own exports: files and folders with weights and settings."""

import dataclasses
import json

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute
from cyclip_jax.interop.files import read_weights
from cyclip_jax.interop.names import from_transformers
from cyclip_jax.interop.weights import sizes_of
from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD

# What an export says of itself, beside what its format has a place for.
DESCRIPTION = "cyclip_jax.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"
CLIP_VOCAB_SIZE = 49_408

_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# PIL's numbers of resampling filters.
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# Settings of open_clip's towers that change nothing here, and those that our towers have fixed.
_NO_MATTER = {"output_tokens", "patch_dropout", "pad_id", "eos_id", "hf_model_pretrained"}
_NO_MATTER |= {"timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop", "timm_drop_path"}
_NO_MATTER |= {"attn_pooler_queries", "attn_pooler_heads", "timm_proj_bias", "hf_proj_type"}
_NO_MATTER |= {"hf_pooler_type", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"}
_SIZES = {"image_size", "layers", "width", "head_width", "patch_size", "heads"}
_SIZES |= {"context_length", "vocab_size"}
_FIXED = {"mlp_ratio": (4, 4.0), "pool_type": ("tok", "argmax"), "proj_type": ("linear",)}
_FIXED |= {"pos_embed_type": ("learnable",)}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights, and what is known of how to use them.

    Attributes:
      source: where they come from, for messages.
      weights: {OpenAI name: numpy array}.
      model: keyword arguments of `create_model`: the sizes; numbers of heads and quick_gelu are
        absent where nothing tells them.
      tokenizer: {"tokenizer": name, "vocabulary": path or None} as in config.data; None: not ours.
      preprocess: {"image_mean", "image_std", "resize_mode", "interpolation"} in open_clip's terms.
      step: of the run; None where unknown.
      config: of the run, a ConfigDict with {workdir} as written; None but for a workdir.
      metrics: what the run wrote at that step, {name: number}; empty but for a workdir.
    """

    source: str
    weights: dict
    model: dict
    tokenizer: dict | None
    preprocess: dict
    step: int | None = None
    config: object = None
    metrics: dict = dataclasses.field(default_factory=dict)


OUR_PREPROCESS = {
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
    "resize_mode": "shortest",
    "interpolation": "bicubic",
}


def read_checkpoint(path):
    """Reads weights from any format but our workdirs.

    Args:
      path: a safetensors or PyTorch file, a folder of open_clip or transformers, or an export.

    Returns:
      A Checkpoint.

    Raises:
      UserError: what is not there, not such a file, or of an architecture that ours cannot express.
    """
    path = absolute(path)
    if not path.exists():
        raise UserError(f"there is no file or directory {path}")
    if not path.is_dir():
        description = _description(path.parent)
        if path.name not in description.get("weights", ()):
            description = {}
        return _assemble(path, path, description)
    if (path / DESCRIPTION).exists():
        description = _description(path)
        if not description["weights"]:
            raise UserError(
                f"{path} holds an {description['format']} export, from which no weights are read"
            )
        return _assemble(path, path / description["weights"][0], description)
    if (path / OPEN_CLIP_CONFIG).exists():
        return _assemble(path, _weight_file(path), _of_open_clip(path))
    if (path / TRANSFORMERS_CONFIG).exists():
        return _assemble(path, _weight_file(path), _of_transformers(path))
    return _assemble(path, _weight_file(path), {})


def check_settings(checkpoint, settings):
    """Raises UserError where a model computes otherwise than the checkpoint's, though it would fit.

    Args:
      checkpoint: a Checkpoint.
      settings: {"quick_gelu": …, "vision_heads": …, "text_heads": …} of the model.
    """
    differing = [
        f"{name} is {checkpoint.model[name]!r} there and {value!r} here"
        for name, value in settings.items()
        if checkpoint.model.get(name, value) != value
    ]
    if differing:
        raise UserError(
            f"the model of {checkpoint.source} is another one: {', '.join(differing)}; set "
            f"config.model.{differing[0].split()[0]} to its value"
        )


def _assemble(source, path, description):
    """The Checkpoint of a weight file, or of the index of several, and what is known of it."""
    weights = _openai_names(_read_all(path))
    sizes = sizes_of(weights, source=path)
    model = sizes | description.get("model", {})
    differing = [
        f"{name} is {value} in the settings and {sizes[name]} in the weights"
        for name, value in model.items()
        if name in sizes and name not in ("name", "image_size") and sizes[name] != value
    ]
    if differing:
        raise UserError(f"{source} contradicts itself: {', '.join(differing)}")
    is_clips_own = model["vocab_size"] == CLIP_VOCAB_SIZE
    by_size = {"tokenizer": "clip_bpe", "vocabulary": None} if is_clips_own else None
    return Checkpoint(
        source=str(source),
        weights=weights,
        model=model | {"image_size": sizes["image_size"]},
        tokenizer=description.get("tokenizer", by_size),
        preprocess=OUR_PREPROCESS | description.get("preprocess", {}),
        step=description.get("step"),
    )


def _read_all(path):
    if path.name.endswith(".index.json"):
        files = sorted(set(_json(path)["weight_map"].values()))
        return {k: v for file in files for k, v in read_weights(path.parent / file).items()}
    return read_weights(path)


def _openai_names(weights):
    if any(name.startswith(("vision_model.", "text_model.")) for name in weights):
        return from_transformers(weights)
    if "text.positional_embedding" in weights:  # open_clip's models with a text tower of its own
        return {name.removeprefix("text."): array for name, array in weights.items()}
    return weights


def _weight_file(folder):
    indices = sorted(folder.glob("*.index.json"))
    if indices:
        return indices[0]
    for name in _WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS))
    if len(files) == 1:
        return files[0]
    found = f"several: {', '.join(path.name for path in files)}; name one" if files else "none"
    raise UserError(f"{folder} should hold one file of weights, and holds {found}")


def _json(path, *keys):
    """The object in a file; UserError where it is none, or lacks one of the keys."""
    try:
        content = json.loads(epath.Path(path).read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for key in keys:
        if key not in content:
            raise UserError(f"{path} lacks {key!r}: it was not written by its program")
    return content


def _description(folder):
    """What an export says of itself, the path of its vocabulary made whole; {} if it is none."""
    path = folder / DESCRIPTION
    if not path.exists():
        return {}
    description = _json(path, "format", "weights", "model", "tokenizer", "preprocess", "step")
    if isinstance(description["model"].get("vision_layers"), list):
        description["model"]["vision_layers"] = tuple(description["model"]["vision_layers"])
    description["tokenizer"]["vocabulary"] = str(folder / description["tokenizer"]["vocabulary"])
    return description


def _of_open_clip(folder):
    config = _json(folder / OPEN_CLIP_CONFIG, "model_cfg")
    model = config["model_cfg"]
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    problems = [
        f"{tower}_cfg.{name} = {value!r}"
        for tower, settings in (("vision", vision), ("text", text))
        for name, value in settings.items()
        if name not in _NO_MATTER | _SIZES and value not in _FIXED.get(name, (None, False, {}))
    ]
    if problems:
        raise UserError(f"open_clip's model has what ours has not: {', '.join(problems)}")
    is_resnet = isinstance(vision.get("layers", 12), list)
    attention_width = vision.get("width", 768) * (32 if is_resnet else 1)
    description = {
        "model": {
            "quick_gelu": bool(model.get("quick_gelu", False)),
            "vision_heads": attention_width // vision.get("head_width", 64),
            "text_heads": text.get("heads", 8),
        },
        "preprocess": {
            ours: value
            for theirs, ours in (
                ("mean", "image_mean"),
                ("std", "image_std"),
                ("resize_mode", "resize_mode"),
                ("interpolation", "interpolation"),
            )
            if (value := config.get("preprocess_cfg", {}).get(theirs)) is not None
        },
    }
    if text.get("hf_tokenizer_name"):
        description["tokenizer"] = None
    return description


def _of_transformers(folder):
    config = _json(folder / TRANSFORMERS_CONFIG)
    if config.get("model_type") != "clip":
        raise UserError(
            f"{folder} is neither the workdir of a run nor a CLIP model of transformers: its "
            f"{TRANSFORMERS_CONFIG} says model_type {config.get('model_type')!r}"
        )
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (vision, text)}
    epsilons = {tower.get("layer_norm_eps", 1e-5) for tower in (vision, text)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"} or epsilons != {1e-5}:
        raise UserError(
            f"{folder} has activations {sorted(activations)} and LayerNorm epsilons "
            f"{sorted(epsilons)}; ours are quick_gelu or gelu in both towers, and 1e-5"
        )
    description = {
        "model": {
            "quick_gelu": activations == {"quick_gelu"},
            "vision_heads": vision.get("num_attention_heads", 12),
            "text_heads": text.get("num_attention_heads", 8),
        }
    }
    path = folder / "preprocessor_config.json"
    if path.exists():
        processor = _json(path)
        known = {name: processor[name] for name in ("image_mean", "image_std") if name in processor}
        filter_name = _RESAMPLING.get(processor.get("resample", 3), "another")
        crops = processor.get("do_center_crop", True)
        description["preprocess"] = known | {
            "interpolation": filter_name,
            "resize_mode": "shortest" if crops else "squash",
        }
    return description
