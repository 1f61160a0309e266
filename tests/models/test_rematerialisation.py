import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.models import create_model
from cyclip_jax.models.clip import split_model
from cyclip_jax.models.presets import abstract_model
from cyclip_jax.models.resnet import ModifiedResNet
from cyclip_jax.models.transformer import Transformer, text_inits

LAYERS = 3
EXECUTIONS = [("dots", False), ("full", False), ("none", True), ("dots", True), ("full", True)]


def transformer(**execution):
    """A function that makes a transformer of float64."""
    return functools.partial(
        Transformer,
        16,
        LAYERS,
        2,
        is_causal=True,
        quick_gelu=True,
        inits=text_inits(16, LAYERS),
        dtype=jnp.float64,
        **execution,
    )


def resnet(**execution):
    """A function that makes a small ResNet of float64."""
    return functools.partial(
        ModifiedResNet,
        image_size=32,
        layers=(1, 1, 1, 1),
        width=8,
        heads=4,
        embed_dim=6,
        batch_norm_group_size=None,
        dtype=jnp.float64,
        **execution,
    )


def step(model, shape):
    """A function params -> (value, statistics, gradient) and the params, drawn in float64."""
    graphdef, params, batch_stats = split_model(nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params, batch_stats = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 + rng.normal(size=leaf.shape) / 4), (params, batch_stats)
    )
    inputs = jnp.asarray(rng.normal(size=shape))

    def embed(params):
        module = nnx.merge(graphdef, params, batch_stats, copy=True)
        return module(inputs), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def value_and_gradient(params):
        value, pull_back, statistics = jax.vjp(embed, params, has_aux=True)
        return value, statistics, pull_back(jnp.cos(jnp.arange(value.size)).reshape(value.shape))

    return value_and_gradient, params


def assert_same(results, expected):
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    for here, there in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(there).all() and np.any(there)
        np.testing.assert_allclose(here, there, rtol=1e-12, atol=1e-12 * abs(there).max())


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products_with_weights(model, shape):
    """How many the program of the value and the gradient has."""
    function, params = step(model, shape)

    def is_one(equation):
        if equation.primitive.name == "dot_general":
            return equation.params["dimension_numbers"][1] == ((), ())
        return equation.primitive.name == "conv_general_dilated"

    return sum(map(is_one, equations(jax.make_jaxpr(function)(params).jaxpr)))


@pytest.fixture(scope="module")
def transformers_value_and_gradient():
    with jax.enable_x64(True):
        function, params = step(transformer(), (2, 5, 16))
        return jax.jit(function)(params)


@pytest.mark.parametrize("remat, scan_blocks", EXECUTIONS)
def test_a_transformer_gives_the_same_however_it_is_computed(
    x64, transformers_value_and_gradient, remat, scan_blocks
):
    other, params = step(transformer(remat=remat, scan_blocks=scan_blocks), (2, 5, 16))
    assert_same(jax.jit(other)(params), transformers_value_and_gradient)


def test_a_resnet_gives_the_same_and_moves_its_statistics_once(x64):
    function, params = step(resnet(), (4, 32, 32, 3))
    other, _ = step(resnet(remat="full"), (4, 32, 32, 3))
    assert_same(jax.jit(other)(params), jax.jit(function)(params))


@pytest.mark.parametrize("tower, shape", [(transformer, (2, 5, 16)), (resnet, (4, 32, 32, 3))])
def test_dots_repeats_no_product_with_a_weight_and_full_repeats_them(x64, tower, shape):
    once = products_with_weights(tower(), shape)
    assert products_with_weights(tower(remat="dots"), shape) == once
    assert products_with_weights(tower(remat="full"), shape) > once


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_scanned_transformer_is_a_program_of_one_block(x64, remat):
    one_by_one = products_with_weights(transformer(remat=remat), (2, 5, 16))
    scanned = products_with_weights(transformer(remat=remat, scan_blocks=True), (2, 5, 16))
    assert scanned * LAYERS == one_by_one


def test_a_scanned_model_has_the_parameters_of_any_other():
    scanned = {"scan_blocks": True, "vision_remat": "full", "text_remat": "dots"}
    for name in ("RN-tiny", "ViT-tiny"):
        assert abstract_model({"name": name, **scanned})[2] == abstract_model({"name": name})[2]


def test_bfloat16_blocks_can_be_scanned():
    def embed():
        model = create_model("ViT-tiny", rngs=nnx.Rngs(0), dtype="bfloat16", scan_blocks=True)
        images = jnp.zeros((2, 32, 32, 3), jnp.bfloat16)
        return model.encode_image(images), model.encode_text(jnp.zeros((2, 16), jnp.int32))

    shapes = {(embeds.shape, embeds.dtype.name) for embeds in nnx.eval_shape(embed)}
    assert shapes == {((2, 64), "bfloat16")}


@pytest.mark.parametrize("field", ["vision_remat", "text_remat"])
def test_an_unknown_policy_is_refused(field):
    with pytest.raises(UserError, match=f"config.model.{field} 'some'; choose one of none, full"):
        create_model("ViT-tiny", rngs=nnx.Rngs(0), **{field: "some"})
