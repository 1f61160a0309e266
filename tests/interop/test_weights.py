import numpy as np
import pytest

from cyclip_jax.errors import UserError
from cyclip_jax.interop import load_torch, to_torch
from cyclip_jax.interop.names import COUNT, from_transformers, to_transformers
from cyclip_jax.interop.weights import fit, interpolate_positions, shapes_of, sizes_of, weights_of
from cyclip_jax.models.presets import PRESETS
from tests.interop.models import (
    RESNET,
    SMALL,
    VIT,
    abstract,
    drawn,
    drawn_model,
    drawn_weights,
    embed,
    some_inputs,
)
from tests.pytorch import open_clip, torch


@pytest.mark.parametrize(
    "name, theirs, entries",
    [("RN50", "RN50-quickgelu", 489), ("ViT-B/32", "ViT-B-32-quickgelu", 302)],
)
def test_names_and_shapes_are_those_of_open_clip(name, theirs, entries):
    with torch.device("meta"):
        state_dict = open_clip.CLIP(**open_clip.get_model_config(theirs)).state_dict()
    assert len(state_dict) == entries
    assert shapes_of(abstract({"name": name})) == {
        key: tuple(tensor.shape) for key, tensor in state_dict.items() if not key.endswith(COUNT)
    }
    counts = [key for key in state_dict if key.endswith(COUNT)]
    small = weights_of(drawn(abstract(RESNET if counts else VIT)))
    assert bool(counts) == any(key.endswith(COUNT) for key in small)


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_weights_come_back_bit_by_bit(settings):
    trees = drawn(abstract(settings))
    back = fit(weights_of(trees), abstract(settings), source="x")
    assert_same_weights(weights_of(back), weights_of(trees))
    model = drawn_model(settings, seed=0)
    other = drawn_model(settings, seed=1)
    load_torch(other, to_torch(model))
    assert_same_weights(to_torch(other), to_torch(model))
    images, tokens = some_inputs(settings)
    for ours, theirs in zip(
        embed(other, images, tokens), embed(model, images, tokens), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def assert_same_weights(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
        assert actual[name].dtype == expected[name].dtype


def test_names_of_transformers_come_back_bit_by_bit():
    weights = drawn_weights(VIT)
    theirs = to_transformers(weights)
    query = "vision_model.encoder.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(
        theirs[query], weights["visual.transformer.resblocks.1.attn.in_proj_weight"][:24]
    )
    assert len(theirs) == len(weights) + 4 * (2 + 2)  # three tensors for one, twice in each block
    assert_same_weights(from_transformers(theirs), weights)


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny", "RN50x4"])
def test_sizes_are_read_from_the_shapes(name):
    shapes = shapes_of(abstract({"name": name}))
    zeros = {key: np.broadcast_to(0.0, shape) for key, shape in shapes.items()}
    sizes = sizes_of(zeros, source="x")
    expected = PRESETS[name]
    for size in set(expected) - {"vision_heads", "text_heads"}:
        assert sizes[size] == expected[size], size


def test_what_is_no_clip_model_is_named():
    with pytest.raises(UserError, match=r"holds no CLIP model .*its first names: fc\.weight"):
        sizes_of({"fc.weight": np.zeros((2, 2))}, source="x.pt")


def test_everything_that_does_not_fit_is_in_one_error_and_nothing_is_changed():
    model = drawn_model(RESNET)
    before = to_torch(model)
    weights = drawn_weights(RESNET, seed=1)
    del weights["visual.bn1.bias"], weights["ln_final.weight"]
    weights["visual.fc.weight"] = np.zeros(3, np.float32)
    weights["text_projection"] = np.zeros((16, 99), np.float32)
    weights["ln_final.bias"] = np.full(16, np.nan, np.float32)
    with pytest.raises(UserError) as raised:
        load_torch(model, weights)
    message = str(raised.value)
    for line in (
        "missing (2)",
        "visual.bn1.bias",
        "ln_final.weight",
        "unexpected (1)",
        "visual.fc.weight",
        "of another shape (1)",
        "text_projection ([16, 99] here, [16, 12] in the model)",
        "not finite (1)",
        "ln_final.bias",
    ):
        assert line in message
    assert_same_weights(to_torch(model), before)


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(UserError, match=r"and \d+ more"):
        fit(drawn_weights(VIT), abstract(RESNET), source="x")


def test_what_writers_do_differently_is_understood():
    expected = drawn_weights(RESNET)
    weights = {name: array for name, array in expected.items() if not name.endswith(COUNT)}
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    weights["input_resolution"] = np.asarray(64)
    weights["attn_mask"] = np.zeros((9, 9), np.float32)
    trees = fit(weights, abstract(RESNET), source="x")
    assert_same_weights(weights_of(trees), expected)


def test_tensors_of_any_float_are_taken():
    expected = drawn_weights(VIT)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        tensors = {name: torch.from_numpy(array).to(dtype) for name, array in expected.items()}
        model = drawn_model(VIT, seed=1)
        load_torch(model, tensors)
        rounded = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        assert_same_weights(to_torch(model), rounded)


@pytest.mark.parametrize("old, new", [(4, 6), (7, 4), (2, 9)])
def test_positions_are_interpolated_as_open_clip_does(old, new):
    embedding = np.random.default_rng(0).normal(size=(1 + old**2, 5)).astype(np.float32)

    class Visual:
        grid_size = (new, new)

    class Model:
        visual = Visual()

    state_dict = {"visual.positional_embedding": torch.from_numpy(embedding)}
    open_clip.model.resize_pos_embed(state_dict, Model())
    expected = state_dict["visual.positional_embedding"].numpy()
    ours = interpolate_positions(embedding, new)
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert abs(embedding).max() > 1


@pytest.mark.parametrize(
    "settings, name",
    [(VIT, "visual.positional_embedding"), (RESNET, "visual.attnpool.positional_embedding")],
    ids=SMALL,
)
def test_another_image_size_is_interpolated_and_said_to_be(settings, name, caplog):
    larger = settings | {"image_size": 96}
    weights = drawn_weights(settings)
    with caplog.at_level("WARNING"):
        trees = fit(weights, abstract(larger), source="small.pt")
    assert "small.pt has position embeddings" in caplog.text and "interpolated" in caplog.text
    ours = weights_of(trees)
    side = {"vit": 12, "resnet": 3}["vit" if settings is VIT else "resnet"]
    np.testing.assert_array_equal(ours.pop(name), interpolate_positions(weights[name], side))
    assert_same_weights(ours, {key: value for key, value in weights.items() if key != name})
