import dataclasses
import functools
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import defaults, parallel
from cyclip_jax.models import create_model
from cyclip_jax.models.clip import MAX_LOGIT_SCALE, normalise_images, split_model
from cyclip_jax.training.clipping import CLIPS, FACTOR, WITH_HISTORY, clipping
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.optimizer import adamw
from cyclip_jax.training.step import all_finite, create_state, make_train_step, state_sharding

SIZES = {
    "image_size": 32,
    "vision_width": 8,
    "vision_heads": 4,
    "embed_dim": 12,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "context_length": 6,
    "vocab_size": 40,
}
ROWS = 16
LOSS = {"inmodal_weight": 0.25, "crossmodal_weight": 0.25}


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 38, (ROWS, 6), np.int32)
    tokens[np.arange(ROWS), rng.integers(2, 6, ROWS)] = 39
    return {"images": rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8), "tokens": tokens}


def creator(name, dtype, **overrides):
    """A function that creates a model."""
    return lambda: create_model(name, rngs=nnx.Rngs(0), dtype=dtype, **{**SIZES, **overrides})


@functools.cache
def created_state(name, **overrides):
    """The state of a model in float32, made once: its random numbers take long to compile."""
    with jax.enable_x64(False):
        return create_state(creator(name, "float32", **overrides), optax.identity(), seed=0)


def make_state(optimizer, dtype, *, perturb=0.0, name="RN-tiny", **overrides):
    """A state and its graphdef; perturbed, so that no residual branch is hidden by a zero scale."""
    state = created_state(name, **overrides)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: np.asarray(p + perturb * rng.standard_normal(p.shape), dtype),
        jax.device_get(state.params),
    )
    batch_stats = jax.tree.map(lambda s: np.asarray(s, dtype), state.batch_stats)
    state = dataclasses.replace(
        state, params=params, batch_stats=batch_stats, opt_state=optimizer.init(params)
    )
    model = nnx.eval_shape(creator(name, dtype, **overrides))
    model.train()
    return state, split_model(model)[0]


def run_on(devices, state, graphdef, batch, dtype, *, fsdp=1, objective=None, **options):
    """One step of plain gradient descent, so that old − new parameters are the gradient."""
    mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)
    sharding = state_sharding(state, optax.identity(), mesh, min_size=100)
    normalise = functools.partial(normalise_images, dtype=jnp.dtype(dtype))
    step = make_train_step(
        graphdef,
        optax.identity(),
        lambda step: 1.0,
        normalise=normalise,
        mesh=mesh,
        param_sharding=sharding.params,
        objective=objective or Objective(**LOSS, chunk_size=3),
        **options,
    )
    new_state, metrics = jax.jit(step, out_shardings=(sharding, parallel.replicated(mesh)))(
        jax.device_put(state, sharding), parallel.to_global(batch, mesh)
    )
    gradient = jax.tree.map(lambda old, new: np.asarray(old) - new, state.params, new_state.params)
    result = {"loss": metrics["loss"], "gradient": gradient, "stats": new_state.batch_stats}
    return jax.tree_util.tree_leaves_with_path(jax.device_get(result))


def differences(actual, expected):
    """{name: relative difference}; a tensor that is zero by nature, as key biases are, counts
    relative to a thousandth of the largest."""
    largest = max(np.abs(leaf).max() for _, leaf in expected)
    result = {}
    for (path, a), (_, e) in zip(actual, expected, strict=True):
        scale = max(np.linalg.norm(e), 1e-3 * largest)
        result[jax.tree_util.keystr(path)] = np.linalg.norm(np.subtract(a, e)) / scale
    return result


@functools.cache
def perturbed_state(dtype, **overrides):
    """A state for steps of plain gradient descent, made once."""
    return make_state(optax.identity(), dtype, perturb=0.1, **overrides)


def gradients_and_statistics(dtype, devices, *, step=MappingProxyType({}), **overrides):
    with jax.enable_x64(dtype == "float64"):
        state, graphdef = perturbed_state(dtype, **overrides)
        return run_on(devices, state, graphdef, make_batch(), dtype, **step)


def worst_difference(actual, expected):
    worst = max(differences(actual, expected).items(), key=lambda item: item[1])
    print(f"largest relative difference of {len(expected)} tensors: {worst}")
    return worst[1]


@pytest.fixture(scope="module")
def resnet_on_one_device():
    return gradients_and_statistics("float64", 1)


# Without BatchNorm no row depends on another but through the loss.
VIT = {"name": "ViT-tiny", "vision_width": 16, "vision_heads": 2, "vision_layers": 2}


@pytest.fixture(scope="module")
def vit_on_one_device():
    return gradients_and_statistics("float64", 1, **VIT)


def test_eight_devices_give_loss_gradients_and_statistics_of_one(resnet_on_one_device):
    eight = gradients_and_statistics("float64", 8, step={"fsdp": 2})
    assert worst_difference(eight, resnet_on_one_device) <= 1e-10


@pytest.mark.slow
def test_eight_devices_differ_from_one_by_rounding_alone_in_float32():
    one, eight = (gradients_and_statistics("float32", devices) for devices in (1, 8))
    assert worst_difference(eight, one) <= 1e-4


@pytest.fixture(scope="module")
def resnet_in_two_groups():
    return gradients_and_statistics("float64", 1, batch_norm_group_size=ROWS // 2)


def test_statistics_of_each_device_alone_would_fail_that_test(
    resnet_on_one_device, resnet_in_two_groups
):
    assert max(differences(resnet_in_two_groups, resnet_on_one_device).values()) > 1e-3


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "devices, fsdp",
    [(8, 1), (8, 4), pytest.param(8, 8, marks=SLOW), pytest.param(2, 2, marks=SLOW)],
)
def test_any_mesh_gives_the_gradients_of_one_device(vit_on_one_device, devices, fsdp):
    sharded = gradients_and_statistics("float64", devices, step={"fsdp": fsdp}, **VIT)
    assert worst_difference(sharded, vit_on_one_device) <= 1e-10


@pytest.mark.parametrize("devices, micro_batches", [(1, 4), (1, 16), (4, 2)])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    vit_on_one_device, devices, micro_batches
):
    step = {"micro_batches": micro_batches}
    parts = gradients_and_statistics("float64", devices, step=step, **VIT)
    assert worst_difference(parts, vit_on_one_device) <= 1e-10


def test_each_micro_batch_alone_would_fail_that_test(vit_on_one_device):
    """What gradient accumulation does: the mean of the parts' own losses and gradients."""
    with jax.enable_x64(True):
        state, graphdef = perturbed_state("float64", **VIT)
        batches = [{name: rows[i::4] for name, rows in make_batch().items()} for i in range(4)]
        parts = [run_on(1, state, graphdef, batch, "float64") for batch in batches]
    mean = [(path, np.mean([dict(p)[path] for p in parts], axis=0)) for path, _ in parts[0]]
    assert max(differences(mean, vit_on_one_device).values()) > 1e-2


def test_batch_norm_sees_each_micro_batch_and_follows_their_mean_once(resnet_in_two_groups):
    """The statistics of micro-batches are those of ghost groups of the same images."""
    with jax.enable_x64(True):
        state, graphdef = perturbed_state("float64")
        # Micro-batch i has rows i, i + 2, …: put the groups there.
        order = np.arange(ROWS).reshape(2, -1).T.ravel()
        batch = jax.tree.map(lambda rows: rows[order], make_batch())
        parts = run_on(1, state, graphdef, batch, "float64", micro_batches=2)
    assert worst_difference(parts, resnet_in_two_groups) <= 1e-10


@pytest.fixture(scope="module")
def adamw_step():
    """A state, and a compiled step by AdamW, with each kind of clipping that keeps a history."""
    sections = defaults.get_config().optimizer
    optimizer = optax.chain(
        *[clipping(CLIPS[kind](**sections[kind])) for kind in WITH_HISTORY],
        adamw(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, gradient_clip_norm=None),
    )
    state, graphdef = make_state(optimizer, "float32", perturb=0.01)
    step = make_train_step(graphdef, optimizer, lambda step: 1e-2, objective=Objective(**LOSS))
    return state, jax.jit(step)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)  # NaN equals NaN here


# In training, BatchNorm's running variance is in the new statistics alone.
@pytest.mark.parametrize(
    "kind, path, loss_is_nan",
    [
        ("params", ("visual", "conv1", "kernel"), True),
        ("params", ("text", "ln_final", "scale"), True),
        ("batch_stats", ("visual", "bn1", "var"), False),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(
    adamw_step, kind, path, loss_is_nan
):
    state, step = adamw_step
    before, _ = step(state, make_batch())
    # New dicts, the same arrays.
    poisoned = jax.tree.map(lambda array: array, getattr(before, kind))
    tower, module, leaf = path
    poisoned[tower][module][leaf] = jnp.full_like(poisoned[tower][module][leaf], jnp.nan)
    poisoned = dataclasses.replace(before, **{kind: poisoned})

    after, metrics = step(poisoned, make_batch(1))
    assert np.isnan(metrics["loss"]) == loss_is_nan
    for name in ("params", "batch_stats", "opt_state"):
        assert_equal(getattr(after, name), getattr(poisoned, name))
    assert (int(after.step), int(after.skipped_steps), int(after.skipped_in_a_row)) == (2, 1, 1)
    again, metrics = step(after, make_batch(1))
    assert (int(again.skipped_steps), int(again.skipped_in_a_row)) == (2, 2)
    assert int(metrics["skipped_steps"]) == 2

    # Once the numbers are finite again, it is as if those steps had never been.
    healed, _ = step(dataclasses.replace(again, **{kind: getattr(before, kind)}), make_batch(1))
    expected, _ = step(before, make_batch(1))
    for name in ("params", "batch_stats", "opt_state"):
        assert_equal(getattr(healed, name), getattr(expected, name))
    assert (int(healed.step), int(healed.skipped_steps), int(healed.skipped_in_a_row)) == (4, 2, 0)


def test_a_finite_step_changes_everything(adamw_step):
    state, step = adamw_step
    after, metrics = step(state, make_batch())
    for name in ("params", "batch_stats"):
        old, new = getattr(state, name), getattr(after, name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(old):
            changed = new
            for key in path:
                changed = changed[key.key]
            assert not np.array_equal(leaf, changed), jax.tree_util.keystr(path)
    assert float(metrics["grad_norm"]) > 0
    for old, new in zip(state.opt_state, after.opt_state, strict=True):
        assert any(map(np.any, jax.tree.leaves(jax.tree.map(np.not_equal, old, new))))
    assert 0 < float(metrics[FACTOR]) <= 1
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_anywhere_is_seen(bad):
    good = {"a": jnp.ones((2, 3)), "b": [jnp.zeros(())]}
    assert all_finite(good)
    assert not all_finite({**good, "a": good["a"].at[1, 2].set(bad)})
    assert not all_finite({**good, "b": [jnp.asarray(bad)]})
    large = {**good, "c": jnp.ones((200, 100))}
    assert all_finite(large)
    assert not all_finite({**large, "c": large["c"].at[-1, -1].set(bad)})


@pytest.mark.parametrize("start, end", [(4.7, MAX_LOGIT_SCALE), (-0.5, 0.0)])
def test_logit_scale_is_clamped_after_the_update(adamw_step, start, end):
    state, step = adamw_step
    params = {**state.params, "logit_scale": jnp.float32(start)}
    after, _ = step(dataclasses.replace(state, params=params), make_batch())
    assert float(after.params["logit_scale"]) == pytest.approx(end, abs=1e-6)
