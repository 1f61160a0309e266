import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.models import create_model
from cyclip_jax.models.clip import IMAGE_MEAN, IMAGE_STD, normalise_images
from cyclip_jax.models.resnet import BatchNorm, average_pool
from cyclip_jax.models.transformer import activation

RNGS = nnx.Rngs(0)


def parameter_shapes(name, **overrides):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **overrides))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@nnx.jit
def run(model, images, tokens):
    return model(images, tokens)


def count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("RN50", 102_007_137),
        pytest.param("RN101", 119_688_033, marks=pytest.mark.slow),
        pytest.param("RN50x4", 178_300_601, marks=pytest.mark.slow),
        ("ViT-B/32", 151_277_313),
        ("ViT-B/16", 149_620_737),
        pytest.param("ViT-L/14", 427_616_513, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts_are_those_of_openai(name, expected):
    shapes = parameter_shapes(name)
    assert count(shapes) == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_towers_share_an_embedding_space_of_unit_norm(name):
    model = create_model(name, rngs=nnx.Rngs(0), embed_dim=24)
    size = 64 if name == "RN-tiny" else 32
    images = jax.random.normal(jax.random.key(0), (3, size, size, 3))
    tokens = jnp.array([[1, 5, 511, 0], [1, 7, 8, 511], [1, 511, 0, 0]])
    tokens = jnp.pad(tokens, ((0, 0), (0, 12)))
    image_embeds, text_embeds, scale = run(model, images, tokens)
    assert image_embeds.shape == text_embeds.shape == (3, 24)
    np.testing.assert_allclose(jnp.linalg.norm(image_embeds, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(text_embeds, axis=1), 1, rtol=1e-5)
    assert float(scale) == pytest.approx(1 / 0.07, rel=1e-5)
    un_normalised = nnx.jit(type(model).encode_image)(model, images)
    assert abs(jnp.linalg.norm(un_normalised, axis=1) - 1).min() > 1e-3


def test_text_is_read_at_its_end_and_nothing_behind_it_is_seen():
    model = create_model("ViT-tiny", rngs=nnx.Rngs(0))
    tokens = jnp.zeros((1, 16), jnp.int32).at[0, :4].set(jnp.array([510, 5, 6, 511]))
    behind = tokens.at[0, 7].set(9)
    before = tokens.at[0, 1].set(9)
    embeds = model.encode_text(jnp.concatenate([tokens, behind, before]))
    np.testing.assert_array_equal(embeds[0], embeds[1])
    assert abs(embeds[0] - embeds[2]).max() > 1e-4


def test_overrides_change_sizes():
    vit = parameter_shapes("ViT-tiny", image_size=48, patch_size=12, vision_layers=3)
    assert vit["visual"]["positional_embedding"].shape == (17, 64)
    assert len(vit["visual"]["transformer"]["resblocks"]) == 3
    rn = parameter_shapes("RN-tiny", image_size=96, vision_layers=(1, 2, 1, 1), vocab_size=99)
    assert rn["visual"]["attnpool"]["positional_embedding"].shape == (10, 512)
    assert rn["text"]["token_embedding"].shape == (99, 64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "RN51"}, "unknown config.model.name 'RN51'"),
        ({"name": "RN50", "image_sise": 64}, "did you mean image_size"),
        ({"name": "RN50", "patch_size": 16}, "does not apply to RN50"),
        ({"name": "RN50", "image_size": 100}, "not a multiple of 32"),
        ({"name": "ViT-B/32", "image_size": 100}, "not a multiple of config.model.patch_size 32"),
        ({"name": "ViT-B/32", "vision_heads": 7}, "do not divide into 7 heads"),
        ({"name": "ViT-B/32", "batch_norm_group_size": 8}, "has no BatchNorm"),
        ({"name": "RN50", "dtype": "float8"}, "unknown config.model.dtype 'float8'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words(arguments, message):
    with pytest.raises(UserError, match=message):
        create_model(**arguments, rngs=RNGS)


def test_bfloat16_towers_keep_float32_parameters_and_statistics():
    model = create_model("RN-tiny", rngs=nnx.Rngs(0), dtype="bfloat16")
    images, tokens = jnp.ones((2, 64, 64, 3), jnp.bfloat16), jnp.ones((2, 16), jnp.int32)
    image_embeds, text_embeds, _ = run(model, images, tokens)
    assert image_embeds.dtype == text_embeds.dtype == jnp.float32  # normalised in float32
    assert model.visual.conv1(jnp.ones((1, 64, 64, 3))).dtype == jnp.bfloat16
    embeds = nnx.eval_shape(lambda model: model.encode_image(images), model)
    assert embeds.dtype == jnp.bfloat16
    kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))}
    assert kinds == {jnp.dtype("float32")}


def test_the_token_embedding_of_bfloat16_towers_has_the_gradient_of_float32():
    tokens = jnp.tile(jnp.array([[510, 5, 511] + 13 * [0]]), (2048, 1))

    def gradient(dtype):
        model = create_model("ViT-tiny", rngs=nnx.Rngs(0), dtype=dtype)
        graphdef, params = nnx.split(model)

        def mean(params):
            embeds = nnx.merge(graphdef, params).encode_text(tokens)
            return embeds.astype(jnp.float32).sum()

        gradients = nnx.to_pure_dict(jax.jit(jax.grad(mean))(params))
        return gradients["text"]["token_embedding"][5]  # once in each of the 2048 rows

    exact, coarse = gradient("float32"), gradient("bfloat16")
    assert float(jnp.linalg.norm(coarse - exact) / jnp.linalg.norm(exact)) < 0.05


def test_openai_initialisation():
    model = create_model(
        "RN-tiny", rngs=nnx.Rngs(0), text_width=256, text_layers=3, vocab_size=4096
    )
    block = model.text.transformer.resblocks[0]

    def std(parameter):
        return float(jnp.std(parameter[...]))

    assert std(model.text.token_embedding) == pytest.approx(0.02, rel=0.02)
    assert std(model.text.positional_embedding) == pytest.approx(0.01, rel=0.05)
    assert std(block.attn.in_proj.kernel) == pytest.approx(256**-0.5, rel=0.02)
    assert std(block.attn.out_proj.kernel) == pytest.approx((256 * 6) ** -0.5, rel=0.02)
    assert std(block.c_fc.kernel) == pytest.approx(512**-0.5, rel=0.02)
    assert std(block.c_proj.kernel) == pytest.approx((256 * 6) ** -0.5, rel=0.02)
    assert std(model.visual.attnpool.q_proj.kernel) == pytest.approx(512**-0.5, rel=0.02)
    assert not model.visual.stages[2][0].bn3.scale[...].any()
    assert model.visual.stages[2][0].bn2.scale[...].all()
    # PyTorch's uniform in ±1/√fan_in.
    kernel = model.visual.stages[3][0].conv2.kernel[...]
    bound = (9 * 128) ** -0.5
    assert bound * 0.99 < float(abs(kernel).max()) <= bound


def test_batch_norm_over_the_batch_with_an_unbiased_running_variance(x64):
    norm = BatchNorm(3, group_size=None, dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 5, 5, 3))
    out = norm(jnp.asarray(x))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(out.var((0, 1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-6)
    norm.use_running_average = True
    before = norm.mean[...]
    expected = (x - norm.mean[...]) / np.sqrt(norm.var[...] + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-6)
    np.testing.assert_array_equal(norm.mean[...], before)


def test_ghost_groups_are_separate_batches(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 4, 3)))
    ghost = BatchNorm(3, group_size=2, dtype=jnp.float64, rngs=nnx.Rngs(0))
    parts = [BatchNorm(3, group_size=None, dtype=jnp.float64, rngs=nnx.Rngs(0)) for _ in range(4)]
    expected = jnp.concatenate([part(x[2 * i : 2 * i + 2]) for i, part in enumerate(parts)])
    np.testing.assert_allclose(ghost(x), expected, rtol=1e-12)
    np.testing.assert_allclose(ghost.var[...], np.mean([p.var[...] for p in parts], 0), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"8 images is not a multiple of config.model.batch_norm_group_size 3"
    ):
        BatchNorm(3, group_size=3, dtype=jnp.float64, rngs=nnx.Rngs(0))(x)


def test_average_pool_drops_what_fills_no_square():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(average_pool(x, 2)[0, :, :, 0], [[3, 5], [13, 15]])


def test_quick_gelu_is_not_gelu():
    x = jnp.array([-1.0, 0.5, 2.0])
    np.testing.assert_allclose(activation(True)(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)
    np.testing.assert_allclose(
        activation(False)(x), [-0.15865526, 0.34573123, 1.9544997], rtol=1e-5
    )


def test_images_are_normalised_as_openai_does():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    expected = (images / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)
    np.testing.assert_allclose(normalise_images(images), expected, rtol=1e-5, atol=1e-6)


def test_models_and_losses_do_not_import_tensorflow():
    code = (
        "import sys, cyclip_jax, cyclip_jax.models, cyclip_jax.losses\n"
        "import cyclip_jax.training.optimizer\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
