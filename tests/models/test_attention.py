import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax.errors import UserError
from cyclip_jax.models import create_model
from cyclip_jax.models.attention import choose_attention, fast_attention, multi_head_attention

HEADS = 3


def value_and_gradient(attention, dtype, *, is_causal, **arguments):
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(2, 7, HEADS * 8)), dtype) for _ in range(3)]
    attend = functools.partial(attention, heads=HEADS, is_causal=is_causal, **arguments)
    value, pull_back = jax.vjp(attend, *inputs)
    seen = jnp.asarray(rng.normal(size=value.shape), dtype)
    return value, *pull_back(seen)


by_xla = functools.partial(fast_attention, implementation="xla")


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
def test_the_fast_form_equals_the_definition_in_16_bits(is_causal):
    exact = value_and_gradient(multi_head_attention, jnp.float32, is_causal=is_causal)
    fast = value_and_gradient(by_xla, jnp.bfloat16, is_causal=is_causal)
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
