"""An ONNX file gives what the model gives, to whoever has onnxruntime alone."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.interop import onnx as onnx_export
from cyclip_jax.interop.onnx import check_onnx, write_onnx
from cyclip_jax.models.clip import normalise_images
from tests.interop.models import SMALL, drawn_checkpoint, drawn_model, embed
from tests.pytorch import torch
from tests.runs import ROOT

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]  # not the default
FILES = {"image.onnx": ("images", "image_embeds"), "text.onnx": ("tokens", "text_embeds")}


def examples(settings, count=16):
    """Pictures of different colours, and captions of different lengths."""
    rng = np.random.default_rng(0)
    side, length, vocab_size = (settings[k] for k in ("image_size", "context_length", "vocab_size"))
    enlarged = np.ones((1, side // 2, side // 2, 1), np.uint8)
    images = np.kron(rng.integers(0, 256, (count, 2, 2, 3), np.uint8), enlarged)
    tokens = rng.integers(1, vocab_size - 2, (count, length))
    for row, end in zip(tokens, rng.integers(0, length, count), strict=True):
        row[end], row[end + 1 :] = vocab_size - 1, 0
    return {"images": images, "tokens": tokens}


def from_jax(model, inputs):
    images = normalise_images(inputs["images"], mean=MEAN, std=STD)
    image_embeds, text_embeds, _ = embed(model, images, inputs["tokens"])
    return {"image_embeds": np.asarray(image_embeds), "text_embeds": np.asarray(text_embeds)}


def first(count, arrays):
    return {name: array[:count] for name, array in arrays.items()}


def from_onnx(folder, inputs):
    embeds = {}
    for file, (taken, given) in FILES.items():
        session = onnxruntime.InferenceSession(str(folder / file))
        (embeds[given],) = session.run([given], {taken: inputs[taken]})
    return embeds


def largest_difference(found, expected):
    return max(np.max(np.abs(found[name] - expected[name])) for name in expected)


@dataclasses.dataclass
class Export:
    tower: str
    settings: dict
    checkpoint: object
    model: object
    folder: pathlib.Path
    inputs: dict  # 16 examples
    expected: dict  # what the model makes of them

    def write(self, folder, dtype="float32"):
        return write_onnx(folder, self.checkpoint, self.model, dtype)


@pytest.fixture(scope="module", params=SMALL)
def exported(request, tmp_path_factory):
    settings = SMALL[request.param]
    checkpoint = drawn_checkpoint(settings, {"tokenizer": "clip_bpe", "vocabulary": None})
    preprocess = checkpoint.preprocess | {"image_mean": MEAN, "image_std": STD}
    checkpoint = dataclasses.replace(checkpoint, preprocess=preprocess)
    model, inputs = drawn_model(settings), examples(settings)
    folder = tmp_path_factory.mktemp("onnx")
    export = Export(
        request.param, settings, checkpoint, model, folder, inputs, from_jax(model, inputs)
    )
    assert max(export.write(folder).values()) <= 2e-5
    return export


@pytest.mark.parametrize("count", [1, 3, 16])
def test_any_batch_has_the_embeddings_of_the_model(exported, count):
    found = from_onnx(exported.folder, first(count, exported.inputs))
    assert largest_difference(found, first(count, exported.expected)) <= 2e-5
    for embeds in found.values():
        assert embeds.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-6)


def test_the_examples_have_different_embeddings(exported):
    # Of a model that says the same of everything, equality would say nothing.
    for embeds in exported.expected.values():
        assert (embeds @ embeds.T)[np.triu_indices(16, 1)].mean() < 0.9


def test_both_files_say_how_to_use_them(exported):
    for file, (taken, given) in FILES.items():
        session = onnxruntime.InferenceSession(str(exported.folder / file))
        metadata = session.get_modelmeta().custom_metadata_map
        values = {name: json.loads(value) for name, value in metadata.items()}
        assert values["producer"].startswith("cyclip_jax ")
        assert values["logit_scale"] == pytest.approx(np.exp(3.1))
        assert values["image_size"] == exported.settings["image_size"]
        assert values["context_length"] == exported.settings["context_length"]
        assert (values["image_mean"], values["image_std"]) == (MEAN, STD)
        assert (values["resize_mode"], values["interpolation"]) == ("shortest", "bicubic")
        assert [value.name for value in session.get_inputs()] == [taken]
        assert [value.name for value in session.get_outputs()] == [given]
        assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == "batch"


def test_neither_file_says_where_the_code_lies_that_made_it(exported):
    for file in FILES:
        content = (exported.folder / file).read_bytes()
        for private in (b"stack_trace", b"site-packages", b".py", str(ROOT).encode()):
            assert private not in content, private


def test_normalised_pixels_and_other_sizes_are_refused(exported):
    session = onnxruntime.InferenceSession(str(exported.folder / "image.onnx"))
    images = exported.inputs["images"]
    for wrong in (images.astype(np.float32), images[:, 1:], images.transpose(0, 3, 1, 2)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            session.run(None, {"images": wrong})


SERVER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "jax", "flax", "cyclip_jax", "onnx"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Absent())
import numpy as np
import onnxruntime

inputs, embeds = np.load("inputs.npz"), {}
for file, taken in (("image.onnx", "images"), ("text.onnx", "tokens")):
    session = onnxruntime.InferenceSession(file)
    embeds[file], = session.run(None, {taken: inputs[taken]})
np.savez("embeds.npz", image_embeds=embeds["image.onnx"], text_embeds=embeds["text.onnx"])
"""


def test_onnxruntime_needs_neither_jax_nor_torch_nor_this_package(exported):
    folder = exported.folder
    np.savez(folder / "inputs.npz", **exported.inputs)
    subprocess.run([sys.executable, "-c", SERVER], cwd=folder, check=True, timeout=60)
    assert largest_difference(np.load(folder / "embeds.npz"), exported.expected) <= 2e-5


@pytest.mark.parametrize("exported", ["resnet"], indirect=True)  # one is enough: tracing is slow
def test_float16_weights_halve_the_file_and_hardly_move_the_embeddings(
    exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_export, "SMALLEST_ROUNDED", 2)  # this model is small
    exported.write(tmp_path, "float16")
    for name, found in from_onnx(tmp_path, exported.inputs).items():
        cosines = np.sum(found * exported.expected[name], axis=1)
        assert 0.999 < cosines.min() < 1 - 1e-7
    sizes = [(folder / "image.onnx").stat().st_size for folder in (tmp_path, exported.folder)]
    assert sizes[0] < 0.7 * sizes[1]


def test_a_block_of_the_wrong_sign_is_noticed(exported):
    wrong = drawn_model(exported.settings)
    if exported.tower == "resnet":
        weight = wrong.visual.stages[0][1].bn3.scale
    else:
        weight = wrong.visual.transformer.resblocks[1].c_proj.kernel
    weight[...] = -weight[...]
    expected = from_jax(wrong, exported.inputs)["image_embeds"]
    images = exported.inputs["images"]
    with pytest.raises(RuntimeError, match=r"image\.onnx gives embeddings that differ"):
        check_onnx(exported.folder / "image.onnx", images, expected, 1e-4)


def test_other_dtypes_and_missing_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="float32 or float16, not 'bfloat16'"):
        write_onnx(tmp_path, None, None, "bfloat16")
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'cyclip_jax\[onnx\]'"):
        write_onnx(tmp_path, None, None, "float32")


assert torch  # imported first: see tests/pytorch.py
