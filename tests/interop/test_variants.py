"""Towers unlike OpenAI's are those of open_clip and timm: embeddings, gradients, names, files."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from benchmarks import parity
from cyclip_jax.errors import UserError
from cyclip_jax.interop import to_torch
from cyclip_jax.interop.checkpoint import OUR_PREPROCESS
from cyclip_jax.interop.files import write_safetensors
from cyclip_jax.interop.folders import settings_of
from cyclip_jax.interop.formats import check_format
from cyclip_jax.interop.open_clip_config import open_clip_config, settings_of_open_clip, trunk_name
from cyclip_jax.interop.pretrained import completed, load, open_checkpoint, verified
from cyclip_jax.interop.weights import sizes_of
from cyclip_jax.models.presets import PRESETS, resolve_sizes
from cyclip_jax.models.vit import sin_cos_positions
from tests.interop.models import VIT, drawn_checkpoint, drawn_model, embed, some_inputs
from tests.pytorch import open_clip, timm, torch

SIGLIP = {
    **VIT,
    "name": "ViT-B/16-SigLIP",
    "embed_dim": VIT["vision_width"],
    "quick_gelu": False,
}


*MANY, LAST = parity.VARIANTS


@pytest.mark.parametrize("model", [*MANY, pytest.param(LAST, marks=pytest.mark.slow)])
def test_the_first_step_is_that_of_open_clip(model):
    case = parity.draw_training_case(model)
    ours = parity.our_trainer(case, "float64")(steps=1)
    theirs = parity.train_in_torch(case, "float64", steps=1)
    assert max(parity.loss_errors(ours, theirs)) <= 1e-12
    gradients, keys = parity.tensor_errors(ours.gradients, theirs.gradients)
    weights, _ = parity.tensor_errors(ours.weights, theirs.weights)
    print(parity.worst(gradients), parity.worst(keys), parity.worst(weights))
    assert parity.worst(gradients)[1] <= 1e-7 and parity.worst(keys)[1] <= 1e-12
    assert parity.worst(weights)[1] <= 1e-7


def siglip_trunk():
    """timm's trunk of the size of SIGLIP, and our model with its weights."""
    trunk = timm.models.VisionTransformer(
        img_size=SIGLIP["image_size"],
        patch_size=SIGLIP["patch_size"],
        embed_dim=SIGLIP["vision_width"],
        depth=SIGLIP["vision_layers"],
        num_heads=SIGLIP["vision_heads"],
        class_token=False,
        global_pool="map",
        num_classes=0,
    ).eval()
    weights = to_torch(drawn_model(SIGLIP))
    own = {
        name.removeprefix("visual.trunk."): torch.tensor(array)
        for name, array in weights.items()
        if name.startswith("visual.trunk.")
    }
    trunk.load_state_dict(own)  # every name and shape must be right
    return trunk


def test_siglips_image_tower_is_that_of_timm():
    images, tokens = some_inputs(SIGLIP)
    with torch.no_grad():
        expected = siglip_trunk()(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    found, *_ = embed(drawn_model(SIGLIP), images, tokens)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@functools.cache
def of_open_clip(**settings):
    """(a Checkpoint, the configuration that open_clip gets of it)."""
    checkpoint = verified(completed(drawn_checkpoint({**VIT, **settings}, None)))
    return checkpoint, open_clip_config(checkpoint, hf_tokenizer=False)


VARIANTS = (
    {"vision_block": ("qk_norm", "scale_heads"), "text_block": ("scale_fc",)},
    {"pool": "mean", "text_attention": "full", "text_pool": "eos", "text_eos_id": 7},
    {"pool": "attention", "embed_dim": 16, "vision_positions": "sin_cos", "text_pool": "last"},
    {"text_projection_bias": True, "text_epsilon": 1e-6, "text_pool": "first"},
)


@pytest.mark.parametrize("settings", VARIANTS)
def test_what_is_written_for_open_clip_is_read_back(settings, tmp_path):
    checkpoint, config = of_open_clip(**settings)
    model = open_clip.CLIP(**config["model_cfg"])
    parity.load(model, checkpoint.weights)
    told = sizes_of(checkpoint.weights, source="x")
    told |= settings_of_open_clip("x", config)["model"]
    differing = {
        name: value
        for name, value in told.items()
        if name != "name" and value != checkpoint.model[name]
    }
    assert differing == {}
    assert told.get("text_eos_id") == settings.get("text_eos_id")


@pytest.mark.parametrize(
    "settings, words",
    [
        (VARIANTS[0], "blocks with qk_norm, scale_heads"),
        (VARIANTS[1], "a ViT with the pool mean"),
        ({"text_attention": "full"}, "full attention of texts"),
        (VARIANTS[3], "texts that are read at the first token"),
        ({"text_projection_bias": True}, "a text projection with a bias"),
    ],
)
@pytest.mark.parametrize("export_format", ["cyclip", "transformers"])
def test_formats_without_a_place_for_it_refuse_it(settings, words, export_format):
    checkpoint, _ = of_open_clip(**settings)
    with pytest.raises(UserError, match=f"has {words}.*choose the format open_clip or onnx"):
        check_format(checkpoint, export_format)


@pytest.mark.parametrize(
    "section, setting, message",
    [
        ("vision_cfg", {"ls_init_value": 1e-5}, r"vision_cfg\.ls_init_value = 1e-05"),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6}}, r"vision_cfg\.norm_kwargs"),
        ("vision_cfg", {"attentional_pool": True}, r"attn_pooler_queries = 256"),
        ("vision_cfg", {"final_ln_after_pool": True}, "final_ln_after_pool"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_clip_224"}, "timm_model_name"),
        ("text_cfg", {"embed_cls": True}, "embed_cls"),
        ("text_cfg", {"pool_type": "none"}, "pool_type"),
        ("text_cfg", {"scaled_cosine_attn": True}, "scaled_cosine_attn"),
    ],
)
def test_what_ours_cannot_have_is_named(section, setting, message):
    _, config = of_open_clip()
    model = {**config["model_cfg"], section: config["model_cfg"][section] | setting}
    with pytest.raises(UserError, match=message):
        settings_of_open_clip("x", {"model_cfg": model})


def test_every_preset_of_siglip_is_open_clips():
    for name in ("ViT-B/16-SigLIP", "ViT-L/16-SigLIP-256"):
        config = open_clip.get_model_config(name.replace("/", "-"))
        sizes = resolve_sizes(name)
        trunk = config["vision_cfg"]["timm_model_name"]
        assert trunk_name(sizes) == trunk
        told = settings_of_open_clip("x", {"model_cfg": config})["model"]
        assert {key: value for key, value in told.items() if key in sizes} == {
            key: sizes[key] for key in told if key in sizes
        }
        assert told["quick_gelu"] is False


@pytest.mark.parametrize("name", [name for name in PRESETS if "tiny" not in name])
def test_every_preset_has_the_sizes_of_open_clips_model(name):
    config = open_clip.get_model_config(name.replace("/", "-"))
    sizes, vision, text = resolve_sizes(name), config["vision_cfg"], config["text_cfg"]
    assert config["embed_dim"] == sizes["embed_dim"]
    assert vision["image_size"] == sizes["image_size"]
    if "layers" in vision:
        layers = vision["layers"]
        assert sizes["vision_layers"] == (layers if isinstance(layers, int) else tuple(layers))
        assert (vision["width"], vision["patch_size"]) == (
            sizes["vision_width"],
            sizes["patch_size"],
        )
    keys = {"context_length": "context_length", "vocab_size": "vocab_size", "width": "text_width"}
    keys |= {"heads": "text_heads", "layers": "text_layers"}
    assert {key: text[key] for key in keys} == {key: sizes[own] for key, own in keys.items()}


@pytest.mark.parametrize("settings", VARIANTS[2:])
def test_another_image_size_keeps_what_does_not_train(settings):
    """Learned positions are interpolated, and computed ones are computed again."""
    checkpoint, _ = of_open_clip(**settings)
    larger = verified(completed(checkpoint, image_size=64))
    positions = larger.weights["visual.positional_embedding"]
    assert len(positions) == 1 + (64 // VIT["patch_size"]) ** 2
    table = sin_cos_positions(VIT["vision_width"], 8)
    is_computed = "vision_positions" in settings
    assert np.array_equal(positions, table) == is_computed


def test_a_folder_of_open_clip_with_such_a_model_opens(tmp_path):
    checkpoint, config = of_open_clip(**VARIANTS[1])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "open_clip_model.safetensors", checkpoint.weights)
    opened = completed(open_checkpoint(tmp_path))
    assert opened.model["pool"] == "mean" and opened.model["text_attention"] == "full"
    assert settings_of(tmp_path)["model"]["text_eos_id"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.SLOW)
def test_every_other_preset_embeds_as_open_clip(x64, name):
    """In float64: the rounding of float32 grows with the depth, to 2e-5 in RN50x64."""
    case = parity.draw_case(name, **parity.SLOW[name])
    theirs = parity.load(parity.open_clip_model(case.sizes), case.weights).double()
    expected = parity.open_clip_embeddings(theirs, case.batch, torch.float64)
    found = parity.our_encoder(name, case.sizes, dtype="float64")(case.weights, case.batch)
    assert found[0].dtype == expected[0].dtype == np.float64
    assert max(parity.embedding_differences(found, expected)) <= 1e-9


@pytest.mark.slow
def test_open_clip_opens_an_export_with_siglips_tower(tmp_path):
    settings = {"name": "ViT-B/16-SigLIP", "quick_gelu": False, **parity.SMALL_TEXT}
    made = drawn_checkpoint(resolve_sizes("ViT-B/16-SigLIP", **parity.SMALL_TEXT) | settings, None)
    checkpoint = dataclasses.replace(
        completed(made, quick_gelu=False),
        preprocess=OUR_PREPROCESS | {"resize_mode": "squash", "image_mean": [0.5] * 3},
    )
    config = open_clip_config(checkpoint, hf_tokenizer=False)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "open_clip_model.safetensors", checkpoint.weights)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    ours, preprocess, _ = load(tmp_path)
    images, tokens = some_inputs(checkpoint.model, n=2)
    with torch.no_grad():
        theirs = model.eval()(
            torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
        )
    for own, other in zip(embed(ours, images, tokens), theirs, strict=False):
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=2e-5)
    assert preprocess(np.zeros((20, 40, 3), np.uint8)).shape == (1, 224, 224, 3)
