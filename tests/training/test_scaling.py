import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cyclip_jax import defaults, parallel
from cyclip_jax.errors import UserError
from cyclip_jax.models import create_model
from cyclip_jax.training.clipping import CLIPS
from cyclip_jax.training.optimizer import NAMES, Optimizer, weight_decay_mask
from cyclip_jax.training.scaling import are_inside
from cyclip_jax.training.step import TrainState, state_sharding
from cyclip_jax.workdir.checkpoints import Checkpointer
from tests.training.test_step import assert_equal

WIDTH = 4
RATE = 0.01


def optimizer(name="adamw", **own):
    section = defaults.get_config().optimizer.to_dict() | {"name": name, "weight_decay": 0.1}
    return Optimizer(**section | own).transformation()


def tree(seed):
    """A block, a convolution, and what is not inside a tower; as arrays of the parameters' type."""
    draw = np.random.default_rng(seed).standard_normal
    attention = {"in_proj": {"kernel": draw((WIDTH, 3 * WIDTH)), "bias": draw(3 * WIDTH)}}
    block = {"attn": attention, "c_fc": {"kernel": draw((WIDTH, 8)), "bias": draw(8)}}
    visual = {"conv1": {"kernel": draw((3, 3, 3, 4))}, "proj": draw((4, 4))}
    visual["class_embedding"] = draw(4)
    visual["stages"] = {
        0: {0: {"conv2": {"kernel": draw((3, 3, 2, 8))}, "bn2": {"scale": draw(8)}}}
    }
    text = {"transformer": {"resblocks": {0: block}}, "token_embedding": draw((9, WIDTH))}
    return jax.tree.map(jnp.asarray, {"visual": visual, "text": text, "logit_scale": draw()})


def taken(transformation, steps=3):
    """(parameters after some steps, the state, the updates of the last step)."""
    params, updates = tree(0), None
    state, update = transformation.init(params), jax.jit(transformation.update)
    for step in range(steps):
        updates, state = update(tree(step + 1), state, params)
        params = jax.tree.map(lambda p, u: p - RATE * u, params, updates)
    return params, state, updates


def by_hand(update):
    """{path: array} after three steps of update(path, gradient, weight, memory) -> update."""
    flat = [
        {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}
        for found in (jax.tree_util.tree_leaves_with_path(tree(seed)) for seed in range(4))
    ]
    params, memory = flat[0], {path: {} for path in flat[0]}
    for step, grads in enumerate(flat[1:], start=1):
        params = {
            path: weight - RATE * update(path, grads[path], weight, memory[path], step)
            for path, weight in params.items()
        }
    return params


def is_matrix(path):
    return path.endswith(("['kernel']", "['proj']", "['token_embedding']"))


def adam(gradient, memory, step, eps):
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * gradient
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * gradient**2
    return memory["m"] / (1 - 0.9**step) / (np.sqrt(memory["v"] / (1 - 0.999**step)) + eps)


def adamw(path, gradient, weight, memory, step):
    return adam(gradient, memory, step, 1e-8) + 0.1 * is_matrix(path) * weight


def lion(path, gradient, weight, memory, step):
    mean = memory.get("m", 0)
    memory["m"] = 0.99 * mean + 0.01 * gradient
    return np.sign(0.9 * mean + 0.1 * gradient) + 0.1 * is_matrix(path) * weight


def lamb(path, gradient, weight, memory, step):
    update = adam(gradient, memory, step, 1e-6)
    if not is_matrix(path):
        return update
    update = update + 0.1 * weight
    return update * np.linalg.norm(weight) / np.linalg.norm(update)


def orthogonal(matrix):
    """Five Newton–Schulz steps of Jordan et al., on the wide side."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon(path, gradient, weight, memory, step):
    if not ("resblocks" in path or "stages" in path) or "kernel" not in path:
        return adamw(path, gradient, weight, memory, step)
    memory["m"] = 0.95 * memory.get("m", 0) + 0.05 * gradient
    mean = 0.95 * memory["m"] / (1 - 0.95 ** (step + 1)) + 0.05 * gradient / (1 - 0.95**step)
    if "in_proj" in path:
        matrices = np.split(mean, 3, axis=1)
    else:
        matrices = [mean.reshape(-1, mean.shape[-1])]
    scaled = [0.2 * np.sqrt(max(one.shape)) * orthogonal(one) for one in matrices]
    return np.concatenate(scaled, axis=1).reshape(weight.shape) + 0.1 * weight


@pytest.mark.parametrize("update", [adamw, lion, lamb, muon])
def test_each_optimiser_is_its_formula(update, x64):
    params, *_ = taken(optimizer(update.__name__))
    expected = by_hand(update)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-9, err_msg=name)


def test_muon_makes_query_key_and_value_orthogonal_each_by_itself(x64):
    _, _, updates = taken(optimizer("muon", weight_decay=0.0))
    kernel = updates["text"]["transformer"]["resblocks"][0]["attn"]["in_proj"]["kernel"]
    for part in np.split(kernel, 3, axis=1):
        values = np.linalg.svd(part / (0.2 * np.sqrt(WIDTH)), compute_uv=False)
        assert values.min() > 0.3 and values.max() < 1.3
    rms = np.sqrt(np.mean(np.square(kernel)))
    assert 0.15 < rms < 0.25  # as an update of AdamW


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_muon_takes_the_kernels_inside_the_towers_alone(name):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    others = set()
    for path, is_inside in jax.tree_util.tree_leaves_with_path(are_inside(params)):
        keys = [str(part.key) for part in path]
        if keys[-1] == "kernel" and not is_inside:
            others.add("/".join(keys[:-1]))
        assert keys[-1] == "kernel" or not is_inside
    stem = (
        {"visual/conv2", "visual/conv3", "visual/attnpool/c_proj"} if name == "RN-tiny" else set()
    )
    assert others == {"visual/conv1"} | stem


def test_muon_keeps_one_mean_for_a_kernel_inside_and_two_for_all_else():
    numbers = sum(leaf.size for leaf in jax.tree.leaves(tree(0)))
    inside = jax.tree.map(lambda leaf, is_in: leaf.size * is_in, tree(0), are_inside(tree(0)))
    state = optimizer("muon").init(tree(0))
    kept = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32)
    coefficients = 3  # of Newton and Schulz
    assert kept - coefficients == 2 * numbers - sum(jax.tree.leaves(inside))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", ["matrices", "official_names"])
def test_the_rule_of_weight_decay_holds_for_every_optimiser(name, rule):
    """Without gradients, decay alone moves the parameters."""
    transformation = optimizer(name, weight_decay_rule=rule)
    params = tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(transformation.update)(zeros, transformation.init(params), params)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved == weight_decay_mask(params, rule)


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_that_share_the_parameters_step_as_one(name, x64):
    transformation = optimizer(name)
    params, scalar = tree(0), np.zeros((), np.int32)
    state = TrainState(
        scalar, params, {}, transformation.init(params), jax.random.key(0), *[scalar] * 3
    )
    results = []
    for devices, fsdp in ((1, 1), (8, 4)):
        mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)
        sharding = state_sharding(state, transformation, mesh, min_size=16)
        split = [leaf for leaf in jax.tree.leaves(sharding.opt_state) if any(leaf.spec)]
        assert len(split) >= 5 or fsdp == 1
        update = jax.jit(transformation.update, out_shardings=(sharding.params, sharding.opt_state))
        placed = jax.device_put(params, sharding.params)
        opt_state = jax.device_put(state.opt_state, sharding.opt_state)
        for step in range(3):
            grads = jax.device_put(tree(step + 1), sharding.params)
            updates, opt_state = update(grads, opt_state, placed)
            placed = jax.tree.map(lambda p, u: p - RATE * u, placed, updates)
        results.append(jax.device_get((placed, opt_state)))
    one, eight = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), one, eight)


@pytest.mark.parametrize(
    "own",
    [{"name": name} for name in NAMES]
    + [{"gradient_clip": kind} for kind in ("autoclip", "adagc")],
    ids=str,
)
def test_a_checkpoint_continues_with_the_same_bits(own, tmp_path):
    assert own.get("gradient_clip", "none") in CLIPS
    transformation = optimizer(**own)
    params, state, _ = taken(transformation)
    abstract = jax.eval_shape(transformation.init, params)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, model={"params": params}, training={"opt_state": state}, meta={})
    restored = checkpointer.restore_newest(
        model={"params": params}, training={"opt_state": abstract}
    )
    checkpointer.close()
    _, model, training, _ = restored
    update = jax.jit(transformation.update)
    again = update(tree(9), training["opt_state"], model["params"])
    assert_equal(again, update(tree(9), state, params))
    assert jax.tree.structure(training["opt_state"]) == jax.tree.structure(state)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_gradients_may_be_of_two_bytes(name):
    means = []
    for dtype in ("float32", "bfloat16"):
        state = optimizer(name, first_moment_dtype=dtype).init(tree(0))
        found = jax.tree_util.tree_leaves_with_path(state)
        means.append(
            {leaf.dtype.name for path, leaf in found if ".mu" in jax.tree_util.keystr(path)}
        )
    assert means == [{"float32"}, {"bfloat16"}]


@pytest.mark.parametrize(
    "own, sentence",
    [
        (
            {"name": "sgd"},
            "unknown config.optimizer.name 'sgd'; choose one of adamw, lion, lamb, m",
        ),
        ({"lion": {"beta1": 1.0, "beta2": 0.99}}, "config.optimizer.lion.beta1 1.0 must be from 0"),
        (
            {"muon": {"beta": 0.9, "steps": 0, "rms": 0.2}},
            "config.optimizer.muon.steps 0 must be a",
        ),
        (
            {"muon": {"beta": 0.9, "steps": 5, "rms": 0.0}},
            "config.optimizer.muon.rms 0.0 must be a",
        ),
        ({"lamb": {"beta1": 0.9, "beta2": 0.9}}, "config.optimizer.lamb lacks the field 'eps'"),
    ],
)
def test_what_no_run_can_use_is_refused(own, sentence):
    with pytest.raises(UserError) as error:
        optimizer(**own)
    assert str(error.value).startswith(sentence)


def test_lamb_on_matrices_is_that_of_optax(x64):
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    ours, theirs = optimizer("lamb"), optax.lamb(1.0, weight_decay=0.1)
    grads = {"a": {"kernel": jnp.sin(params["a"]["kernel"])}}
    update, _ = ours.update(grads, ours.init(params), params)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-12), update, expected)
