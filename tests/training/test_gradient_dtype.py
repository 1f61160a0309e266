"""The type in which the devices' gradients are added up: how many bytes, and how exact the sum."""

import collections
import functools
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cyclip_jax import parallel
from cyclip_jax.costs.aot import abstract_step
from cyclip_jax.models.clip import split_model
from cyclip_jax.models.presets import abstract_model, create_model
from tests import tiny
from tests.launch.test_aot_check import SIZES as VIT_OF_FLAGS
from tests.launch.test_aot_check import TINY, has_libtpu
from tests.launch.test_aot_check import VIT as SMALL_VIT
from tests.runs import ROOT

DEVICES, ROWS = 8, 32
SIZES = {"image_size": 32, "context_length": 8, "vocab_size": 64, "embed_dim": 16}
SIZES |= {"text_layers": 1, "text_width": 16, "text_heads": 2}
VIT = SIZES | {
    "name": "ViT-tiny",
    "vision_layers": 1,
    "vision_width": 16,
    "vision_heads": 2,
    "patch_size": 16,
}
MODELS = {
    "ViT": VIT,
    "ViT-scanned": VIT | {"scan_blocks": True, "vision_remat": "full", "text_remat": "full"},
    "ResNet": SIZES | {"name": "RN-tiny"},
}
_REDUCED = re.compile(
    r'"stablehlo\.(?:all_reduce|reduce_scatter)".*?\}\) : \(tensor<([\dx]*?)x?(bf16|f32)>\)',
    re.DOTALL,
)


def weights_and_others(params):
    """The shapes of what a model multiplies by, and of all else that rows share but BatchNorm's."""
    weights, others = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(part.key) for part in path)
        if re.search(r"kernel$|proj$|text_projection$", name):
            weights.append(leaf.shape)
        elif not re.search(r"bn/|bn\d/|logit_scale", name):
            others.append(leaf.shape)
    return weights, others


@functools.cache
def added_up(model, gradient_dtype):
    """(shapes of the parameters as above, {type: shapes} of all sums over devices of a step)."""
    config = tiny.get_config()
    config.model = type(config.model)(config.model.to_dict() | MODELS[model])
    config.model.dtype, config.batch_size = "bfloat16", DEVICES
    config.mesh.gradient_dtype = gradient_dtype
    step = abstract_step(config, parallel.create_mesh(jax.devices()[:DEVICES]))
    # A CPU's compiler makes float32 of all sums: what is asked of it counts.
    found = {"f32": [], "bf16": []}
    for shape, dtype in _REDUCED.findall(step.lower().as_text()):
        found[dtype].append(tuple(map(int, filter(None, shape.split("x")))))
    return weights_and_others(step.state.params), found


def missing(expected, found):
    return collections.Counter(expected) - collections.Counter(found)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_a_bfloat16_model_are_added_up_in_float32(model):
    (weights, others), found = added_up(model, "float32")
    assert not missing(weights + others, found["f32"])
    assert not found["bf16"]


@pytest.mark.parametrize("model", MODELS)
def test_those_of_weights_take_half_the_bytes_in_bfloat16(model):
    (weights, others), found = added_up(model, "bfloat16")
    assert sorted(found["bf16"]) == sorted(weights)
    assert not missing(others, found["f32"])
    in_float32 = sum(map(math.prod, added_up(model, "float32")[1]["f32"]))
    assert in_float32 - sum(map(math.prod, found["f32"])) == sum(map(math.prod, weights))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, SIZES["vocab_size"], (ROWS, SIZES["context_length"]), np.int32)
    pull = rng.normal(size=(ROWS, SIZES["embed_dim"])).astype(np.float32)
    return {"tokens": tokens, "pull": pull}


@functools.cache
def text_tower():
    """(graphdef, parameters) of a model in bfloat16, of which the text tower is used."""
    graphdef, params, _ = split_model(create_model(**VIT, dtype="bfloat16", rngs=nnx.Rngs(0)))
    return graphdef, params


@functools.cache
def pulled_back(devices, fsdp, gradient_dtype):
    """(mesh, jitted gradient of the parameters from one of the embeddings)."""
    graphdef, _ = text_tower()
    mesh = parallel.create_mesh(jax.devices()[:devices], fsdp=fsdp)

    def pulled(params, rows):
        split = parallel.parameter_sharding(params, mesh, min_size=100)
        params = parallel.gathered(params, split, gradient_dtype)
        model = nnx.merge(graphdef, params, copy=True)
        with parallel.rows_over(mesh):
            return jnp.sum(model.encode_text(rows["tokens"]) * rows["pull"])

    return mesh, jax.jit(jax.grad(pulled))


def gradient(rows, *, devices=1, fsdp=1, gradient_dtype="float32"):
    """That of the text tower as one float64 vector."""
    mesh, function = pulled_back(devices, fsdp, gradient_dtype)
    gradients = function(text_tower()[1], parallel.to_global(rows, mesh))["text"]
    return np.concatenate([np.ravel(g).astype(np.float64) for g in jax.tree.leaves(gradients)])


@pytest.fixture(scope="module")
def exact_sum(batch):
    """The gradients of the devices' rows, each computed on one device, added up in float64."""
    own = ROWS // DEVICES
    parts = ({k: x[i : i + own] for k, x in batch.items()} for i in range(0, ROWS, own))
    return sum(map(gradient, parts))


def error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_devices_add_up_in_float32_as_exactly_as_one_would(batch, exact_sum, fsdp):
    assert error(gradient(batch, devices=DEVICES, fsdp=fsdp), exact_sum) <= 1e-7


def test_a_sum_in_bfloat16_is_rounded(batch, exact_sum):
    rounded = gradient(batch, devices=DEVICES, fsdp=4, gradient_dtype="bfloat16")
    assert 1e-4 < error(rounded, exact_sum) < 2**-8


@has_libtpu
@pytest.mark.slow
def test_a_tpu_adds_up_in_the_type_that_is_asked_for(tmp_path):
    sent = []
    for gradient_dtype in ("float32", "bfloat16"):
        path = tmp_path / "figures.json"
        command = [sys.executable, "launch/aot_check.py", *TINY, *SMALL_VIT, "--topology=v5e:2x4"]
        command += ["--config.model.dtype=bfloat16", f"--json={path}"]
        command += [f"--config.mesh.gradient_dtype={gradient_dtype}"]
        subprocess.run(command, cwd=ROOT, check=True)
        (phase,) = json.loads(path.read_text())["phases"]
        sent.append(phase["collectives"]["all-reduce"]["bytes"])
    config = tiny.get_config()
    config.model.update(VIT_OF_FLAGS)
    weights, _ = weights_and_others(abstract_model(config.model)[2]["params"])
    assert sent[0] - sent[1] == pytest.approx(2 * sum(map(math.prod, weights)), rel=0.05)
