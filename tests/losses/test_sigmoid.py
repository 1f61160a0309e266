"""SigLIP's loss: its definition, its tiles over devices, and open_clip's own."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cyclip_jax import parallel
from cyclip_jax.costs import hlo
from cyclip_jax.losses import pairwise
from cyclip_jax.losses.contrastive import contrastive_loss
from cyclip_jax.losses.sigmoid import sigmoid_loss, sigmoid_loss_dense
from cyclip_jax.training.flops import matmul_flops
from tests.conftest import unit_rows
from tests.pytorch import open_clip, torch

SCALE, BIAS = 10.0, -4.0


def slowly(images, texts, scale, bias):
    """The formula, pair by pair."""
    n, total = len(images), 0.0
    for i in range(n):
        for j in range(n):
            y = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-y * (scale * images[i] @ texts[j] + bias))))
    return total / n


def over(devices, chunk_size=256, function=sigmoid_loss):
    """The loss of rows that are split over so many devices."""
    loss = functools.partial(function, chunk_size=chunk_size)
    if devices == 1:
        return loss
    mesh = parallel.create_mesh(jax.devices()[:devices])
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(
        functools.partial(loss, axis_names=mesh.axis_names),
        mesh=mesh,
        in_specs=(rows, rows, whole, whole),
        out_specs=whole,
    )


def gradients(loss, *given):
    (value, accuracy), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*given)
    return jax.device_get((value, accuracy, *grads))


def rows(n=24, d=5):
    return unit_rows(1, n, d), unit_rows(2, n, d)


def test_the_definition_is_the_formula(x64):
    images, texts = rows(6)
    loss, accuracy = sigmoid_loss_dense(images, texts, SCALE, BIAS)
    assert float(loss) == pytest.approx(slowly(images, texts, SCALE, BIAS), rel=1e-13)
    nearest = (images @ texts.T).argmax(axis=1)
    assert float(accuracy) == np.mean(nearest == np.arange(6))


@pytest.mark.parametrize("devices, chunk_size", [(1, 5), (1, 256), (4, 1), (8, 2), (8, 256)])
def test_tiles_have_the_value_and_the_gradient_of_the_definition(x64, devices, chunk_size):
    given = (*rows(), SCALE, BIAS)
    expected = gradients(sigmoid_loss_dense, *given)
    tiled = gradients(over(devices, chunk_size), *given)
    for ours, theirs in zip(tiled, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    value, accuracy = over(devices, chunk_size)(*given)  # without a gradient
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-14)
    assert float(accuracy) == float(expected[1])


def test_a_push_that_is_not_summed_over_devices_would_fail(x64, monkeypatch):
    given = (*rows(), SCALE, BIAS)
    expected = gradients(sigmoid_loss_dense, *given)
    monkeypatch.setattr(
        pairwise,
        "sum_scattered",
        lambda x, axis_names: jax.lax.dynamic_index_in_dim(
            x, jax.lax.axis_index(axis_names), keepdims=False
        ),
    )
    jax.clear_caches()  # the inner function is compiled for the whole process
    broken = gradients(over(8, 2), *given)
    jax.clear_caches()
    np.testing.assert_allclose(broken[2], expected[2], atol=1e-12)
    assert np.abs(broken[3] - expected[3]).max() > 1e-3


def test_right_values(x64):
    three = np.eye(3)
    expected = math.log(2) + 2 * math.log(1 + math.exp(-10))
    assert expected == pytest.approx(0.693237978, rel=1e-9)
    assert float(sigmoid_loss(three, three, 10.0, -10.0)[0]) == pytest.approx(expected, rel=1e-12)
    same = np.full((6, 4), 0.5)
    for scale, bias in ((10.0, -10.0), (3.0, -1.0)):
        equal = math.log1p(math.exp(-scale - bias)) + 5 * math.log1p(math.exp(scale + bias))
        loss, accuracy = sigmoid_loss(same, same, scale, bias)
        assert float(loss) == pytest.approx(equal, rel=1e-12)
        assert float(accuracy) == 0  # ties are misses
    images, texts = rows(6)
    assert float(sigmoid_loss(images, texts, 0.0, 0.0)[0]) == pytest.approx(6 * math.log(2))


def test_open_clip_has_the_same_value_and_gradients():
    given = (*(x.astype(np.float32) for x in rows(16, 8)), np.float32(SCALE), np.float32(BIAS))
    tensors = [torch.tensor(x, requires_grad=True) for x in given]
    value = open_clip.loss.SigLipLoss()(*tensors)
    theirs = [value, *torch.autograd.grad(value, tensors)]
    ours = gradients(over(8, 1), *given)
    for our, their in zip((ours[0], *ours[2:]), theirs, strict=True):
        np.testing.assert_allclose(our, their.detach().numpy(), rtol=2e-6, atol=2e-6)


def test_one_pass_multiplies_three_times_and_sends_the_rows_once():
    n, d, devices = 64, 16, 8
    given = [np.zeros((n, d), np.float32)] * 2 + [np.float32(10), np.float32(-10)]
    both = jax.value_and_grad(over(devices, 4), (0, 1, 2, 3), has_aux=True)
    assert matmul_flops(both, *given) == 3 * 2 * n * n * d
    softmax = over(devices, 4, lambda i, t, s, _, **kw: contrastive_loss(i, t, s, **kw))
    softmax = jax.value_and_grad(softmax, (0, 1, 2), has_aux=True)
    assert matmul_flops(softmax, *given) == 4 * 2 * n * n * d
    sent = hlo.collectives(jax.jit(both).lower(*given).compile().as_text())
    gathered = [r.bytes * r.executions for r in sent if r.kind == "all-gather"]
    assert gathered == [4 * n * d]
    reduced = [r.bytes for r in sent if r.kind == "all-reduce"]
    assert sum(reduced) <= 4 * 4  # the loss, its hits, and the slopes of scale and bias
