"""Folders that others read, and that come back bit by bit."""

import dataclasses
import json

import numpy as np
import pytest

from cyclip_jax.data.tokenizers import create_tokenizer, train_sentencepiece
from cyclip_jax.errors import UserError
from cyclip_jax.export import export_checkpoint
from cyclip_jax.interop import formats, load_torch, to_torch
from cyclip_jax.interop.files import write_pytorch, write_safetensors
from cyclip_jax.interop.folders import read_checkpoint
from cyclip_jax.interop.formats import READERS_TOWERS, WRITERS, check_format, write_open_clip
from cyclip_jax.interop.names import COUNT, to_transformers
from cyclip_jax.interop.pretrained import load
from cyclip_jax.interop.weights import fit
from cyclip_jax.models.towers import VISION_TOWERS
from tests.interop.models import (
    RESNET,
    SMALL,
    VIT,
    abstract,
    drawn_checkpoint,
    drawn_model,
    drawn_weights,
    embed,
    some_inputs,
)
from tests.pytorch import open_clip, torch

ONNX = json.dumps(
    {
        "format": "onnx",
        "weights": [],
        "model": {},
        "tokenizer": {"vocabulary": "tokenizer.model"},
        "preprocess": {},
        "step": 1,
    }
)
EOS = json.dumps({"model_type": "clip", "text_config": {"eos_token_id": 7}})
NULLS = json.dumps({"model_cfg": {"vision_cfg": None}})
CAPTIONS = ["a red square", "two blue rings", "a grey cross", "the green bar"] * 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(CAPTIONS, vocab_size=40, output=str(path))
    return create_tokenizer("sentencepiece", vocab_size=40, context_length=9, vocabulary=str(path))


def checkpoint(settings, tokenizer, **changes):
    own = {"tokenizer": "sentencepiece", "vocabulary": tokenizer.vocabulary}
    made = drawn_checkpoint(settings, own)
    return dataclasses.replace(made, model=made.model | changes)


FORMATS = [
    (tower, name)
    for tower in SMALL
    for name in WRITERS
    if (tower, name) != ("resnet", "transformers")
]


@pytest.mark.parametrize("tower, name", FORMATS)
def test_every_format_comes_back_bit_by_bit(tmp_path, tokenizer, tower, name):
    expected = checkpoint(SMALL[tower], tokenizer)
    for file in WRITERS[name](tmp_path, expected, tokenizer, "float32"):
        model = drawn_model(SMALL[tower], seed=1)
        load_torch(model, tmp_path / file)
        weights = to_torch(model)
        for key, array in expected.weights.items():
            np.testing.assert_array_equal(weights[key], array, err_msg=key)
    back = read_checkpoint(tmp_path)
    known = {key: value for key, value in back.model.items() if key not in ("name", "quick_gelu")}
    of_cyclip = name == "cyclip"  # has no place for numbers of heads
    for key, value in known.items():
        assert value == expected.model[key] or (of_cyclip and key.endswith("heads")), key
    assert back.model.get("quick_gelu") == (None if of_cyclip else True)


@pytest.mark.parametrize("tower", SMALL)
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clip_loads_the_folder_and_embeds_alike(tmp_path, tokenizer, tower, quick_gelu):
    settings = SMALL[tower]
    write_open_clip(
        tmp_path, checkpoint(settings, tokenizer, quick_gelu=quick_gelu), tokenizer, "float32"
    )
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    images, tokens = some_inputs(settings)
    with torch.no_grad():
        theirs = model.eval()(
            torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
        )
    ours = embed(drawn_model(settings | {"quick_gelu": quick_gelu}), images, tokens)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their.numpy(), atol=2e-6 * max(1, float(abs(their).max())))
    assert preprocess.transforms[0].size == settings["image_size"]
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS)
    np.testing.assert_array_equal(ids.numpy(), tokenizer(CAPTIONS))


def test_transformers_loads_the_folder_and_embeds_alike(tmp_path, tokenizer):
    from transformers import CLIPModel, CLIPProcessor

    for quick_gelu in (True, False):
        made = checkpoint(VIT, tokenizer, quick_gelu=quick_gelu)
        WRITERS["transformers"](tmp_path, made, tokenizer, "float32")
        model = CLIPModel.from_pretrained(tmp_path).eval()
        images, tokens = some_inputs(VIT)
        with torch.no_grad():
            theirs = model(
                input_ids=torch.from_numpy(tokens).long(),
                pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
            )
        ours = embed(drawn_model(VIT | {"quick_gelu": quick_gelu}), images, tokens)
        np.testing.assert_allclose(ours[0], theirs.image_embeds.numpy(), atol=2e-6)
        np.testing.assert_allclose(ours[1], theirs.text_embeds.numpy(), atol=2e-6)
        assert float(model.logit_scale.detach().exp()) == pytest.approx(float(ours[2]), rel=1e-6)
    processor = CLIPProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    inputs = processor(
        text=CAPTIONS, images=pixels, return_tensors="pt", padding="max_length", truncation=True
    )
    np.testing.assert_array_equal(inputs["input_ids"].numpy(), tokenizer(CAPTIONS))
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 32, 32)


def test_the_official_loader_is_served(tmp_path, tokenizer):
    made = dataclasses.replace(checkpoint(RESNET, tokenizer), metrics={"epoch": 3.0})
    WRITERS["cyclip"](tmp_path, made, tokenizer, "float32")
    loaded = torch.load(tmp_path / "cyclip.pt", weights_only=True)
    assert loaded.keys() == {"epoch", "state_dict", "name"}
    assert loaded["epoch"] == 3
    model = open_clip.CLIP(**open_clip_settings(RESNET))
    model.load_state_dict(loaded["state_dict"], strict=True)
    counts = [value for key, value in loaded["state_dict"].items() if key.endswith(COUNT)]
    assert counts and all(int(count) == 7 for count in counts)


def test_a_bias_goes_to_open_clip_and_comes_back(tmp_path, tokenizer):
    """To what has no place for it, it is refused."""
    made = checkpoint(VIT | {"logit_bias": True}, tokenizer)
    made.weights["logit_bias"] = np.asarray(-7.5, np.float32)
    assert write_open_clip(tmp_path, made, tokenizer, "float32") == ["open_clip_model.safetensors"]
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    images, tokens = some_inputs(VIT)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
    assert model.eval()(*inputs)[3].item() == -7.5
    back = read_checkpoint(tmp_path)
    assert back.model["logit_bias"] and float(back.weights["logit_bias"]) == -7.5
    shaped = back.weights | {"logit_bias": back.weights["logit_bias"].reshape(1)}
    tree = fit(shaped, abstract(VIT | {"logit_bias": True}), source="x")
    assert tree["params"]["logit_bias"].shape == ()
    with pytest.raises(
        UserError, match=r"(?s)unexpected \(1\):\s+logit_bias.*model.logit_bias=True"
    ):
        fit(back.weights, abstract(VIT), source="x")
    for name in ("cyclip", "transformers"):
        with pytest.raises(UserError, match=f"bias of the similarities, for which {name} has no"):
            check_format(made, name)
    check_format(made, "onnx")


def open_clip_settings(settings):
    from cyclip_jax.interop.open_clip_config import open_clip_config

    made = drawn_checkpoint(settings, {"tokenizer": "clip_bpe", "vocabulary": None})
    return open_clip_config(made, hf_tokenizer=False)["model_cfg"]


def test_what_a_format_cannot_hold_is_refused(tokenizer):
    message = "no CLIP with a ResNet; choose the format open_clip, cyclip or onnx"
    with pytest.raises(UserError, match=message):
        check_format(checkpoint(RESNET, tokenizer), "transformers")
    made = checkpoint(VIT, tokenizer)
    squashed = dataclasses.replace(made, preprocess=made.preprocess | {"resize_mode": "squash"})
    for name in ("transformers", "onnx"):
        check_format(made, name)
        with pytest.raises(UserError, match=f"another resize_mode, which the format {name}"):
            check_format(squashed, name)


@pytest.mark.parametrize("name", READERS_TOWERS)
def test_a_tower_or_a_pool_that_the_readers_have_not_is_refused(name, tokenizer, monkeypatch):
    """Their weights could be written, and would be read as another model or not at all."""
    made = checkpoint(VIT, tokenizer)
    check_format(made, name)
    pooled = dataclasses.replace(made, model=made.model | {"pool": "median"})
    with pytest.raises(UserError, match=f"{name} has no CLIP with a ViT with the pool median; "):
        check_format(pooled, name)
    mlp = dataclasses.replace(VISION_TOWERS["vit"], title="a perceptron")
    monkeypatch.setattr(formats, "VISION_TOWERS", {**VISION_TOWERS, "mlp": mlp})
    other = dataclasses.replace(made, model=made.model | {"vision_tower": "mlp"})
    with pytest.raises(UserError, match=r"a perceptron; cyclip_jax\.load reads the workdir"):
        check_format(other, name)


def test_what_a_bare_state_dict_cannot_say_is_said(tokenizer, caplog):
    with caplog.at_level("WARNING"):
        check_format(checkpoint(VIT, tokenizer), "cyclip")
    assert "Readers of cyclip.pt" in caplog.text and "'text_heads': 2" in caplog.text


def test_old_and_sharded_files_of_transformers_are_read(tmp_path):
    weights = to_transformers(drawn_weights(VIT))
    weights["text_model.embeddings.position_ids"] = np.arange(9)[None]
    half = len(weights) // 2
    parts = [dict(list(weights.items())[:half]), dict(list(weights.items())[half:])]
    index = {}
    for number, part in enumerate(parts):
        name = f"model-{number}.safetensors"
        write_safetensors(tmp_path / name, part)
        index |= dict.fromkeys(part, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "model_type": "clip",
        "text_config": {"num_attention_heads": 2, "vocab_size": 40, "eos_token_id": 2},
        "vision_config": {"num_attention_heads": 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = drawn_model(VIT, seed=1)
    load_torch(model, tmp_path)
    for name, array in drawn_weights(VIT).items():
        np.testing.assert_array_equal(to_torch(model)[name], array)


def test_a_text_tower_of_its_own_is_understood(tmp_path):
    """open_clip's CustomTextCLIP has the same tower under the prefix "text."."""
    weights = drawn_weights(VIT)
    prefixed = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": array
        for name, array in weights.items()
    }
    write_safetensors(tmp_path / "a.safetensors", prefixed)
    assert read_checkpoint(tmp_path / "a.safetensors").weights.keys() == weights.keys()


def open_clip_folder(folder, changes):
    """A folder as open_clip writes it, with one setting changed: {"vision_cfg.width": …}."""
    settings = {"model_cfg": open_clip_settings(VIT), "preprocess_cfg": {}}
    for path, value in changes.items():
        *parents, last = path.split(".")
        target = settings
        for parent in parents:
            target = target[parent]
        target[last] = value
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    write_pytorch(folder / "open_clip_pytorch_model.bin", drawn_weights(VIT))


@pytest.mark.parametrize(
    "change, value, message",
    [
        ("vision_cfg.timm_model_name", "vit_base", "vision_cfg.timm_model_name = 'vit_base'"),
        ("text_cfg.pool_type", "none", "text_cfg.pool_type = 'none'"),
        ("vision_cfg.ls_init_value", 0.1, "vision_cfg.ls_init_value = 0.1"),
        ("text_cfg.embed_cls", True, "text_cfg.embed_cls = True"),
        ("vision_cfg.act_kwargs", {"approximate": "tanh"}, "vision_cfg.act_kwargs"),
    ],
)
def test_what_our_towers_cannot_do_is_named(tmp_path, change, value, message):
    open_clip_folder(tmp_path, {f"model_cfg.{change}": value})
    with pytest.raises(UserError, match=f"with settings that ours cannot have: {message}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change, value, message",
    [
        (
            "model_cfg.quick_gelu",
            False,
            "quick_gelu is False in the checkpoint and True in the model",
        ),
        ("model_cfg.text_cfg.heads", 4, "text_heads is 4 in the checkpoint and 2 in the model"),
        (
            "model_cfg.vision_cfg.head_width",
            4,
            "vision_heads is 6 in the checkpoint and 3 in the model",
        ),
    ],
)
def test_weights_that_fit_but_mean_another_model_are_refused(tmp_path, change, value, message):
    open_clip_folder(tmp_path, {change: value})
    model = drawn_model(VIT, seed=1)
    before = to_torch(model)
    with pytest.raises(UserError, match=message):
        load_torch(model, tmp_path)
    for name, array in to_torch(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_another_preprocessing_is_followed_or_refused(tmp_path):
    open_clip_folder(tmp_path, {"preprocess_cfg.mean": [0.5] * 3, "preprocess_cfg.std": [0.5] * 3})
    _, preprocess, _ = load(tmp_path)
    np.testing.assert_allclose(preprocess(np.full((40, 50, 3), 255, np.uint8)), 1)
    half = np.repeat(np.uint8([[0], [255]]), 20, axis=0)[..., None].repeat(90, 1).repeat(3, 2)
    open_clip_folder(tmp_path, {"preprocess_cfg.resize_mode": "squash"})
    squashed = load(tmp_path)[1](half.transpose(1, 0, 2))[
        0
    ]  # black on the left, white on the right
    assert squashed[:, :8].max() < 0 < squashed[:, -8:].min()
    for key, value in (("resize_mode", "longest"), ("interpolation", "bilinear")):
        open_clip_folder(tmp_path, {f"preprocess_cfg.{key}": value})
        with pytest.raises(UserError, match=f"wants its images with {key} '{value}'"):
            load(tmp_path)


def test_a_tokenizer_that_is_not_ours_is_an_error_only_where_it_is_used(tmp_path):
    open_clip_folder(tmp_path, {"model_cfg.text_cfg.hf_tokenizer_name": "some/tokenizer"})
    model, _, tokenize = load(tmp_path)
    assert model.encode_image(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 12)
    with pytest.raises(UserError, match="has a tokenizer that is not ours"):
        tokenize("a cat")


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "should hold one file of weights but holds none; name"),
        ({"a.pt": "", "b.pt": ""}, r"holds several \(a.pt, b.pt\); name the file itself"),
        ({"config.json": '{"model_type": "bert"}', "model.safetensors": ""}, "model_type 'bert'"),
        ({"config.json": "{", "model.safetensors": ""}, "config.json cannot be read"),
        ({"config.json": "[]", "model.safetensors": ""}, "config.json holds a list"),
        ({"config.json": EOS, "model.safetensors": ""}, "reads texts at token 7"),
        ({"open_clip_config.json": NULLS, "a.pt": ""}, "cannot be understood"),
        ({"open_clip_config.json": "{}", "a.pt": ""}, "open_clip_config.json lacks 'model_cfg'"),
        ({"cyclip_jax.json": "{}"}, "cyclip_jax.json lacks 'format'"),
        ({"cyclip_jax.json": ONNX}, "holds an onnx export, from which no weights are read"),
    ],
)
def test_folders_that_hold_something_else_are_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path)


def test_a_foreign_tokenizer_stops_an_export_before_it_writes(tmp_path, tokenizer):
    source = tmp_path / "source"
    source.mkdir()
    write_open_clip(source, checkpoint(VIT, tokenizer), tokenizer, "float32")
    with pytest.raises(UserError, match="has a tokenizer that is not ours"):
        export_checkpoint(source, export_format="transformers", output=tmp_path / "x")
    assert not (tmp_path / "x").exists()
