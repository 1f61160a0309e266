"""The count against hand arithmetic and against PyTorch's; utilisation against known devices."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec
from torch.utils.flop_counter import FlopCounterMode

from cyclip_jax.models.clip import CLIP
from cyclip_jax.models.presets import abstract_model
from cyclip_jax.training.flops import (
    matmul_flops,
    model_flops,
    peak_flops,
    training_flops,
    utilisation,
)
from tests.pytorch import open_clip, torch


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def square(x):
    return x @ x


SQUARE = 2 * 4**3  # of a [4, 4]


def test_a_product_and_its_batch():
    assert matmul_flops(jnp.matmul, shaped(3, 5), shaped(5, 7)) == 2 * 3 * 5 * 7
    assert matmul_flops(jnp.matmul, shaped(2, 3, 5), shaped(2, 5, 7)) == 2 * 2 * 3 * 5 * 7
    assert matmul_flops(lambda x: jnp.exp(x) + x, shaped(3, 5)) == 0


def test_arguments_are_trees_or_arrays():
    tree = {"x": np.ones((3, 5)), "w": shaped(5, 7)}
    assert matmul_flops(lambda tree: tree["x"] @ tree["w"], tree) == 2 * 3 * 5 * 7


def test_both_gradients_of_a_product_cost_it_again():
    def loss(x, w):
        return jnp.sum(jnp.sin(x @ w))

    args = shaped(3, 5), shaped(5, 7)
    forward = matmul_flops(loss, *args)
    assert matmul_flops(jax.grad(loss, argnums=(0, 1)), *args) == 3 * forward
    assert matmul_flops(jax.grad(loss, argnums=1), *args) == 2 * forward
    assert training_flops(loss, *args) == 3 * forward


def convolve(x, kernel, *, strides=(1, 1), groups=1):
    """x [N, H, W, C], kernel [k, k, C / groups, outputs]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("groups", (1, 2))
def test_a_convolution_and_each_of_its_gradients(stride, groups):
    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, strides=(stride, stride), groups=groups)))

    args = shaped(2, 8, 12, 6), shaped(3, 3, 6 // groups, 10)
    forward = 2 * (2 * (8 // stride) * (12 // stride) * 10) * (3 * 3 * 6 // groups)
    assert matmul_flops(loss, *args) == forward
    assert matmul_flops(jax.grad(loss, argnums=0), *args) == 2 * forward
    assert matmul_flops(jax.grad(loss, argnums=1), *args) == 2 * forward


def custom_vjp(x):
    function = jax.custom_vjp(square)
    function.defvjp(lambda x: (square(x), x), lambda x, cotangent: (cotangent @ x,))
    return function(x)


def custom_jvp(x):
    function = jax.custom_jvp(square)
    function.defjvp(lambda primals, tangents: (square(*primals), square(*tangents)))
    return function(x)


@pytest.mark.parametrize(
    "wrapped", (jax.jit(square), jax.checkpoint(square), custom_vjp, custom_jvp)
)
def test_what_wraps_a_product_neither_hides_nor_repeats_it(wrapped):
    assert matmul_flops(wrapped, shaped(4, 4)) == SQUARE


def test_rematerialisation_is_counted_where_it_runs_and_not_in_the_convention():
    def loss(x, w, v):
        return jnp.sum(jnp.sin(jax.checkpoint(lambda x: jnp.sin(x @ w) @ v)(x)))

    args = shaped(4, 4), shaped(4, 4), shaped(4, 4)
    executed = matmul_flops(jax.grad(loss, argnums=(0, 1, 2)), *args)
    assert executed > training_flops(loss, *args) == 6 * SQUARE


def test_a_scan_counts_its_length():
    def scan(x):
        return lax.scan(lambda carry, _: (square(carry), square(carry)), x, length=5)

    assert matmul_flops(scan, shaped(4, 4)) == 5 * 2 * SQUARE


def test_a_cond_counts_its_largest_branch():
    branches = (lambda x: x, lambda x: square(square(x)), square)
    switch = matmul_flops(lambda index, x: lax.switch(index, branches, x), 0, shaped(4, 4))
    assert switch == 2 * SQUARE


def test_a_while_counts_only_without_products():
    def loop(body):
        return lambda x: lax.while_loop(lambda x: x[0, 0] < 9, body, square(x))

    assert matmul_flops(loop(lambda x: x + 1), shaped(4, 4)) == SQUARE
    with pytest.raises(ValueError, match=r"products in a while.*lax\.scan"):
        matmul_flops(loop(square), shaped(4, 4))


def test_a_pallas_kernel_is_not_counted_wrongly():
    def kernel(x, out):
        out[...] = square(x[...])

    once = pl.pallas_call(kernel, out_shape=shaped(4, 4))
    assert matmul_flops(once, shaped(4, 4)) == SQUARE
    block = pl.BlockSpec((4, 4), lambda row: (row, 0))
    rows = pl.pallas_call(
        kernel, grid=(3,), in_specs=[block], out_specs=block, out_shape=shaped(12, 4)
    )
    assert matmul_flops(rows, shaped(12, 4)) == 3 * SQUARE


def test_a_shard_map_counts_all_devices():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec(("a", "b"))
    sharded = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert matmul_flops(sharded, shaped(16, 5), shaped(5, 7)) == 2 * 16 * 5 * 7


def test_a_shard_map_in_a_shard_map_counts_all_devices():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def over(axis, function, **mesh):
        spec = PartitionSpec(axis)
        return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names={axis}, **mesh)

    nested = over("a", over("b", lambda x: x @ jnp.ones((5, 7))), mesh=mesh)
    assert matmul_flops(nested, shaped(16, 5)) == 2 * 16 * 5 * 7


@functools.cache
def abstract_preset(name):
    return abstract_model({"name": name})[1:]


def forward_flops(name, call, *args):
    """Of `call(model, *args)` with a preset whose weights are never computed."""
    graphdef, trees = abstract_preset(name)

    def forward(trees, *args):
        return call(nnx.merge(graphdef, trees["params"], trees["batch_stats"]), *args)

    return matmul_flops(forward, trees, *args)


def transformer_macs(tokens, width, layers):
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    return layers * (attention + 2 * tokens * width * 4 * width)


def test_the_towers_of_vit_tiny_by_hand():
    images, tokens = shaped(3, 32, 32, 3), jax.ShapeDtypeStruct((3, 16), jnp.int32)
    image = forward_flops("ViT-tiny", CLIP.encode_image, images)
    text = forward_flops("ViT-tiny", CLIP.encode_text, tokens)
    patches, projection = 16 * (8 * 8 * 3) * 64, 64 * 64
    assert image == 3 * 2 * (patches + transformer_macs(17, 64, 2) + projection)
    assert text == 3 * 2 * (transformer_macs(16, 64, 2) + projection)
    assert forward_flops("ViT-tiny", CLIP.__call__, images, tokens) == image + text


def flops_in_pytorch(function, *args):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args)
    return counter.get_total_flops()


# open_clip's attention pool computes the answers to all 50 positions, and then uses the first: per
# unused one a query, its product with 50 keys and with 50 values, and the output projection.
UNUSED_IN_RN50 = 49 * 2 * (2048 * 2048 + 50 * 2048 + 50 * 2048 + 2048 * 1024)


@pytest.mark.parametrize(("name", "unused"), (("RN50", UNUSED_IN_RN50), ("ViT-B/32", 0)))
def test_published_sizes_cost_what_pytorch_counts(name, unused):
    model = open_clip.create_model(f"{name.replace('/', '-')}-quickgelu", device="meta").eval()
    images = torch.zeros(1, 3, 224, 224, device="meta")
    tokens = torch.zeros(1, 77, dtype=torch.int64, device="meta")
    image = forward_flops(name, CLIP.encode_image, shaped(1, 224, 224, 3))
    text = forward_flops(name, CLIP.encode_text, jax.ShapeDtypeStruct((1, 77), jnp.int32))
    assert image == flops_in_pytorch(model.encode_image, images) - unused
    assert text == flops_in_pytorch(model.encode_text, tokens)


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    (
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v2", 22.5e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA L40", None),
        ("NVIDIA H100", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("TPU8i", None),
        ("cpu", None),
    ),
)
def test_peaks_by_whole_words_of_the_kind(device_kind, peak):
    assert peak_flops(device_kind) == peak


def test_utilisation_is_a_share_of_all_devices():
    devices = [types.SimpleNamespace(device_kind="TPU v4")] * 4
    assert utilisation(4 * 275e12, 2.0, devices) == pytest.approx(0.5)
    assert utilisation(1e12, 1.0, jax.devices()) is None


def test_a_models_flops_are_those_of_what_its_towers_see():
    """However they compute it."""
    rows = {
        "images": jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((4, 16), jnp.int32),
    }
    whole = model_flops({"name": "ViT-tiny"}, rows)
    scanned = {"name": "ViT-tiny", "dtype": "bfloat16", "scan_blocks": True, "vision_remat": "full"}
    assert model_flops(scanned, rows) == whole
    short = rows | {"tokens": jax.ShapeDtypeStruct((4, 8), jnp.int32)}
    few = rows | {"kept_patches": jax.ShapeDtypeStruct((4, 8), jnp.int32)}
    assert model_flops({"name": "ViT-tiny"}, short) < whole
    assert model_flops({"name": "ViT-tiny"}, few) < whole
