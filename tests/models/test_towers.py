"""Image towers by name, and configs from before they had names."""

import pytest
from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.models import PRESETS, create_model
from cyclip_jax.models.presets import SIZES, patch_grid, resolve_sizes
from cyclip_jax.models.resnet import ModifiedResNet
from cyclip_jax.models.siglip import SigLIPVisionTransformer
from cyclip_jax.models.towers import VISION_TOWERS, attention_width, tower_of_layers
from cyclip_jax.models.vit import VisionTransformer

MODULES = {
    "resnet": ModifiedResNet,
    "vit": VisionTransformer,
    "siglip": SigLIPVisionTransformer,
}
SMALL_VIT = {"vision_layers": 2, "vision_width": 64, "patch_size": 16}


def build(name, **overrides):
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **overrides)).visual


def test_every_preset_names_its_tower_and_every_tower_is_named():
    named = {resolve_sizes(name)["vision_tower"] for name in PRESETS}
    assert named == set(VISION_TOWERS) == set(MODULES)
    for name, preset in PRESETS.items():
        assert preset["vision_tower"] == resolve_sizes(name)["vision_tower"]
        assert resolve_sizes(name).keys() == set(SIZES)


@pytest.mark.parametrize("name, tower", [("RN-tiny", "resnet"), ("ViT-tiny", "vit")])
def test_the_named_tower_is_the_presets_own(name, tower):
    assert type(build(name)) is type(build(name, vision_tower=tower)) is MODULES[tower]
    assert resolve_sizes(name, vision_tower=tower) == resolve_sizes(name)


def test_a_preset_may_have_another_tower():
    sizes = resolve_sizes("RN-tiny", vision_tower="vit", **SMALL_VIT)
    assert patch_grid(sizes) == (4, 4)
    assert isinstance(build("RN-tiny", vision_tower="vit", **SMALL_VIT), VisionTransformer)
    layers = {"vision_layers": (1, 1, 1, 1), "vision_width": 16}
    sizes = resolve_sizes("ViT-tiny", vision_tower="resnet", **layers)
    assert (sizes["patch_size"], patch_grid(sizes)) == (None, None)
    assert sizes["vision_heads"] == 2  # the preset's
    assert isinstance(build("ViT-tiny", vision_tower="resnet", **layers), ModifiedResNet)


def test_where_no_tower_is_named_the_layers_say_which_it_is():
    """As in every config from before `vision_tower`, in a config.json as a list."""
    assert resolve_sizes("RN-tiny", **SMALL_VIT)["vision_tower"] == "vit"
    sizes = resolve_sizes("ViT-tiny", vision_layers=[1, 2, 1, 1])
    assert (sizes["vision_tower"], sizes["vision_layers"]) == ("resnet", (1, 2, 1, 1))
    assert tower_of_layers(12) == "vit"
    assert tower_of_layers((3, 4, 6, 3)) == "resnet"


@pytest.mark.parametrize("name, pool", [("RN-tiny", "attention"), ("ViT-tiny", "class_token")])
def test_a_tower_has_its_own_pool_where_none_is_named(name, pool):
    assert resolve_sizes(name)["pool"] == pool
    assert nnx.graphdef(build(name, pool=pool)) == nnx.graphdef(build(name))


def test_attention_is_as_wide_as_a_vit_and_as_a_resnets_last_stage():
    assert attention_width("vit", 768) == 768
    assert attention_width("resnet", 64) == 2048
    kernel = build("RN-tiny").attnpool.q_proj.kernel
    assert kernel.shape[0] == attention_width("resnet", PRESETS["RN-tiny"]["vision_width"])


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("RN-tiny", {"vision_tower": "convnext"}, "tower 'convnext'; choose one of resnet, vit"),
        (
            "RN-tiny",
            {"pool": "class_token"},
            "pool 'class_token'; choose one of a ResNet's: attention",
        ),
        ("ViT-tiny", {"pool": "map"}, "pool 'map'; choose one of a ViT's: class_token, mean, att"),
        ("ViT-tiny", {"text_pool": "mean"}, "unknown config.model.text_pool 'mean'"),
        ("ViT-tiny", {"vision_block": ("qk",)}, "unknown config.model.vision_block 'qk'"),
        ("RN-tiny", {"vision_positions": "sin_cos"}, "it has no choice of positions"),
        ("ViT-B/16-SigLIP", {}, "exact GELU; set config.model.quick_gelu to False"),
        (
            "RN-tiny",
            {"vision_tower": "vit"},
            r"\(1, 1, 1, 1\) does not suit a ViT; set it to the number",
        ),
        (
            "ViT-tiny",
            {"vision_tower": "resnet"},
            "2 does not suit a ResNet; set it to a tuple with the blocks",
        ),
        ("RN-tiny", {"vision_layers": (1, 2, 1)}, r"\(1, 2, 1\) suits no image tower.*four stages"),
        (
            "RN-tiny",
            {"vision_layers": "12"},
            "'12' must be a whole number.*or one for each of four",
        ),
        (
            "RN-tiny",
            {"vision_layers": 2},
            "a ViT needs config.model.patch_size, which RN-tiny does not",
        ),
        ("RN-tiny", {"patch_size": 8}, "does not apply to RN-tiny, a ResNet: it has no patches"),
    ],
)
def test_what_does_not_go_with_a_tower_is_said_in_one_sentence(name, overrides, message):
    with pytest.raises(UserError, match=message):
        create_model(name, rngs=nnx.Rngs(0), **overrides)
