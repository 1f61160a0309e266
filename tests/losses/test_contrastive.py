import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.losses import contrastive_loss
from tests.conftest import unit_rows


def test_equals_the_published_formula_on_a_hand_made_table(x64):
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.6, 0.8], [0.0, 1.0]])
    scale = 2.0
    logits = [[1.2, 0.0], [1.6, 2.0]]  # scale · [[0.6, 0], [0.8, 1]]

    def cross_entropy(row, target):
        return np.log(np.exp(row[0]) + np.exp(row[1])) - row[target]

    rows = (cross_entropy(logits[0], 0) + cross_entropy(logits[1], 1)) / 2
    columns = (cross_entropy([1.2, 1.6], 0) + cross_entropy([0.0, 2.0], 1)) / 2
    loss, accuracies = contrastive_loss(images, texts, scale)
    assert float(loss) == pytest.approx((rows + columns) / 2, rel=1e-12)
    # Image 0 prefers text 0 and image 1 text 1; text 0 prefers image 1.
    assert [float(a) for a in accuracies] == [1.0, 0.5]


def test_collapsed_embeddings_cost_log_n_and_are_no_hits():
    same = jnp.ones((8, 4)) / 2
    loss, accuracies = contrastive_loss(same, same, 10.0)
    assert float(loss) == pytest.approx(np.log(8), rel=1e-6)
    assert max(map(float, accuracies)) == 0


def test_large_scales_do_not_overflow():
    images, texts = unit_rows(0, 16, 8, np.float32), unit_rows(1, 16, 8, np.float32)
    loss, gradient = jax.value_and_grad(lambda i: contrastive_loss(i, texts, 1e4)[0])(images)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_bfloat16_embeddings_are_compared_in_float32():
    images, texts = (jnp.asarray(unit_rows(s, 64, 32), jnp.bfloat16) for s in (0, 1))
    loss, _ = contrastive_loss(images, texts, 100.0)
    exact, _ = contrastive_loss(images.astype("float32"), texts.astype("float32"), 100.0)
    assert loss.dtype == jnp.float32
    assert float(loss) == float(exact)
