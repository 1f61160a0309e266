"""Checkpoints as other people's trainers leave them, and the cures that refusals name."""

import argparse
import json

import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.interop.files import read_weights, write_pytorch, write_safetensors
from cyclip_jax.interop.folders import read_checkpoint, settings_of
from cyclip_jax.interop.formats import transformers_config
from cyclip_jax.interop.names import to_transformers
from cyclip_jax.interop.weights import fit
from tests.interop.models import VIT, abstract, drawn_checkpoint, drawn_weights
from tests.pytorch import torch

TOKENS = "token_embedding.weight"


def run_cure(error):
    """Runs the Python lines of a message."""
    lines = str(error.value).split("\n", 1)[1]
    assert "\x1b" not in str(error.value) and len(str(error.value)) <= 1500
    exec(lines, {})


def same(weights, expected):
    return weights.keys() == expected.keys() and all(
        np.array_equal(weights[name], expected[name]) for name in expected
    )


@pytest.fixture
def folder(tmp_path):
    """A folder of transformers in two parts, whose config.json says gelu."""
    checkpoint = drawn_checkpoint(VIT, None)
    checkpoint.model["quick_gelu"] = False
    config = transformers_config(checkpoint, "float32")
    (tmp_path / "config.json").write_text(json.dumps(config))
    items = list(to_transformers(checkpoint.weights).items())
    parts = {"a.safetensors": items[::2], "b.safetensors": items[1::2]}
    for name, part in parts.items():
        write_safetensors(tmp_path / name, dict(part))
    weight_map = {key: name for name, part in parts.items() for key, _ in part}
    index = {"weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("form", ["", "model.safetensors.index.json", "config.json"])
def test_settings_beside_weights_count_however_they_are_named(folder, form):
    model = read_checkpoint(folder / form).model
    assert (model["quick_gelu"], model["vision_heads"]) == (False, 3)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "any.pt"])
def test_settings_beside_a_file_count(folder, name):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    writer = write_pytorch if name.endswith(".pt") else write_safetensors
    writer(folder / name, to_transformers(drawn_weights(VIT)))
    assert read_checkpoint(folder / name).model["quick_gelu"] is False


@pytest.mark.parametrize("prefix", ["model.", "student.", "clip.", "model._orig_mod."])
def test_weights_under_a_prefix_are_taken_and_said(tmp_path, prefix, caplog):
    weights = drawn_weights(VIT)
    held = {prefix + name: array for name, array in weights.items()}
    write_safetensors(tmp_path / "a.safetensors", held | {"loss.weight": np.ones(2, np.float32)})
    with caplog.at_level("WARNING"):
        assert same(read_weights(tmp_path / "a.safetensors"), weights)
    assert "have the prefix" in caplog.text and "1 others" in caplog.text


def test_wrappers_inside_names_leave_no_trace(tmp_path):
    weights = drawn_weights(VIT)
    held = {
        name.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module."): array
        for name, array in weights.items()
    }
    write_safetensors(tmp_path / "a.safetensors", held)
    assert same(read_weights(tmp_path / "a.safetensors"), weights)


@pytest.mark.parametrize("keys", [("model",), ("module",), ("model", "state_dict")])
def test_weights_nested_under_a_known_key_are_taken_and_said_once(tmp_path, keys, caplog):
    held = {TOKENS: torch.ones(2)}
    for key in reversed(keys):
        held = {key: held, "epoch": 3}
    torch.save(held, tmp_path / "a.ckpt")
    with caplog.at_level("WARNING"):
        assert list(read_weights(tmp_path / "a.ckpt")) == [TOKENS]
    assert [record.getMessage() for record in caplog.records] == [
        f"The weights of {tmp_path / 'a.ckpt'} are those under the key {' and '.join(keys)}."
    ]


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_two_models_in_a_file_are_refused_with_lines_that_part_them(tmp_path, name):
    writer = write_pytorch if name == "a.pt" else write_safetensors
    held = {f"{who}.{TOKENS}": np.full(2, n, np.float32) for n, who in enumerate(("ema", "net"))}
    writer(tmp_path / name, held)
    with pytest.raises(UserError, match=r"several models, with the prefixes ema\., net\.") as error:
        read_weights(tmp_path / name)
    run_cure(error)
    assert same(read_weights(tmp_path / name.replace(".", "-weights.")), {TOKENS: np.zeros(2)})


def test_the_cure_of_a_torchscript_archive_works_without_its_gpu(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "weights.pt"))
    with pytest.raises(UserError, match=r"torch\.jit\.load\(.*map_location='cpu'\)") as error:
        read_weights(tmp_path / "weights.pt")
    run_cure(error)
    assert list(read_weights(tmp_path / "weights-weights.pt")) == ["weight", "bias"]


@pytest.mark.parametrize("kind", ["module", "arguments", "nested module"])
def test_the_cure_of_a_pickle_works_and_names_its_objects(tmp_path, kind):
    linear = torch.nn.Linear(2, 2)
    held = {
        "module": linear,
        "arguments": {"state_dict": linear.state_dict(), "args": argparse.Namespace(lr=1)},
        "nested module": {"model": linear},
    }[kind]
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"Python objects \((argparse|torch)\.") as error:
        read_weights(tmp_path / "a.pt")
    run_cure(error)
    assert list(read_weights(tmp_path / "a-weights.pt")) == ["weight", "bias"]


def test_another_shape_is_named_with_the_settings_that_fit():
    wanted = VIT | {"embed_dim": 8, "text_layers": 1, "vocab_size": 50}
    weights = drawn_weights(VIT)
    with pytest.raises(UserError, match="the weights need ") as error:
        fit(weights, abstract(wanted), source="x")
    told = str(error.value).split("the weights need ")[1]
    settings = dict(part.split(" ")[0].split("=") for part in told.split(", "))
    cured = {name.removeprefix("config.model."): int(value) for name, value in settings.items()}
    assert cured == {"embed_dim": 12, "text_layers": 2, "vocab_size": 40}
    fit(weights, abstract(wanted | cured), source="x")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "a.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read_weights(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, "x", 0.5]}, "must be a list of numbers"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5]}, "must be three numbers, all above"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "must be three numbers, all above"),
        ("preprocessor_config.json", {"image_mean": {"a": 1}}, "must be a list of numbers"),
        (
            "config.json",
            {"text_config": {"num_attention_heads": "8", "hidden_act": "gelu"}},
            "must be a whole number",
        ),
        ("model.safetensors.index.json", {"weight_map": 3}, "must be settings by name"),
        ("model.safetensors.index.json", {"weight_map": {"a": 0.5}}, "must be a list of texts"),
    ],
)
def test_settings_of_other_types_are_refused(folder, file, change, told):
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=told):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer": 3}, "cannot be understood"),
        ({"tokenizer": {"vocabulary": None}}, "cannot be understood"),
        ({"tokenizer": {"vocabulary": "v"}}, "lacks the field 'tokenizer'"),
        ({"tokenizer": {"vocabulary": "v", "tokenizer": 3}}, "tokenizer 3 must be a text"),
        ({"model": 3}, "cannot be understood"),
        ({"model": {"vision_heads": "x"}}, "vision_heads 'x' must be a whole number"),
        ({"weights": [3]}, r"weights \[3\] must be a list of texts"),
        ({"preprocess": 3}, "preprocess 3 must be settings by name"),
    ],
)
def test_an_export_that_does_not_describe_itself_is_refused(tmp_path, change, told):
    whole = {"format": "open_clip", "weights": ["w.safetensors"], "model": {}, "preprocess": {}}
    whole |= {"tokenizer": {"tokenizer": "clip_bpe", "vocabulary": "v"}, "step": 3}
    (tmp_path / "cyclip_jax.json").write_text(json.dumps(whole | change))
    with pytest.raises(UserError, match=told):
        settings_of(tmp_path)
