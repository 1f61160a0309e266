"""The losses in tiles and over devices against their definitions."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cyclip_jax import parallel
from cyclip_jax.costs.hlo import collectives, largest_buffer
from cyclip_jax.errors import UserError
from cyclip_jax.losses import contrastive, cyclip_loss
from cyclip_jax.losses.contrastive import contrastive_loss, contrastive_loss_dense
from cyclip_jax.losses.cyclic import cyclic_consistency_dense
from tests.conftest import unit_rows

ROWS, WIDTH, SCALE = 48, 12, 30.0
CYCLIC_WEIGHTS = {"inmodal_weight": 0.5, "crossmodal_weight": 0.25}


def create_mesh(devices, fsdp=1):
    return parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)


def whole_loss_dense(images, texts, scale):
    """Contrastive and cyclic terms from their definitions, and the accuracies."""
    loss, accuracies = contrastive_loss_dense(images, texts, scale)
    inmodal, crossmodal = cyclic_consistency_dense(images, texts)
    return loss + 0.5 * inmodal + 0.25 * crossmodal, accuracies


def whole_loss(images, texts, scale, **options):
    loss, metrics = cyclip_loss(images, texts, scale, **CYCLIC_WEIGHTS, **options)
    return loss, (metrics["image_to_text_accuracy"], metrics["text_to_image_accuracy"])


def value_and_gradients(loss, *arguments):
    (value, accuracies), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        *arguments
    )
    return jax.device_get((value, accuracies, gradients))


def assert_close(actual, expected, tolerance):
    """Largest difference relative to the largest number, array by array."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        difference = np.abs(np.asarray(a, np.float64) - e).max()
        assert difference <= tolerance * max(np.abs(e).max(), 1e-30), (a, e)


@pytest.fixture(scope="module")
def definition():
    """Embeddings in float64, and what the definition makes of them."""
    with jax.enable_x64(True):
        embeds = unit_rows(0, ROWS, WIDTH), unit_rows(1, ROWS, WIDTH)
        return embeds, value_and_gradients(whole_loss_dense, *embeds, SCALE)


# Chunks that divide the device's rows, that leave a rest, of one row, and larger than all.
@pytest.mark.parametrize(
    "devices, fsdp, chunk_size",
    [(1, 1, 48), (1, 1, 7), (1, 1, 1), (2, 2, 9), (3, 1, 5), (4, 2, 100), (8, 1, 3), (8, 4, 4)],
)
def test_any_devices_and_chunks_give_the_definition(x64, definition, devices, fsdp, chunk_size):
    embeds, expected = definition
    options = {"mesh": create_mesh(devices, fsdp), "chunk_size": chunk_size}
    loss = functools.partial(whole_loss, **options)
    assert_close(value_and_gradients(loss, *embeds, SCALE), expected, 1e-12)


@pytest.mark.parametrize("devices", [1, 8])
def test_no_scale_and_no_row_maximum_overflows_or_vanishes(x64, devices):
    """At scale 100, with rows whose largest cosine is anywhere from −1 to 1."""
    rng = np.random.default_rng(0)
    direction = np.eye(WIDTH)[0]
    lean = np.linspace(-0.999, 0.999, ROWS)[:, None]
    tangent = rng.normal(size=(ROWS, WIDTH))
    tangent -= (tangent @ direction)[:, None] * direction
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    images = lean * direction + np.sqrt(1 - lean**2) * tangent
    texts = np.tile(direction, (ROWS, 1)) + 1e-3 * tangent
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    maxima = (images @ texts.T).max(axis=1)
    assert maxima.min() < -0.99 and maxima.max() > 0.99

    def sharded(images, texts, scale):
        return whole_loss(images, texts, scale, mesh=create_mesh(devices), chunk_size=5)

    expected = value_and_gradients(whole_loss_dense, images, texts, 100.0)
    assert_close(value_and_gradients(sharded, images, texts, 100.0), expected, 1e-11)
    with jax.enable_x64(False):
        single = [x.astype(np.float32) for x in (images, texts)]
        value, _, gradients = value_and_gradients(sharded, *single, np.float32(100))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    assert_close(gradients, expected[2], 1e-4)


def test_bfloat16_embeddings_are_compared_in_float32_and_sent_in_bfloat16():
    mesh = create_mesh(8)
    images, texts = (jnp.asarray(unit_rows(s, ROWS, WIDTH), jnp.bfloat16) for s in (0, 1))
    sharded = functools.partial(whole_loss, mesh=mesh, chunk_size=4)
    with jax.enable_x64(True):
        wide = (x.astype(np.float64) for x in jax.device_get((images, texts)))
        expected = value_and_gradients(whole_loss_dense, *wide, SCALE)
    value, _, gradients = value_and_gradients(sharded, images, texts, SCALE)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    assert [g.dtype.name for g in gradients] == ["bfloat16", "bfloat16", "float32"]
    # To eight bits are rounded the contrastive part, the cyclic part, and their sum.
    assert_close(gradients[:2], expected[2][:2], 2**-7)
    assert_close(gradients[2], expected[2][2], 1e-5)
    jaxpr = str(jax.make_jaxpr(sharded)(images, texts, SCALE))
    gathered = [line for line in jaxpr.splitlines() if " all_gather[" in line]
    assert len(gathered) == 1 and "bf16[8,6,12]" in gathered[0]


def test_a_gradient_that_is_not_summed_over_devices_would_fail(x64, definition, monkeypatch):
    embeds, expected = definition
    monkeypatch.setattr(
        contrastive,
        "sum_scattered",
        lambda x, axis_names: jax.lax.dynamic_index_in_dim(
            x, jax.lax.axis_index(axis_names), keepdims=False
        ),
    )
    broken = functools.partial(whole_loss, mesh=create_mesh(8), chunk_size=5)
    value, _, gradients = value_and_gradients(broken, *embeds, SCALE)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    assert_close(gradients[0], expected[2][0], 1e-12)
    with pytest.raises(AssertionError):
        assert_close(gradients[1], expected[2][1], 1e-3)


def compiled_text(loss, rows, width, devices=8):
    mesh = create_mesh(devices)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    embeds = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=sharding)
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, mesh), (0, 1, 2)))
    return gradient.lower(embeds, embeds, 10.0).compile().as_text()


def contrastive_alone(mesh, images, texts, scale):
    rows = PartitionSpec(mesh.axis_names)
    loss = functools.partial(contrastive_loss, chunk_size=16, axis_names=mesh.axis_names)
    specs = {"in_specs": (rows, rows, PartitionSpec()), "out_specs": PartitionSpec()}
    return jax.shard_map(loss, mesh=mesh, **specs)(images, texts, scale)[0]


def test_cyclic_terms_add_one_all_reduce_and_no_large_buffer():
    rows, width = 512, 24  # an N×N matrix would be larger than anything else
    without = compiled_text(contrastive_alone, rows, width)
    both = compiled_text(
        lambda mesh, *embeds: whole_loss(*embeds, mesh=mesh, chunk_size=16)[0], rows, width
    )

    def sent(text, kind):
        return sorted(
            (record.bytes, record.executions) for record in collectives(text) if record.kind == kind
        )

    assert sent(both, "all-gather") == sent(without, "all-gather") == [(rows * width * 4, 1)]

    def reduced(text):
        shapes = [record.shape for record in collectives(text) if record.kind == "all-reduce"]
        return re.findall(r"\w+\[[\d,]*\]", " ".join(shapes))

    # The backward pass scatters one tile's sum after the other: 64 local rows in chunks of 16.
    assert sent(both, "reduce-scatter") == sent(without, "reduce-scatter") == [(16 * width * 4, 4)]
    # XLA may send several sums as one: what counts is the arrays.
    added = collections.Counter(reduced(both))
    added.subtract(reduced(without))
    assert +added == {f"f32[3,{width},{width}]": 1} and not -added
    for kind in ("all-to-all", "collective-permute"):
        assert sent(both, kind) == []
    tile = 8 * 16 * (rows // 8)  # devices · chunk · local rows
    assert largest_buffer(both)[0] == max(tile, rows * width) < rows**2 / 8


def test_an_empty_chunk_is_an_error():
    with pytest.raises(UserError, match=r"config\.loss\.chunk_size 0"):
        cyclip_loss(unit_rows(0, 4, 3), unit_rows(1, 4, 3), 1.0, chunk_size=0)
