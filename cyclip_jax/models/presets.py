"""Named model sizes, and `create_model`, which builds any size from one of them."""

import difflib
import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from cyclip_jax.errors import UserError, check_known
from cyclip_jax.models.class_head import ClassHead
from cyclip_jax.models.clip import CLIP, normalise_images, split_model
from cyclip_jax.models.initializers import keys_of, undrawn
from cyclip_jax.models.published import PRESETS
from cyclip_jax.models.rematerialisation import POLICIES
from cyclip_jax.models.text import TEXT_ATTENTIONS, TEXT_POOLS, TextTransformer
from cyclip_jax.models.towers import VISION_TOWERS, VisionTower, tower_of_layers
from cyclip_jax.models.transformer import LAYER_NORM_EPSILON, SWITCHES
from cyclip_jax.models.vit import POSITIONS, VisionTransformer
from cyclip_jax.parallel import Tree

_QUICK_GELU = "-quickgelu"  # open_clip's names end so where quick_gelu is True

# What makes a model: its image tower, and the sizes of both towers.
SIZES = (
    "image_size",
    "embed_dim",
    "vision_tower",
    "pool",
    "vision_layers",
    "vision_width",
    "vision_heads",
    "patch_size",
    "vision_positions",
    "vision_block",
    "context_length",
    "vocab_size",
    "text_width",
    "text_heads",
    "text_layers",
    "text_block",
    "text_attention",
    "text_pool",
    "text_eos_id",
    "text_projection_bias",
    "text_epsilon",
)
# What a size is where neither the preset nor anyone says otherwise.
_USUAL = {
    "vision_positions": "learned",
    "vision_block": (),
    "text_block": (),
    "text_attention": "causal",
    "text_pool": "argmax",
    "text_projection_bias": False,
    "text_epsilon": LAYER_NORM_EPSILON,
}
# {size: the names that it may be}, and of tuples, whose names they are.
_NAMES = {
    "vision_positions": POSITIONS,
    "text_attention": TEXT_ATTENTIONS,
    "text_pool": TEXT_POOLS,
}
_TUPLES_OF_NAMES = {"vision_block": SWITCHES, "text_block": SWITCHES}
# How a model is computed, not which it is: settings that a run and what is made of it may change.
EXECUTION = ("attention", "vision_remat", "text_remat", "scan_blocks")
_DTYPES = ("float32", "bfloat16", "float64")
_INITIAL_WEIGHTS_DTYPES = ("float32", "float16")


def resolve_sizes(name: str, **overrides: Any) -> dict[str, Any]:
    """Completes the sizes of a model.

    Args:
      name: a preset, by its own or open_clip's name.
      **overrides: any of SIZES; None is the preset's.

    Returns:
      {size: value} for all of SIZES.

    Raises:
      UserError: the preset, a size, the tower or the pool is unknown, or sizes do not fit together.
    """
    name = preset_named(name)
    unknown = sorted(set(overrides) - set(SIZES))
    if unknown:
        near = difflib.get_close_matches(unknown[0], SIZES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(SIZES)}"
        raise UserError(f"unknown model size {unknown[0]!r}{hint}")
    given = {key: value for key, value in overrides.items() if value is not None}
    _check_types(given)
    named = tower_in({"name": name, **given})
    tower = VISION_TOWERS[named["vision_tower"]]
    sizes: dict[str, Any] = dict.fromkeys(SIZES) | _USUAL | PRESETS[name] | given | named
    sizes |= {key: tuple(sizes[key]) for key in _TUPLES_OF_NAMES}
    _check_applicable(tower, name, given)
    sizes |= {key: None for key in tower.lacks if key in sizes}
    try:
        sizes["vision_layers"] = tower.layers(sizes["vision_layers"])
    except TypeError as error:
        raise UserError(
            f"config.model.vision_layers {sizes['vision_layers']!r} does not suit {tower.title}; "
            f"set it to {tower.layers_are}"
        ) from error
    for key in tower.needs:
        if sizes[key] is None:
            raise UserError(
                f"{tower.title} needs config.model.{key}, which {name} does not have; set it"
            )
    vision_features = tower.attention_factor * sizes["vision_width"]
    sizes["vision_heads"] = sizes["vision_heads"] or head_count(vision_features)
    sizes["text_heads"] = sizes["text_heads"] or head_count(sizes["text_width"])
    _check_heads("vision", vision_features, sizes["vision_heads"])
    _check_heads("text", sizes["text_width"], sizes["text_heads"])
    if sizes["text_eos_id"] is None:
        sizes["text_eos_id"] = sizes["vocab_size"] - 1  # as our tokenizers have it
    return sizes


def tower_in(settings: Mapping[str, Any]) -> dict[str, str]:
    """The names of the image tower and of its pool in settings like config.model.

    Where no `vision_tower` is given, `vision_layers` says which tower is meant, and without that
    the preset does. Configs that are older than the setting `vision_tower` rely on this.

    Args:
      settings: a model's settings; those that are absent or None are the preset's.

    Returns:
      {"vision_tower": name, "pool": name}.

    Raises:
      UserError: the preset, the tower or the pool is unknown.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    name = PRESETS[preset_named(settings["name"])]["vision_tower"]
    if "vision_tower" in given:
        name = given["vision_tower"]
    elif "vision_layers" in given and not VISION_TOWERS[name].takes(given["vision_layers"]):
        name = tower_of_layers(given["vision_layers"])
    check_known("config.model.vision_tower", name, VISION_TOWERS)
    tower = VISION_TOWERS[name]
    own, *_ = tower.pools
    pool = given.get("pool", own)
    if pool not in tower.pools:
        raise UserError(
            f"unknown config.model.pool {pool!r}; choose one of {tower.title}'s: "
            f"{', '.join(tower.pools)}"
        )
    return {"vision_tower": name, "pool": pool}


def preset_named(name: str, *, quick_gelu: bool = True) -> str:
    """The preset that a name means.

    Args:
      name: the preset's own name, or open_clip's, such as ViT-B-32 or ViT-B-32-quickgelu.
      quick_gelu: the setting of the model. A name without the ending "-quickgelu" goes with both.

    Returns:
      A key of PRESETS.

    Raises:
      UserError: there is no such preset, or the name says another activation than `quick_gelu`.
    """
    known = {preset.replace("/", "-"): preset for preset in PRESETS} | {own: own for own in PRESETS}
    size = name.removesuffix(_QUICK_GELU) if isinstance(name, str) else ""
    if size not in known:
        near = difflib.get_close_matches(size, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PRESETS)}"
        raise UserError(f"unknown config.model.name {name!r}; {hint}")
    if size != name and not quick_gelu:
        raise UserError(
            f"config.model.name {name!r} contradicts config.model.quick_gelu=False; set the name "
            f"to {size}, or quick_gelu to True"
        )
    return known[size]


def with_preset_named(config: Any) -> Any:
    """A copy of a config in which open_clip's name of the model is the preset's own."""
    config = config.copy_and_resolve_references()
    model = config.model
    with config.unlocked():
        model.name = preset_named(model.name, quick_gelu=model.quick_gelu)
    return config


def _check_types(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        where = f"config.model.{key}"
        if key in ("vision_tower", "pool", *_NAMES):
            if not isinstance(value, str):
                raise UserError(f"{where} {value!r} must be a name")
            if key in _NAMES:
                check_known(where, value, _NAMES[key])
        elif key in _TUPLES_OF_NAMES:
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise UserError(f"{where} {value!r} must be a tuple of names")
            for name in value:
                check_known(where, name, _TUPLES_OF_NAMES[key])
        elif key == "text_projection_bias":
            if not isinstance(value, bool):
                raise UserError(f"{where} {value!r} must be True or False")
        elif key == "text_epsilon":
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise UserError(f"{where} {value!r} must be a number above 0 and below 1")
        else:
            _check_whole(where, value, key == "vision_layers")


def _check_whole(where: str, value: Any, may_have_stages: bool) -> None:
    counts = value if may_have_stages and isinstance(value, list | tuple) else [value]
    if not all(isinstance(n, numbers.Integral) and int(n) >= 0 for n in counts):
        stages = ", or one for each of four stages" if may_have_stages else ""
        raise UserError(f"{where} {value!r} must be a whole number of at least 0{stages}")


def _check_applicable(tower: VisionTower, name: str, given: Mapping[str, Any]) -> None:
    for key, lacking in tower.lacks.items():
        if key in given:
            raise UserError(
                f"config.model.{key} does not apply to {name}, {tower.title}: it has no {lacking}"
            )


def _check_heads(tower: str, features: int, heads: int) -> None:
    if heads < 1 or features % heads:
        raise UserError(
            f"{features} {tower} channels do not divide into {heads} heads; "
            f"set config.model.{tower}_heads to a divisor of {features}"
        )


def sizes_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`resolve_sizes` of settings like config.model, which may hold more than sizes."""
    given = {size: settings[size] for size in SIZES if size in settings}
    return resolve_sizes(settings["name"], **given)


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings like config.model without EXECUTION, which say the same on every machine."""
    return {name: value for name, value in settings.items() if name not in EXECUTION}


def patch_grid(sizes: Mapping[str, Any]) -> tuple[int, int] | None:
    """(h, w) patches of an image for a model's resolved sizes; None for a tower without patches."""
    return VISION_TOWERS[sizes["vision_tower"]].grid(sizes)


def head_count(channels: int) -> int:
    """Heads of 64 channels, as in all of OpenAI's models."""
    return channels // 64


def create_model(
    name: str,
    *,
    rngs: nnx.Rngs,
    quick_gelu: bool = True,
    logit_bias: bool = False,
    num_classes: int | None = None,
    dtype: str = "float32",
    batch_norm_group_size: int | None = None,
    initial_weights_dtype: str = "float32",
    attention: str = "auto",
    vision_remat: str = "none",
    text_remat: str = "none",
    scan_blocks: bool = False,
    **overrides: int | Sequence[int] | str | None,
) -> CLIP:
    """Builds a CLIP model with float32 parameters.

    Args:
      name: a preset, e.g. "RN50" or "ViT-B/32" (see PRESETS), or open_clip's name of it.
      rngs: nnx.Rngs for the initial parameters.
      quick_gelu: whether to use x·σ(1.702 x), as OpenAI's models do, or the exact GELU.
      logit_bias: whether the model has a bias of the similarities, for the sigmoid loss.
      num_classes: rows of a head for classes, which fine-tuning trains; None is no head.
      dtype: compute type of the towers, "float32", "bfloat16" (or "float64" under x64).
      batch_norm_group_size: images per group of BatchNorm statistics; None is the whole batch.
      initial_weights_dtype: "float32", or "float16", to which OpenAI's code rounds the weights that
        `round_to_float16` names.
      attention: how transformers compute attention: "xla", "cudnn" (bfloat16 on NVIDIA's GPUs),
        "pallas" (a kernel for TPUs), or "auto", which is "cudnn" wherever that is possible.
      vision_remat: what the image tower's blocks keep for the gradient: "none", all activations;
        "dots", outputs of matrix products and convolutions; "full", nothing but their inputs.
      text_remat: the same for the text tower.
      scan_blocks: whether a transformer's blocks are computed as one loop, which compiles faster
        but, without remat, keeps more of every block.
      **overrides: any of SIZES, e.g. image_size=64, vision_tower="vit" or
        vision_layers=(1, 1, 1, 1).

    Returns:
      A CLIP module.

    Raises:
      UserError: a name, a size or a type is unknown, sizes do not fit together, or the attention
        cannot be computed here.
    """
    name = preset_named(name, quick_gelu=quick_gelu)
    sizes = resolve_sizes(name, **overrides)
    check_known("config.model.vision_remat", vision_remat, POLICIES)
    check_known("config.model.text_remat", text_remat, POLICIES)
    check_known("config.model.dtype", dtype, _DTYPES)
    check_known(
        "config.model.initial_weights_dtype", initial_weights_dtype, _INITIAL_WEIGHTS_DTYPES
    )
    tower = VISION_TOWERS[sizes["vision_tower"]]
    grouped = {"batch_norm_group_size": batch_norm_group_size}
    _check_applicable(
        tower, name, {key: value for key, value in grouped.items() if value is not None}
    )
    shared = {"embed_dim": sizes["embed_dim"], "dtype": jnp.dtype(dtype), "rngs": keys_of(rngs)}
    transformer = {"quick_gelu": quick_gelu, "attention": attention, "scan_blocks": scan_blocks}
    own = {
        "patch_size": sizes["patch_size"],
        "positions": sizes["vision_positions"],
        "switches": sizes["vision_block"],
        **grouped,
        **transformer,
    }
    visual = tower.build(
        image_size=sizes["image_size"],
        layers=sizes["vision_layers"],
        width=sizes["vision_width"],
        heads=sizes["vision_heads"],
        pool=sizes["pool"],
        remat=vision_remat,
        **{key: own[key] for key in tower.own},
        **shared,
    )
    text = _text_tower(sizes, remat=text_remat, **transformer, **shared)
    head = None if num_classes is None else ClassHead(sizes["embed_dim"], num_classes)
    model = CLIP(visual, text, has_logit_bias=logit_bias, class_head=head)
    if initial_weights_dtype == "float16":
        round_to_float16(model)
    return model


def _text_tower(sizes, **arguments):
    return TextTransformer(
        context_length=sizes["context_length"],
        vocab_size=sizes["vocab_size"],
        width=sizes["text_width"],
        layers=sizes["text_layers"],
        heads=sizes["text_heads"],
        switches=sizes["text_block"],
        is_causal=sizes["text_attention"] == "causal",
        pool=sizes["text_pool"],
        eos_id=sizes["text_eos_id"],
        has_projection_bias=sizes["text_projection_bias"],
        epsilon=sizes["text_epsilon"],
        **arguments,
    )


def abstract_model(
    settings: Mapping[str, Any], *, sharding: jax.sharding.Sharding | None = None
) -> tuple[nnx.GraphDef[Any], nnx.GraphDef[Any], dict[str, Tree]]:
    """The structure and the shapes of `create_model(**settings)`, without computing anything.

    Args:
      settings: arguments of `create_model` except rngs, e.g. config.model.
      sharding: the sharding of every array; None leaves it open.

    Returns:
      (train_graphdef, graphdef, {"params": …, "batch_stats": …}): the module without its numbers in
      training and in evaluation mode, and nested dicts of jax.ShapeDtypeStruct with the sharding.
    """
    with undrawn():
        model = nnx.eval_shape(lambda: create_model(**settings, rngs=nnx.Rngs(0)))
    model.train()
    train_graphdef, _, _ = split_model(model)
    model.eval()
    graphdef, params, batch_stats = split_model(model)
    tree = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        {"params": params, "batch_stats": batch_stats},
    )
    return train_graphdef, graphdef, tree


def round_to_float16(model: nnx.Module) -> None:
    """Rounds weights in place to the nearest float16; their dtype stays.

    They are those that OpenAI keeps in float16: the weights and biases of convolutions and linear
    layers, also in attention, and the projections `text_projection` and `proj`. Embeddings, norms
    and the logit scale stay as they are.
    """
    for _, module in nnx.iter_modules(model):
        match module:
            case nnx.Conv() | nnx.Linear():
                weights = module.kernel, module.bias
            case TextTransformer() if isinstance(module.text_projection, nnx.Param):
                weights = (module.text_projection,)
            case VisionTransformer():
                weights = (module.proj,)
            case _:
                weights = ()
        for weight in weights:
            if weight is not None:  # as the bias of a layer without one
                weight[...] = _nearest_float16(weight[...])


def _nearest_float16(x):
    """The nearest float16 numbers, in the dtype of x."""
    # Not two conversions: XLA may leave out both.
    normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    subnormal = jnp.round(x * 2**24) / 2**24
    return jnp.where(jnp.abs(x) < 2**-14, subnormal, normal)


def normaliser(config: Any) -> Callable[[UInt8[Array, "n h w 3"]], Float[Array, "n h w 3"]]:
    """The function from uint8 images to what the image tower takes.

    Args:
      config: a ConfigDict with the sections `model` and `data`.
    """
    return functools.partial(
        normalise_images,
        dtype=jnp.dtype(config.model.dtype),
        mean=config.data.image_mean,
        std=config.data.image_std,
    )
