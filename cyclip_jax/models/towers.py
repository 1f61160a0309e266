"""The kinds of image towers, by name."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.models import resnet, siglip, vit

Layers = int | tuple[int, ...]
# Settings of every transformer.
_EXECUTION = ("quick_gelu", "attention", "scan_blocks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTower:
    """A kind of image tower: how it is built, and what its settings mean.

    Attributes:
      title: what it is called in a sentence.
      build: function of the tower's settings that makes its module. The settings are those that
        every kind has, `shared` settings among them, and those in `own`.
      own: names of the settings that this kind has and others may lack.
      layers: function that turns `vision_layers` as it was given into what `build` takes. It raises
        TypeError for a value that belongs to another kind of tower.
      layers_are: what `vision_layers` must be, in words.
      attention_factor: channels of its attention for each of `vision_width`.
      grid: function of a model's sizes that returns the patches (h, w) of an image; None for a
        tower without patches.
      needs: sizes that must be set for it.
      lacks: {setting of the model that does not apply to it: what the tower does not have}.
      pools: names of the ways in which it makes one embedding of an image's places; the first is
        the default.
    """

    title: str
    build: Callable[..., nnx.Module]
    own: tuple[str, ...]
    layers: Callable[[Any], Layers]
    layers_are: str
    attention_factor: int
    grid: Callable[[Mapping[str, Any]], tuple[int, int] | None]
    needs: tuple[str, ...] = ()
    lacks: Mapping[str, str]
    pools: Sequence[str]

    def takes(self, layers: Any) -> bool:
        """Whether `vision_layers` are those of this kind of tower."""
        try:
            self.layers(layers)
        except TypeError:
            return False
        return True


def _stages(layers: Any) -> tuple[int, ...]:
    blocks = tuple(map(operator.index, layers))
    if len(blocks) != resnet.STAGES:
        raise TypeError(f"{len(blocks)} stages are not {resnet.STAGES}")
    return blocks


def _patches(sizes: Mapping[str, Any]) -> tuple[int, int]:
    side = sizes["image_size"] // sizes["patch_size"]
    return side, side


VISION_TOWERS: Mapping[str, VisionTower] = {
    "resnet": VisionTower(
        title="a ResNet",
        build=resnet.ModifiedResNet,
        own=("batch_norm_group_size",),
        layers=_stages,
        layers_are="a tuple with the blocks of its four stages",
        attention_factor=resnet.EXPANSION,
        grid=lambda sizes: None,
        lacks={
            "patch_size": "patches",
            "vision_positions": "choice of positions",
            "vision_block": "blocks of a transformer",
        },
        pools=tuple(resnet.POOLS),
    ),
    "vit": VisionTower(
        title="a ViT",
        build=vit.VisionTransformer,
        own=("patch_size", "positions", "switches", *_EXECUTION),
        layers=operator.index,
        layers_are="the number of its blocks",
        attention_factor=1,
        grid=_patches,
        needs=("patch_size",),
        lacks={"batch_norm_group_size": "BatchNorm"},
        pools=vit.POOLS,
    ),
    "siglip": VisionTower(
        title="SigLIP's ViT",
        build=siglip.SigLIPVisionTransformer,
        own=("patch_size", *_EXECUTION),
        layers=operator.index,
        layers_are="the number of its blocks",
        attention_factor=1,
        grid=_patches,
        needs=("patch_size",),
        lacks={
            "batch_norm_group_size": "BatchNorm",
            "vision_positions": "choice of positions",
            "vision_block": "switches",
        },
        pools=siglip.POOLS,
    ),
}


def tower_of_layers(layers: Any) -> str:
    """The name of the tower that takes such `vision_layers`: one number is a ViT's.

    Configs that are older than the setting `vision_tower`, and files of other projects, have only
    `vision_layers`, which still says which tower is meant.

    Args:
      layers: blocks, or the blocks of each stage.

    Raises:
      UserError: no tower takes such layers.
    """
    for name, tower in VISION_TOWERS.items():
        if tower.takes(layers):
            return name
    known = ", or ".join(f"{t.layers_are} for {t.title}" for t in VISION_TOWERS.values())
    raise UserError(
        f"config.model.vision_layers {layers!r} suits no image tower; set it to {known}"
    )


def attention_width(tower: str, width: int) -> int:
    """Channels of the attention of the image tower `tower` whose `vision_width` is `width`."""
    return VISION_TOWERS[tower].attention_factor * width
