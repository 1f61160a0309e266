"""Models by the names that open_clip has for them."""

import json

import pytest

from cyclip_jax import defaults
from cyclip_jax.errors import UserError
from cyclip_jax.models import PRESETS
from cyclip_jax.models.presets import (
    abstract_model,
    preset_named,
    resolve_sizes,
    tower_in,
    with_preset_named,
)
from cyclip_jax.workdir.config_json import check_same_model, write_config


@pytest.mark.parametrize(
    "theirs, own",
    [
        ("ViT-B-32", "ViT-B/32"),
        ("ViT-B-16", "ViT-B/16"),
        ("ViT-L-14", "ViT-L/14"),
        ("ViT-B-32-quickgelu", "ViT-B/32"),
        ("RN50-quickgelu", "RN50"),
        ("RN50x4", "RN50x4"),
        ("ViT-L-14-336", "ViT-L/14-336"),
        ("ViT-B-16-SigLIP", "ViT-B/16-SigLIP"),
    ],
)
def test_a_name_of_open_clip_is_that_of_a_preset(theirs, own):
    assert preset_named(theirs) == own
    assert resolve_sizes(theirs) == resolve_sizes(own)
    assert tower_in({"name": theirs}) == tower_in({"name": own})
    assert all(preset_named(name, quick_gelu=False) == name for name in PRESETS)


def test_a_name_that_contradicts_the_activation_is_refused():
    assert preset_named("ViT-B-32", quick_gelu=False) == "ViT-B/32"
    with pytest.raises(
        UserError, match=r"contradicts .*quick_gelu=False; set the name to ViT-B-32,"
    ):
        abstract_model({"name": "ViT-B-32-quickgelu", "quick_gelu": False})


@pytest.mark.parametrize(
    "misspelt, near",
    [
        ("ViT-B-23", "ViT-B-32"),
        ("ViTB/32", "ViT-B/32"),
        ("RN-50", "RN50"),
        ("ViT-L-14-337", "ViT-L-14-336"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(misspelt, near):
    with pytest.raises(
        UserError, match=f"unknown config.model.name {misspelt!r}; did you mean {near}"
    ):
        preset_named(misspelt)
    with pytest.raises(UserError, match=r"'EVA'; choose one of RN50, .*ViT-L/14"):
        preset_named("EVA")


def test_what_is_recorded_is_the_presets_own_name(tmp_path):
    config = defaults.get_config()
    config.model.name = "ViT-B-32-quickgelu"
    named = with_preset_named(config.lock())
    assert config.model.name == "ViT-B-32-quickgelu" and named.is_locked
    write_config(named, tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["config"]["model"]["name"] == "ViT-B/32"
    )
    config.model.name = "ViT-B-32"
    check_same_model(with_preset_named(config), tmp_path)
