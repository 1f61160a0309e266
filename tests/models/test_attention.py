import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.errors import UserError
from cyclip_jax.models import create_model
from cyclip_jax.models.attention import choose_attention, fast_attention, multi_head_attention
from cyclip_jax.models.attention_kernel import attention_kernel
from cyclip_jax.models.transformer import Transformer, vision_inits
from cyclip_jax.training.flops import matmul_flops

HEADS = 3


def value_and_gradient(attention, dtype, *, is_causal, **arguments):
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(2, 7, HEADS * 8)), dtype) for _ in range(3)]
    attend = functools.partial(attention, heads=HEADS, is_causal=is_causal, **arguments)
    value, pull_back = jax.vjp(attend, *inputs)
    seen = jnp.asarray(rng.normal(size=value.shape), dtype)
    return value, *pull_back(seen)


by_xla = functools.partial(fast_attention, implementation="xla")


def by_kernel(query, key, value, *, heads, is_causal):
    qkv = jnp.concatenate([query, key, value], axis=-1)
    return attention_kernel(qkv, heads=heads, is_causal=is_causal)


def by_jax(query, key, value, *, heads, is_causal):
    query, key, value = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal).reshape(2, 7, -1)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_definition_is_that_of_jax(is_causal):
    ours = value_and_gradient(multi_head_attention, jnp.float32, is_causal=is_causal)
    theirs = value_and_gradient(by_jax, jnp.float32, is_causal=is_causal)
    for here, there in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("attention", [by_xla, by_kernel])
def test_the_fast_forms_equal_the_definition_in_16_bits(attention, is_causal):
    exact = value_and_gradient(multi_head_attention, jnp.float32, is_causal=is_causal)
    fast = value_and_gradient(attention, jnp.bfloat16, is_causal=is_causal)
    for there, here in zip(exact, fast, strict=True):
        assert here.dtype == jnp.bfloat16
        error = jnp.linalg.norm(here.astype(jnp.float32) - there) / jnp.linalg.norm(there)
        assert 0 < float(error) < 0.02


@pytest.mark.parametrize("is_causal", [False, True])
def test_cudnn_gets_an_even_length_and_gives_the_same(monkeypatch, is_causal):
    expected = value_and_gradient(by_xla, jnp.bfloat16, is_causal=is_causal)
    lengths = []

    def of_cudnn(query, *rest, implementation, attend=jax.nn.dot_product_attention, **arguments):
        lengths.append(query.shape[1])
        assert implementation == "cudnn"
        return attend(query, *rest, implementation="xla", **arguments)

    monkeypatch.setattr("jax.nn.dot_product_attention", of_cudnn)
    arguments = {"is_causal": is_causal, "implementation": "cudnn"}
    results = value_and_gradient(fast_attention, jnp.bfloat16, **arguments)
    assert lengths == [8]  # of seven
    for here, there in zip(results, expected, strict=True):
        error = jnp.linalg.norm((here - there).astype(jnp.float32))
        assert float(error / jnp.linalg.norm(there.astype(jnp.float32))) < 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_in_wider_types_the_fast_form_is_the_definition(x64, dtype):
    exact = value_and_gradient(multi_head_attention, dtype, is_causal=True)
    fast = value_and_gradient(by_xla, dtype, is_causal=True)
    for there, here in zip(exact, fast, strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "float32"}, "in 16 bits, not in float32: set config.model.dtype"),
        ({"dtype": "bfloat16"}, "needs an NVIDIA GPU, and this process computes on cpu"),
        ({"dtype": "bfloat16", "vision_heads": 16}, "multiple of 8; here they have 4"),
        ({"attention": "flash"}, "unknown config.model.attention 'flash'; choose one of auto"),
    ],
)
def test_an_attention_that_cannot_be_is_refused_in_words(arguments, message):
    with pytest.raises(UserError, match=message):
        create_model("ViT-tiny", rngs=nnx.Rngs(0), **{"attention": "cudnn", **arguments})


@pytest.mark.parametrize(
    "platform, capability, dtype, channels, chosen",
    [
        ("cuda 12090", "9.0", "bfloat16", 64, "cudnn"),
        ("cuda 12090", "9.0", "float32", 64, "xla"),
        ("cuda 12090", "9.0", "bfloat16", 12, "xla"),
        ("cuda 12090", "7.5", "bfloat16", 64, "xla"),
        ("rocm 60300", "gfx942", "bfloat16", 64, "xla"),
    ],
)
def test_auto_is_cudnn_wherever_that_can_compute_it(
    monkeypatch, platform, capability, dtype, channels, chosen
):
    backend = types.SimpleNamespace(platform_version=f"PJRT C API\n{platform}")
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr("jax.extend.backend.get_backend", lambda: backend)
    monkeypatch.setattr("jax.local_devices", lambda: [device])
    assert choose_attention("auto", dtype=dtype, channels=channels) == chosen
    assert choose_attention("xla", dtype=dtype, channels=channels) == "xla"


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_kernel_equals_the_definition(x64, is_causal):
    exact = value_and_gradient(multi_head_attention, jnp.float64, is_causal=is_causal)
    kernel = value_and_gradient(by_kernel, jnp.float64, is_causal=is_causal)
    for here, there in zip(kernel, exact, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-10, atol=1e-13)


def test_each_device_runs_the_kernel_on_its_own_rows(x64):
    mesh = parallel.create_mesh()
    rng = np.random.default_rng(0)
    qkv, seen = (jnp.asarray(rng.normal(size=(16, 5, width))) for width in (48, 16))

    def total(qkv):
        with parallel.rows_over(mesh):
            return jnp.sum(attention_kernel(qkv, heads=2, is_causal=True) * seen)

    rows = jax.device_put(qkv, parallel.batch_sharding(mesh))
    compiled = jax.jit(jax.grad(total)).lower(rows).compile()
    assert "all-gather" not in compiled.as_text()
    alone = jax.grad(lambda x: jnp.sum(attention_kernel(x, heads=2, is_causal=True) * seen))(qkv)
    np.testing.assert_allclose(compiled(rows), alone, rtol=1e-10, atol=1e-13)


def test_the_products_of_the_kernel_are_counted():
    qkv = jax.ShapeDtypeStruct((3, 7, 48), jnp.float32)
    product = 2 * 3 * 7 * 7 * 16

    def total(qkv):
        return jnp.sum(jnp.sin(attention_kernel(qkv, heads=2, is_causal=False)))

    assert matmul_flops(total, qkv) == 2 * product
    assert matmul_flops(jax.grad(total), qkv) == (2 + 5) * product


def test_the_kernel_of_tpus_is_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"'pallas' is written for TPUs, and this process.*a GPU"):
        choose_attention("pallas", dtype="bfloat16", channels=64)


def test_a_transformer_with_the_kernel_gives_what_it_gives_without(x64):
    small = {"width": 8, "layers": 2, "heads": 2, "dtype": jnp.float64, "remat": "dots"}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)))

    def output_and_gradient(attention):
        tower = Transformer(
            **small,
            is_causal=True,
            quick_gelu=True,
            inits=vision_inits(),
            rngs=nnx.Rngs(0),
            attention=attention,
            scan_blocks=True,
        )
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(tower(x))))(x)

    for here, there in zip(output_and_gradient("pallas"), output_and_gradient("xla"), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-9)
