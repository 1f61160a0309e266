import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.clipping import spiked
from cyclip_jax import defaults, parallel
from cyclip_jax.errors import UserError
from cyclip_jax.training.clipping import CLIPS, FACTOR, ClipAlarm, clipping
from cyclip_jax.training.optimizer import Optimizer, adamw
from cyclip_jax.training.step import TrainState, state_sharding
from tests.training.test_step import assert_equal

KINDS = [kind for kind, constructor in CLIPS.items() if constructor is not None]


def clip(kind, **own):
    return CLIPS[kind](**defaults.get_config().optimizer[kind].to_dict() | own)


def optimizer(**own):
    return Optimizer(**defaults.get_config().optimizer.to_dict() | own)


def clipped_in_turn(transformation, norms, params=None):
    """(norms after clipping, state, factors) of gradients {"a": [norm]} in turn."""
    params = {"a": jnp.ones(1)} if params is None else params
    state, after, factors = transformation.init(params), [], []
    for norm in norms:
        told = {}
        grads = {"a": jnp.asarray([norm], jnp.result_type(float))}
        grads, state = transformation.update(grads, state, params, told=told)
        after.append(float(grads["a"][0]))
        factors.append(float(told[FACTOR]))
    return after, state, factors


def test_autoclip_cuts_to_the_percentile_of_the_norms_so_far(x64):
    after, state, factors = clipped_in_turn(clipping(clip("autoclip")), range(1, 12))
    assert after[-1] == pytest.approx(2.0, rel=1e-12)
    assert factors[-1] == pytest.approx(2 / 11, rel=1e-12)
    assert after[0] == 1.0  # the first is all that there is
    assert state.norms[:11].tolist() == list(range(1, 12))


def test_autoclip_forgets_what_its_window_does_not_hold(x64):
    after, *_ = clipped_in_turn(clipping(clip("autoclip", window=3)), [9, 9, 9, 4, 4, 4, 5])
    assert after[-1] == pytest.approx(4.0)


def test_zclip_is_the_published_code(x64):
    after, state, _ = clipped_in_turn(clipping(clip("zclip", warmup_steps=4)), [1, 3, 1, 3, 12])
    assert after[:4] == [1, 3, 1, 3]
    z = (12 - 2) / (1 + 1e-6)
    bound = 2 + 2.5 / (z / 2.5)
    mean = 0.97 * 2 + 0.03 * bound
    assert after[4] == pytest.approx(bound, rel=1e-9) == pytest.approx(2.62500062, abs=1e-8)
    assert float(state.mean) == pytest.approx(mean, rel=1e-9) == pytest.approx(2.01875002, abs=1e-8)
    variance = 0.97 + 0.03 * (bound - mean) ** 2
    assert float(state.variance) == pytest.approx(variance, rel=1e-9)
    assert float(state.variance) == pytest.approx(0.98102619, abs=1e-8)


def test_zclip_leaves_norms_below_its_threshold(x64):
    after, state, _ = clipped_in_turn(clipping(clip("zclip", warmup_steps=4)), [1, 3, 1, 3, 4.4])
    assert after[4] == 4.4
    assert float(state.mean) == pytest.approx(0.97 * 2 + 0.03 * 4.4, rel=1e-12)


def test_zclip_cuts_a_spike_among_equal_norms_to_them(x64):
    after, *_ = clipped_in_turn(clipping(clip("zclip")), [1.0] * 25 + [10.0])
    assert after[-1] == pytest.approx(1.0, abs=1e-12)


def test_adagc_lets_a_norm_grow_a_little_at_a_time(x64):
    after, state, _ = clipped_in_turn(clipping(clip("adagc", warmup_steps=1)), [1.0, 5.0])
    assert after[1] == pytest.approx(1.05, rel=1e-12)
    assert state.norms.tolist() == [pytest.approx(1.001, rel=1e-12)]


def test_adagc_cuts_the_global_norm_first_and_keeps_the_smallest_norms(x64):
    transformation = clipping(clip("adagc", warmup_steps=2))
    params = {"a": jnp.zeros(1), "b": jnp.zeros((1, 1))}
    state = transformation.init(params)
    for a, b in ((3.0, 4.0), (0.3, 0.9)):
        grads = {"a": jnp.full(1, a), "b": jnp.full((1, 1), b)}
        grads, state = transformation.update(grads, state, params)
    np.testing.assert_allclose([grads["a"][0], grads["b"][0, 0]], [0.3, 0.9], rtol=1e-12)
    np.testing.assert_allclose(state.norms, [0.3, 0.8], rtol=1e-12)
    # From now on each tensor has a bound of its own.
    grads = {"a": jnp.full(1, 3.0), "b": jnp.full((1, 1), 0.5)}
    grads, state = transformation.update(grads, state, params)
    np.testing.assert_allclose([grads["a"][0], grads["b"][0, 0]], [1.05 * 0.3, 0.5], rtol=1e-12)
    np.testing.assert_allclose(state.norms[1], 0.98 * 0.8 + 0.02 * 0.5, rtol=1e-12)


def test_adagc_does_not_stop_what_had_no_gradient_yet(x64):
    """As a convolution before a BatchNorm whose scale starts at zero."""
    after, state, _ = clipped_in_turn(clipping(clip("adagc", warmup_steps=2)), [0, 0, 0, 0.5])
    assert after[-1] == 0.5
    assert state.norms.tolist() == [pytest.approx(0.98 + 0.02 * 0.5)]


def test_adagc_keeps_one_vector_for_all_tensors():
    state = clip("adagc").init({"a": {"kernel": jnp.zeros((4, 4))}, "b": jnp.zeros(())})
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(), (2,)]


def matrices(seed, scale):
    draw = np.random.default_rng(seed).standard_normal
    block = {"kernel": draw((6, 4)), "bias": draw(4)}
    conv = {"kernel": draw((3, 3, 2, 4))}
    tree = {
        "visual": {"conv1": conv, "proj": draw((4, 4)), "attnpool": {"c_proj": block}},
        "text": {"token_embedding": draw((9, 4)), "ln_final": {"scale": draw(4)}, "c_fc": block},
        "logit_scale": draw(),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(scale * leaf), tree)


def test_agc_cuts_the_kernels_inside_the_towers_as_timm_does(x64):
    from tests.pytorch import torch  # isort: skip
    from timm.utils.agc import adaptive_clip_grad

    params, grads = matrices(0, 1.0), matrices(1, 0.02)
    clipped, _ = clipping(clip("agc")).update(grads, optax.EmptyState(), params)
    kernels = {("visual", "conv1"): (3, 2, 0, 1), ("text", "c_fc"): (1, 0)}
    for (tower, layer), axes in kernels.items():
        parameter = torch.nn.Parameter(
            torch.tensor(np.transpose(params[tower][layer]["kernel"], axes).copy())
        )
        parameter.grad = torch.tensor(np.transpose(grads[tower][layer]["kernel"], axes).copy())
        adaptive_clip_grad(parameter, clip_factor=0.01)
        ours = np.transpose(clipped[tower][layer]["kernel"], axes)
        np.testing.assert_allclose(ours, parameter.grad.numpy(), rtol=1e-12)
        assert not np.array_equal(clipped[tower][layer]["kernel"], grads[tower][layer]["kernel"])
        clipped[tower][layer]["kernel"] = grads[tower][layer]["kernel"]
    assert_equal(clipped, grads)  # all else is as it was


def test_agc_of_a_column_of_norm_one_is_its_ratio():
    params = {"c_fc": {"kernel": jnp.array([[0.6], [0.8]])}}
    clipped, _ = clipping(clip("agc")).update(params, optax.EmptyState(), params)
    assert float(optax.global_norm(clipped)) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_bind_changes_no_bit(kind):
    own = {"adagc": {"warmup_steps": 2}, "zclip": {"warmup_steps": 2}}.get(kind, {})
    transformation = clipping(clip(kind, **own), 1e3)
    params, grads = matrices(0, 1.0), matrices(1, 1e-4)
    state = transformation.init(params)
    for _ in range(4):
        told = {}
        before = state
        clipped, state = transformation.update(grads, state, params, told=told)
        assert_equal(clipped, grads)
        # What was compiled for the first step takes the state of every other.
        assert jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, state)
        assert float(told[FACTOR]) == 1
        grads = jax.tree.map(lambda g: 0.9 * g, grads)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_the_largest_norm_bounds_every_kind(kind, x64):
    transformation = clipping(None if kind is None else clip(kind), 0.25)
    params, told = matrices(0, 1.0), {}
    clipped, _ = transformation.update(
        matrices(1, 10.0), transformation.init(params), params, told=told
    )
    assert float(optax.global_norm(clipped)) == pytest.approx(0.25, rel=1e-12)
    before = float(optax.global_norm(matrices(1, 10.0)))
    assert float(told[FACTOR]) == pytest.approx(0.25 / before, rel=1e-12)


def test_the_factor_is_the_quotient_of_the_norms(x64):
    params, grads = matrices(0, 1.0), matrices(1, 1.0)
    for kind in ("agc", "adagc"):
        transformation, told = clipping(clip(kind)), {}
        clipped, _ = transformation.update(grads, transformation.init(params), params, told=told)
        expected = float(optax.global_norm(clipped) / optax.global_norm(grads))
        assert expected < 0.9 and float(told[FACTOR]) == pytest.approx(expected, rel=1e-12)


def test_no_gradient_is_cut_by_nothing():
    for kind in KINDS:
        after, _, factors = clipped_in_turn(clipping(clip(kind), 1.0), [0.0, 0.0])
        assert after == [0, 0] and factors == [1, 1]


def test_a_run_without_clipping_computes_what_it_did():
    """The same operations, the same structure of the state, and no metric."""
    before = optax.chain(
        optax.identity(), optax.scale_by_adam(), optax.add_decayed_weights(0.1, mask={"a": True})
    )
    now = adamw(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, gradient_clip_norm=None)
    params, told = {"a": jnp.ones((2, 2))}, {}
    state = now.init(params)
    now.update(params, state, params, told=told)
    assert told == {}
    programs = {str(jax.make_jaxpr(one.update)(params, state, params)) for one in (before, now)}
    assert len(programs) == 1
    for kind in ("none", "norm", "agc"):
        state = optimizer(gradient_clip=kind, gradient_clip_norm=1.0).transformation().init(params)
        assert jax.tree.structure(state) == jax.tree.structure(before.init(params))


def test_clipping_by_norm_is_what_it_was(x64):
    grads = matrices(1, 1.0)
    ours, _ = jax.jit(clipping(None, 1.0).update)(grads, optax.EmptyState())
    theirs, _ = jax.jit(optax.clip_by_global_norm(1.0).update)(grads, optax.EmptyState())
    assert_equal(ours, theirs)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_eight_devices_that_share_the_parameters_clip_as_one(kind, x64):
    # The state after three steps has a history.
    own = {"adagc": {"warmup_steps": 1}, "zclip": {"warmup_steps": 2}}.get(kind, {})
    transformation = clipping(None if kind is None else clip(kind, **own), 2.0)
    draw = np.random.default_rng(0).standard_normal
    params = {"text": {"c_fc": {"kernel": draw((16, 32)), "bias": draw(32)}}, "logit_scale": 2.0}
    params = jax.tree.map(jnp.asarray, params)
    scalar = np.zeros((), np.int32)
    state = TrainState(
        scalar, params, {}, transformation.init(params), jax.random.key(0), *[scalar] * 3
    )
    results = []
    for devices, fsdp in ((1, 1), (8, 4)):
        mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)
        sharding = state_sharding(state, transformation, mesh, min_size=100)
        assert not [leaf for leaf in jax.tree.leaves(sharding.opt_state) if leaf.spec]
        place = (sharding.params, sharding.opt_state)
        update = jax.jit(transformation.update, out_shardings=place)
        placed = jax.device_put(params, sharding.params)
        opt_state = jax.device_put(state.opt_state, sharding.opt_state)
        for step in range(3):
            grads = jax.tree.map(lambda p, step=step: jnp.sin(p * (step + 1)) * 4**step, placed)
            grads, opt_state = update(grads, opt_state, placed)
        results.append(jax.device_get((grads, opt_state)))
    one, eight = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), one, eight)


@pytest.mark.parametrize("kind", ["zclip", "adagc"])
def test_a_spike_moves_the_parameters_like_a_usual_step(kind):
    moved, _ = spiked(kind, "sgd")
    assert moved < 3
    assert spiked("none", "sgd")[0] > 100


def test_a_spike_stays_in_adams_second_moment_unless_it_is_cut():
    assert spiked("zclip", "adamw")[1] < 1.5
    assert spiked("none", "adamw")[1] > 100


def test_the_alarm_says_once_that_most_steps_are_cut():
    alarm = ClipAlarm(0.5)
    told = [alarm.check(norm) for norm in [0.4] * 10 + [0.8] * 30]
    assert [text for text in told if text] == [told[19]]  # it takes 20
    assert told[19].startswith(
        "config.optimizer.gradient_clip_norm 0.5 cuts most steps: the median"
    )
    for bound, norm in ((None, 5.0), (0.5, 0.4)):
        alarm = ClipAlarm(bound)
        assert not any(alarm.check(norm) for _ in range(50))


@pytest.mark.parametrize(
    "own, sentence",
    [
        ({"gradient_clip": "agcc"}, "unknown config.optimizer.gradient_clip 'agcc'"),
        ({"gradient_clip": "norm"}, "config.optimizer.gradient_clip is 'norm'; set config.opt"),
        ({"agc": {"ratio": 0.0, "eps": 1e-3}}, "config.optimizer.agc.ratio 0.0 must be above 0"),
        ({"agc": {"ratio": 0.1}}, "config.optimizer.agc lacks the field 'eps'"),
        ({"autoclip": {"percentile": 101.0, "window": 9}}, "config.optimizer.autoclip.percentile"),
        ({"autoclip": {"percentile": 10.0, "window": 0}}, "config.optimizer.autoclip.window 0 m"),
        ({"zclip": {"threshold": 2.5, "decay": 1.0, "warmup_steps": 25}}, "config.optimizer.zclip"),
    ],
)
def test_what_no_run_can_use_is_refused(own, sentence):
    with pytest.raises(UserError) as error:
        optimizer(**own)
    assert str(error.value).startswith(sentence)
