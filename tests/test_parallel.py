import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cyclip_jax import parallel
from cyclip_jax.errors import UserError
from cyclip_jax.models.presets import abstract_model
from cyclip_jax.training.optimizer import adamw
from cyclip_jax.training.step import TrainState, state_sharding

MIN_SIZE = 2**16


def create_mesh(fsdp, devices=8):
    return parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)


# The other presets differ from these in sizes alone.
@pytest.mark.parametrize("preset", ["RN50", "ViT-B/32", "RN-tiny", "ViT-tiny"])
def test_every_parameter_of_every_model_has_a_rule(preset):
    """And nearly all of the large ones are split: what stays whole is little."""
    _, _, model = abstract_model({"name": preset})
    leaves = jax.tree.leaves(model["params"])
    shardings = jax.tree.leaves(
        parallel.parameter_sharding(model["params"], create_mesh(8), min_size=MIN_SIZE)
    )
    whole = sum(
        math.prod(leaf.shape)
        for leaf, sharding in zip(leaves, shardings, strict=True)
        if sharding.is_fully_replicated
    )
    total = sum(math.prod(leaf.shape) for leaf in leaves)
    assert whole < 0.02 * total or total < 2e6


def test_a_parameter_without_a_rule_is_an_error():
    params = {"visual": {"new_layer": {"weights": np.zeros((8, 8))}}}
    with pytest.raises(ValueError, match="visual/new_layer/weights"):
        parallel.parameter_sharding(params, create_mesh(2), min_size=0)


def test_small_and_indivisible_parameters_stay_whole():
    params = {
        "large": {"kernel": np.zeros((4, 64))},
        "small": {"kernel": np.zeros((4, 8))},
        "odd": {"kernel": np.zeros((4, 65))},
        "conv1": {"kernel": np.zeros((3, 3, 4, 16))},
    }
    shardings = parallel.parameter_sharding({"a": params}, create_mesh(4), min_size=100)["a"]
    assert shardings["large"]["kernel"].spec == PartitionSpec(None, parallel.FSDP_AXIS)
    assert shardings["conv1"]["kernel"].spec == PartitionSpec(None, None, None, parallel.FSDP_AXIS)
    assert shardings["small"]["kernel"].is_fully_replicated
    assert shardings["odd"]["kernel"].is_fully_replicated


def test_the_optimisers_state_is_split_as_its_parameters():
    optimizer = adamw(beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.1, gradient_clip_norm=1.0)
    params = {"text": {"token_embedding": np.zeros((64, 32))}, "logit_scale": np.zeros(())}
    scalar = np.zeros((), np.int32)
    state = TrainState(
        scalar, params, {}, optimizer.init(params), jax.random.key(0), scalar, scalar, scalar
    )
    mesh = create_mesh(4)
    sharding = state_sharding(state, optimizer, mesh, min_size=100)
    placed = jax.device_put(state, sharding)
    moments = placed.opt_state[1]
    for tree in (placed.params, moments.mu, moments.nu):
        embedding = tree["text"]["token_embedding"]
        assert {shard.data.shape for shard in embedding.addressable_shards} == {(64, 8)}
    assert moments.count.sharding.is_fully_replicated


def test_neighbours_share_a_copy_and_rows_are_split_over_all():
    mesh = create_mesh(2)
    assert mesh.shape == {"data": 4, "fsdp": 2}
    assert [d.id for d in mesh.devices.flat] == sorted(d.id for d in jax.devices())
    rows = parallel.to_global({"x": np.arange(16)}, mesh)["x"]
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2,)}
    np.testing.assert_array_equal(rows, np.arange(16))


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_an_axis_that_does_not_divide_the_devices_is_an_error(fsdp):
    with pytest.raises(UserError, match=rf"config\.mesh\.fsdp {fsdp} .* 1, 2, 4, 8"):
        create_mesh(fsdp)


@pytest.mark.parametrize(
    "batch_size, micro_batches, message",
    [
        (12, 1, r"config\.batch_size 12 .* over 8 devices; .* multiple of 8"),
        (24, 2, r"config\.batch_size 24 .* over 8 devices and 2 micro-batches; .* multiple of 16"),
        (0, 1, r"config\.batch_size 0"),
        (8, 0, r"config\.micro_batches 0"),
    ],
)
def test_rows_that_do_not_split_evenly_are_an_error(batch_size, micro_batches, message):
    with pytest.raises(UserError, match=message):
        parallel.check_batch_size(batch_size, create_mesh(2), micro_batches=micro_batches)
