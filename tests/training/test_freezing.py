"""Parts that do not train, and rates of layers and towers."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.costs.aot import abstract_step, work_of
from cyclip_jax.errors import UserError
from cyclip_jax.models.batch_norm import BatchNorm
from cyclip_jax.models.clip import normalise_images
from cyclip_jax.training.configured_model import abstract_trained, create_trained
from cyclip_jax.training.flops import model_flops
from cyclip_jax.training.freezing import (
    check_freeze,
    frozen_towers,
    of_statistics,
    paths_of,
    trainable_by,
)
from cyclip_jax.training.objective import Objective, configured_objective
from cyclip_jax.training.optimizer import create_optimizer
from cyclip_jax.training.rates import depths, rate_factors
from cyclip_jax.training.stages import Stage
from cyclip_jax.training.step import (
    configured_step,
    create_state,
    make_train_step,
    state_sharding,
)
from tests import tiny
from tests.training.test_step import LOSS, SIZES, make_batch, make_state, worst_difference

IMAGE_TOWER = ("visual/.*",)
VIT = {"name": "ViT-tiny", "vision_width": 16, "vision_heads": 2, "vision_layers": 2}


def configured(freeze=(), name="RN-tiny", **overrides):
    config = tiny.get_config()
    config.model.update(SIZES)
    config.model.name, config.batch_size, config.mesh.fsdp_min_size = name, 16, 100
    if name.startswith("ViT"):
        config.model.update(VIT)
    config.optimizer.freeze = freeze
    config.optimizer.weight_decay = 0.2
    config.optimizer.warmup_steps = 0
    config.update_from_flattened_dict(overrides)
    return config


def optimizer_of(config):
    return create_optimizer(**config.optimizer, total_steps=100, steps_per_epoch=1)


@functools.cache
def created(name):
    config = configured(name=name)
    return create_state(functools.partial(create_trained, config), optax.identity(), seed=0)


def state_of(config):
    state = created(config.model.name)
    state = jax.tree.map(jnp.copy, state)
    optimizer, _ = optimizer_of(config)
    return dataclasses.replace(state, opt_state=optimizer.init(state.params))


def trained(config, steps=1, devices=1, fsdp=1, **params):
    """[(state, metrics)] before and after each of some steps of a config."""
    mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)
    optimizer, schedule = optimizer_of(config)
    state = state_of(config)
    state.params.update(params)
    sharding = state_sharding(state, optimizer, mesh, min_size=100)
    step = configured_step(
        *(config, abstract_trained(config)[0], optimizer, schedule),
        mesh=mesh,
        state_sharding=sharding,
    )
    step = jax.jit(step, out_shardings=(sharding, parallel.replicated(mesh)))
    history = [(jax.device_put(state, sharding), {})]
    for number in range(steps):
        history.append(step(history[-1][0], parallel.to_global(make_batch(number), mesh)))
    return jax.device_get(history)


def leaves(tree):
    return dict(zip(paths_of(tree), jax.tree.leaves(tree), strict=True))


@pytest.fixture(scope="module")
def locked():
    """Five steps with a frozen image tower, and a frozen scale above its bound, ln 100."""
    return trained(configured((*IMAGE_TOWER, "logit_scale")), 5, logit_scale=jnp.float32(5.0))


def test_frozen_parameters_and_statistics_stay_bit_by_bit(locked):
    (before, _), *_, (after, metrics) = locked
    for kind, expected in (("params", {"text"}), ("batch_stats", set())):
        old, new = leaves(getattr(before, kind)), leaves(getattr(after, kind))
        assert {path[0] for path in old if not np.array_equal(old[path], new[path])} == expected
        assert all(not np.array_equal(old[p], new[p]) for p in old if p[0] in expected)
    assert int(metrics["skipped_steps"]) == 0 and float(after.params["logit_scale"]) == 5


def test_the_optimisers_state_has_no_leaf_of_what_is_frozen(locked):
    (before, _), *_, (after, _) = locked
    whole = optimizer_of(configured())[0].init(before.params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(s)) for s in (after.opt_state, whole)]
    image_tower = sum(leaf.size for leaf in jax.tree.leaves(before.params["visual"]))
    assert sizes[1] - sizes[0] == 2 * (image_tower + 1)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(after.opt_state)]
    assert any("text" in name for name in names)
    assert not any("visual" in name or "logit_scale" in name for name in names)


def test_the_gradients_norm_is_of_what_trains(locked):
    _, (state, metrics), *_ = locked
    # After the first step Adam's mean is a tenth of the gradient.
    gradient = 10 * optax.global_norm(state.opt_state.inner_state[1].mu)
    assert float(metrics["grad_norm"]) == pytest.approx(float(gradient), rel=1e-5)


def test_without_freezing_the_optimisers_state_is_as_before():
    state = optimizer_of(configured())[0].init(created("RN-tiny").params)
    assert [type(part) for part in state][1] is optax.ScaleByAdamState


@pytest.mark.parametrize(
    "patterns, standing",
    [
        ((), set()),
        (IMAGE_TOWER, {"visual/bn1", "visual/bn3", "visual/stages/3/0/downsample_bn"}),
        # A norm of which anything trains goes on moving.
        (("visual/bn.*", "visual/stages/3/.*/scale"), {"visual/bn1", "visual/bn3"}),
    ],
)
def test_a_norm_that_is_frozen_runs_by_its_statistics(patterns, standing):
    config = configured(patterns)
    graphdef, _ = abstract_trained(config)
    state = created("RN-tiny")
    norms = {
        "/".join(map(str, path)): module.use_running_average
        for path, module in nnx.iter_modules(nnx.merge(graphdef, state.params, state.batch_stats))
        if isinstance(module, BatchNorm)
    }
    some = {"visual/bn1", "visual/bn3", "visual/stages/3/0/downsample_bn"}
    assert {name for name in some if norms[name]} == standing
    moves = of_statistics(trainable_by(patterns) or (lambda _: True))
    still = {path[:-1] for path in paths_of(state.batch_stats) if not moves(path)}
    assert still == {tuple(map(_key, name.split("/"))) for name in norms if norms[name]}


def _key(part):
    return int(part) if part.isdecimal() else part


def test_a_frozen_image_tower_costs_no_backward_pass():
    mesh = parallel.create_mesh(jax.devices()[:1])

    def work(freeze, micro_batches):
        config = configured(freeze, "ViT-tiny", micro_batches=micro_batches)
        stage = Stage(first_step=0, objective=configured_objective(config))
        step = abstract_step(config, mesh, stage=stage)
        if micro_batches == 1:
            return work_of(config, step, stage)
        return jax.jit(step.function).lower(step.state, step.batch).compile().cost_analysis()

    shapes = {"images": jax.ShapeDtypeStruct((16, 32, 32, 3), "uint8")}
    rows = {"images": ("visual", "images")}
    forward = model_flops(configured(name="ViT-tiny").model, shapes, rows) / 3
    whole, locked = work((), 1), work(IMAGE_TOWER, 1)
    assert whole["model"] - locked["model"] == 2 * forward
    # The gradient with respect to the pixels was not asked for before, either.
    assert 1.7 * forward < whole["step"] - locked["step"] <= 2 * forward
    # With micro-batches its second forward pass goes, too. A loop's body counts once here.
    whole, locked = work((), 2), work(IMAGE_TOWER, 2)
    assert whole["flops"] - locked["flops"] > 2.7 * forward / 2


@pytest.mark.parametrize("options", [{"devices": 8, "fsdp": 2}, {"micro_batches": 4}])
def test_devices_and_micro_batches_give_the_gradient_of_one(options):
    """Of a ViT, in float64, with a frozen image tower and a layer of the text tower."""
    options = dict(options)
    devices, fsdp = options.pop("devices", 1), options.pop("fsdp", 1)
    trainable = trainable_by((*IMAGE_TOWER, "text/token_embedding"))

    def gradient(devices, fsdp, **options):
        state, graphdef = make_state(optax.identity(), "float64", perturb=0.1, **VIT)
        mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)
        sharding = state_sharding(state, optax.identity(), mesh, min_size=100)
        step = make_train_step(
            *(graphdef, optax.identity(), lambda _: 1.0),
            objective=Objective(**LOSS),
            normalise=functools.partial(normalise_images, dtype=jnp.float64),
            mesh=mesh,
            param_sharding=sharding.params,
            trainable=trainable,
            **options,
        )
        step = jax.jit(step, out_shardings=(sharding, parallel.replicated(mesh)))
        after, metrics = step(
            jax.device_put(state, sharding), parallel.to_global(make_batch(), mesh)
        )
        difference = jax.tree.map(operator.sub, state.params, jax.device_get(after.params))
        assert not difference["visual"]["proj"].any()
        assert not difference["text"]["token_embedding"].any()
        result = {"gradient": difference, "norm": metrics["grad_norm"]}
        return jax.tree_util.tree_leaves_with_path(jax.device_get(result))

    with jax.enable_x64(True):
        assert worst_difference(gradient(devices, fsdp, **options), gradient(1, 1)) <= 1e-10


def test_fsdp_trains_the_rest_as_one_device_does():
    config = configured(IMAGE_TOWER, "ViT-tiny")
    one, eight = (trained(config, 1, *mesh)[-1][0] for mesh in ((1, 1), (8, 2)))
    for path, leaf in leaves(one.params).items():
        if path[0] == "visual":
            np.testing.assert_array_equal(leaves(eight.params)[path], leaf)
    for old, new in zip(
        jax.tree.leaves(one.opt_state), jax.tree.leaves(eight.opt_state), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "patterns, among, sentence",
    [
        (("visual",), None, r"'visual', which is the whole name of no parameter; .* visual/\.\*"),
        (("visual/conv/kernel",), None, r"nearest are .*visual/conv\d/kernel"),
        ((".*",), None, "leaves nothing to train; leave out some"),
        (
            ("text/.*",),
            lambda path: path[0] == "text",
            "nothing to train in the steps on sentences",
        ),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, among, sentence):
    _, params = abstract_trained(configured())
    with pytest.raises(UserError, match=r"config\.optimizer\.freeze .*" + sentence):
        check_freeze(patterns, params, among)


def test_towers_are_frozen_as_wholes_or_not():
    _, params = abstract_trained(configured())
    assert frozen_towers((), params) == set()
    assert frozen_towers(("visual/conv.*", "logit_scale"), params) == {"logit_scale"}
    assert frozen_towers(IMAGE_TOWER, params) == {"visual"}


# By hand, of the towers of VIT and of RN-tiny, which has a block in each of its four stages.
@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "ViT-tiny",
            {
                "logit_scale": 0,
                "visual/proj": 0,
                "visual/ln_post/scale": 0,
                "visual/transformer/resblocks/1/c_fc/kernel": 1,
                "visual/transformer/resblocks/0/ln_1/bias": 2,
                "visual/ln_pre/scale": 3,
                "visual/conv1/kernel": 3,
                "visual/positional_embedding": 3,
                "text/text_projection": 0,
                "text/ln_final/bias": 0,
                "text/transformer/resblocks/0/attn/in_proj/kernel": 1,
                "text/token_embedding": 2,
            },
        ),
        (
            "RN-tiny",
            {
                "visual/attnpool/positional_embedding": 0,
                "visual/attnpool/q_proj/kernel": 0,
                "visual/stages/3/0/conv1/kernel": 1,
                "visual/stages/0/0/bn1/scale": 4,
                "visual/conv1/kernel": 5,
                "visual/bn3/bias": 5,
            },
        ),
    ],
)
def test_the_depth_of_a_layer(name, expected):
    _, params = abstract_trained(configured(name=name))
    found = {"/".join(map(str, path)): depth for path, depth in depths(params).items()}
    assert {name: found[name] for name in expected} == expected


def test_factors_are_powers_of_the_decay_times_the_towers_rate():
    _, params = abstract_trained(configured(name="ViT-tiny"))
    rates = {"visual": 0.5, "text": 1.0}
    factors = rate_factors(params, layer_decay=0.6, tower_rates=rates)
    assert factors["visual"]["proj"] == 0.5
    assert factors["visual"]["class_embedding"] == pytest.approx(0.5 * 0.6**3)
    assert factors["text"]["text_projection"] == factors["logit_scale"] == 1
    assert factors["text"]["token_embedding"] == pytest.approx(0.6**2)
    assert rate_factors(params, layer_decay=1.0, tower_rates={"visual": 1, "text": 1}) is None
    with_bias = rate_factors(params | {"logit_bias": 0.0}, layer_decay=0.6, tower_rates=rates)
    assert with_bias == factors | {"logit_bias": 1.0}


@functools.cache
def plain_step():
    # With so large an eps Adam is smooth where a gradient is zero but for rounding.
    return [state for state, _ in trained(configured(name="ViT-tiny", **{"optimizer.eps": 1.0}))]


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_a_step_moves_each_layer_by_its_own_rate(scan_blocks):
    config = configured(name="ViT-tiny", **{"model.scan_blocks": scan_blocks, "optimizer.eps": 1.0})
    config.optimizer.layer_decay, config.optimizer.tower_rates.visual = 0.6, 0.25
    before, whole = plain_step()
    _, (slower, _) = trained(config)
    factors = rate_factors(before.params, layer_decay=0.6, tower_rates=config.optimizer.tower_rates)
    trees = (before.params, whole.params, slower.params, factors)
    for old, a, b, factor in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(b - old, factor * (a - old), rtol=1e-3, atol=1e-7)
    assert jax.tree.structure(slower.opt_state) == jax.tree.structure(whole.opt_state)


@pytest.mark.parametrize(
    "setting, value, sentence",
    [
        ("freeze", ("visual/(",), r"has 'visual/\(', which is no regular expression"),
        ("layer_decay", 0.0, "layer_decay 0.0 must be greater than 0 and at most 1"),
        ("layer_decay", 1.5, "layer_decay 1.5 must be"),
        (
            "tower_rates",
            {"visual": 0.0, "text": 1.0},
            r"to keep a tower .*freeze to \('visual/\.\*',\)",
        ),
        ("tower_rates", {"visual": 1.0}, "tower_rates has visual; it must have visual and text"),
    ],
)
def test_settings_that_no_run_can_have(setting, value, sentence):
    section = {**configured().optimizer, setting: value}
    with pytest.raises(UserError, match=sentence):
        create_optimizer(**section, total_steps=100, steps_per_epoch=1)
