"""Averages of the weights along a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.costs.aot import abstract_step, bytes_per_device
from cyclip_jax.errors import UserError
from cyclip_jax.training import averaging
from cyclip_jax.training.averaging import (
    Average,
    beta_shares,
    completed,
    followed,
    part_of,
    with_average,
)
from cyclip_jax.training.configured_model import abstract_trained
from cyclip_jax.training.freezing import trainable_by
from cyclip_jax.training.starting_point import checkpoint_items, state_of_items
from cyclip_jax.training.step import configured_step, state_sharding
from tests.training.test_freezing import configured, leaves, optimizer_of, state_of
from tests.training.test_step import make_batch

EMA = Average(kind="ema", decay=0.75, beta=0.5)
BETA = Average(kind="beta", decay=0.9, beta=0.5)


def weights_along(path, average, steps, steps_before=0):
    """The average of a run whose weights after t steps are path(t)."""
    share = average.share(total_steps=steps, steps_before=steps_before)
    tree = {"params": {"text": np.asarray(path(0))}, "batch_stats": {}}
    for step in range(steps):
        now = {"params": {"text": np.asarray(path(step + 1))}, "batch_stats": {}}
        tree = followed(tree, now, share(jnp.int32(step)))
    return tree["params"]["text"]


def test_the_weights_of_the_beta_average_are_those_of_the_density():
    shares = beta_shares(4, 0.5)
    weights = [share * np.prod(1 - shares[number + 1 :]) for number, share in enumerate(shares)]
    np.testing.assert_allclose(weights, [0.2558, 0.1675, 0.1535, 0.1675, 0.2558], atol=5e-5)


def test_a_linear_path_is_averaged_by_its_weights(x64):
    assert float(weights_along(float, BETA, 4)) == pytest.approx(2.0, rel=1e-12)  # by symmetry
    x = (np.arange(8) + 0.5) / 8
    weights = (x * (1 - x)) ** (0.1 - 1)
    average = dataclasses.replace(BETA, beta=0.1)
    expected = np.sum(weights * np.arange(8)) / np.sum(weights)
    assert float(weights_along(float, average, 7)) == pytest.approx(expected, rel=1e-12)
    expected = 0.0
    for t in range(1, 8):
        expected = 0.75 * expected + 0.25 * t
    assert float(weights_along(float, EMA, 7)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("average", [EMA, BETA], ids=["ema", "beta"])
def test_what_is_constant_stays_to_the_last_bit(average):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    np.testing.assert_array_equal(weights_along(lambda t: values, average, 9), values)


@pytest.mark.parametrize("average", [EMA, BETA], ids=["ema", "beta"])
def test_the_average_begins_with_the_pairs(average, x64):
    late = weights_along(lambda t: float(max(t - 3, 0)) if t >= 3 else 7.0, average, 8, 3)
    assert float(late) == pytest.approx(float(weights_along(float, average, 5)), rel=1e-12)
    assert average.share(total_steps=3, steps_before=3)(jnp.int32(0)) < 1  # sentences alone


def test_without_an_average_there_is_none():
    off = Average(kind="none", decay=0.9, beta=0.5)
    assert off.share(total_steps=5) is None and not off.is_on


@pytest.mark.parametrize(
    "setting, value, sentence",
    [
        ("kind", "mean", "unknown config.average.kind 'mean'; choose one of none, ema, beta"),
        ("decay", 1.0, "config.average.decay 1.0 must be from 0 to below 1"),
        ("beta", 0.0, "config.average.beta 0.0 must be greater than 0"),
    ],
)
def test_settings_that_no_run_can_have(setting, value, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(EMA, **{setting: value})


def stepped(config, average, steps, devices=1, fsdp=1):
    """([state] before and after each of some steps, the compiled step)."""
    mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)
    optimizer, schedule = optimizer_of(config)
    state = with_average(state_of(config), trainable_by(config.optimizer.freeze))
    sharding = state_sharding(state, optimizer, mesh, min_size=100)
    step = configured_step(
        *(config, abstract_trained(config)[0], optimizer, schedule),
        mesh=mesh,
        state_sharding=sharding,
        average_share=average.share(total_steps=steps),
    )
    step = jax.jit(step, out_shardings=(sharding, parallel.replicated(mesh)))
    history = [jax.device_put(state, sharding)]
    for number in range(steps):
        batch = parallel.to_global(make_batch(number), mesh)
        history.append(step(history[-1], batch)[0])
    return history, step


FROZEN = ("visual/(conv|bn).*", "text/token_embedding")


@pytest.fixture(scope="module")
def history():
    """Of a ResNet with a frozen stem and token embedding, and its step."""
    return stepped(configured(FROZEN), EMA, 3)


def test_a_step_averages_what_trains_and_its_statistics(history):
    history = jax.device_get(history[0])
    last = history[-1]
    for kind in ("params", "batch_stats"):
        found = leaves(last.average[kind])
        old = leaves(getattr(history[0], kind))
        trains = {p for p in old if not np.array_equal(old[p], leaves(getattr(last, kind))[p])}
        assert found.keys() == trains and len(trains) < len(old)
        for path in found:
            expected = old[path]
            for state in history[1:]:
                expected = 0.75 * expected + 0.25 * leaves(getattr(state, kind))[path]
            np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6)


def test_the_average_changes_no_bit_of_the_run(history):
    config = configured(FROZEN)
    optimizer, schedule = optimizer_of(config)
    state = state_of(config)
    sharding = jax.tree.map(lambda x: x.sharding, state)
    mesh = parallel.create_mesh(jax.devices()[:1])
    graphdef, _ = abstract_trained(config)
    step = configured_step(
        config, graphdef, optimizer, schedule, mesh=mesh, state_sharding=sharding
    )
    after, _ = jax.jit(step)(state, make_batch(0))
    jax.tree.map(np.testing.assert_array_equal, after.params, history[0][1].params)
    assert after.average is None


def test_a_step_that_is_skipped_leaves_the_average(history):
    (_, state, *_), step = history
    scale = jnp.full_like(state.params["logit_scale"], jnp.nan)
    poisoned = dataclasses.replace(state, params={**state.params, "logit_scale": scale})
    after, _ = step(poisoned, parallel.to_global(make_batch(), scale.sharding.mesh))
    assert int(after.skipped_steps) == 1
    jax.tree.map(np.testing.assert_array_equal, after.average, state.average)


def test_eight_devices_with_fsdp_give_the_average_of_one():
    config = configured(("visual/.*",), "ViT-tiny", **{"optimizer.eps": 1.0})
    one, eight = (stepped(config, BETA, 1, *mesh)[0][-1] for mesh in ((1, 1), (8, 2)))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight.average))
    for (_, a), (_, b) in zip(
        *(sorted(leaves(s.average["params"]).items()) for s in (one, eight)), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


def test_what_a_step_costs_is_told_before_with_the_average():
    config = configured(FROZEN, **{"average.kind": "ema"})
    mesh = parallel.create_mesh(jax.devices()[:4], fsdp=2)
    step = abstract_step(config, mesh)
    state, _ = jax.eval_shape(step.function, step.state, step.batch)
    assert jax.tree.structure(state) == jax.tree.structure(step.state)
    trained = bytes_per_device(step.state.opt_state) / 2  # Adam's two means
    assert bytes_per_device(step.state.average["params"]) == pytest.approx(trained, abs=4)


def test_a_checkpoint_holds_an_average_like_the_model(history):
    state = history[0][-1]
    head = {"kernel": np.ones((2, 2), np.float32)}
    state = dataclasses.replace(state, params={**state.params, "sentence_head": head})
    model, training = checkpoint_items(state)
    assert jax.tree.structure(training["average"]) == jax.tree.structure(model)
    np.testing.assert_array_equal(  # what is frozen is its own average
        training["average"]["params"]["visual"]["conv1"]["kernel"],
        state.params["visual"]["conv1"]["kernel"],
    )
    back = state_of_items(model, training)
    own = averaging.like(state.average, back.average)
    jax.tree.map(np.testing.assert_array_equal, own, state.average)
    without, training = checkpoint_items(dataclasses.replace(state, average=None))
    assert "average" not in training and without.keys() == {"params", "batch_stats"}


def test_the_parts_of_an_average_are_put_together_again():
    full = {
        "params": {"a": np.ones(2), "b": {"scale": np.zeros(1)}, "sentence_head": np.ones(1)},
        "batch_stats": {"b": {"mean": np.ones(1)}},
    }
    average = part_of(full, trainable_by(("b/.*",)))
    assert average["params"] == {"a": average["params"]["a"], "b": {"scale": None}}
    assert average["batch_stats"] == {"b": {"mean": None}}
    whole = completed(average, full)
    assert whole["params"].keys() == {"a", "b"} and whole["batch_stats"] == full["batch_stats"]
