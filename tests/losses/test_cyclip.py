import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.losses import contrastive_loss, cyclic_consistency, cyclip_loss
from cyclip_jax.training.flops import matmul_flops
from tests.conftest import unit_rows

IMAGES, TEXTS = unit_rows(0, 24, 16), unit_rows(1, 24, 16)


def loss_of(n=24, **arguments):
    return cyclip_loss(IMAGES[:n], TEXTS[:n], 14.0, **arguments)


def test_is_the_weighted_sum_of_its_terms(x64):
    contrastive, _ = contrastive_loss(IMAGES, TEXTS, 14.0)
    inmodal, crossmodal = cyclic_consistency(IMAGES, TEXTS)
    expected = contrastive + 0.3 * inmodal + 0.7 * crossmodal
    loss, metrics = loss_of(inmodal_weight=0.3, crossmodal_weight=0.7)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(metrics["contrastive_loss"]) == float(contrastive)
    assert float(metrics["inmodal_cyclic_loss"]) == float(inmodal)
    assert float(metrics["crossmodal_cyclic_loss"]) == float(crossmodal)
    assert float(metrics["inmodal_consistency"]) == pytest.approx(float(inmodal) / 24)
    assert float(metrics["temperature"]) == pytest.approx(1 / 14)


def test_zero_weights_are_clip(x64):
    loss, metrics = loss_of(inmodal_weight=0.0, crossmodal_weight=0.0)
    assert float(loss) == float(metrics["contrastive_loss"])
    assert float(metrics["inmodal_cyclic_loss"]) > 0  # still reported


def test_batch_size_free_normalization_is_the_reference_times_128_over_n(x64):
    reference = loss_of(cyclic_normalization="reference")[1]["inmodal_cyclic_loss"]
    free = loss_of(cyclic_normalization="batch_size_free")[1]["inmodal_cyclic_loss"]
    assert float(free) == pytest.approx(float(reference) * 128 / 24, rel=1e-12)


def test_batch_size_free_terms_do_not_grow_with_the_batch(x64):
    def term(repeats, normalization):
        embeds = np.tile(IMAGES, (repeats, 1)), np.tile(TEXTS, (repeats, 1))
        _, metrics = cyclip_loss(*embeds, 14.0, cyclic_normalization=normalization)
        return float(metrics["inmodal_cyclic_loss"])

    assert term(4, "batch_size_free") == pytest.approx(term(1, "batch_size_free"), rel=1e-12)
    assert term(4, "reference") == pytest.approx(4 * term(1, "reference"), rel=1e-12)


def test_logit_scale_does_not_scale_the_cyclic_terms(x64):
    gradient = jax.grad(
        lambda s: (
            cyclip_loss(IMAGES, TEXTS, s, inmodal_weight=9.0)[0]
            - contrastive_loss(IMAGES, TEXTS, s)[0]
        )
    )(14.0)
    assert float(gradient) == pytest.approx(0, abs=1e-12)


def test_a_term_rounded_below_zero_is_shown_as_zero_and_differentiated_as_it_is(monkeypatch):
    monkeypatch.setattr(
        "cyclip_jax.losses.cyclip.cyclic_consistency",
        lambda images, texts, axis_names: (
            images.sum() * 0 + 0.5,
            (images * texts).sum() * 1e-3 - 1.0,
        ),
    )
    loss, metrics = loss_of(inmodal_weight=0.0, crossmodal_weight=1.0)
    assert float(metrics["crossmodal_cyclic_loss"]) == 0
    assert float(metrics["crossmodal_consistency"]) == 0
    assert float(loss) < float(metrics["contrastive_loss"])
    weights = {"inmodal_weight": 0.0, "crossmodal_weight": 1.0}
    gradient = jax.grad(lambda i: cyclip_loss(i, TEXTS, 14.0, **weights)[0])(jnp.asarray(IMAGES))
    plain = jax.grad(lambda i: contrastive_loss(i, TEXTS, 14.0)[0])(jnp.asarray(IMAGES))
    np.testing.assert_allclose(gradient - plain, 1e-3 * TEXTS, atol=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(24, 16\) and text_embeds \(23, 16\)"):
        cyclip_loss(IMAGES, TEXTS[:23], 14.0)
    with pytest.raises(ValueError, match="batch_size_free"):
        loss_of(cyclic_normalization="mean")


def test_a_term_of_weight_zero_is_measured_and_not_differentiated():
    n, d = 32, 8

    def products(weight):
        def gradient(images, texts):
            weights = {"inmodal_weight": weight, "crossmodal_weight": weight}
            return jax.grad(lambda *embeds: cyclip_loss(*embeds, 14.0, **weights)[0], (0, 1))(
                images, texts
            )

        return matmul_flops(gradient, *[jax.ShapeDtypeStruct((n, d), jnp.float32)] * 2) // (
            2 * n * d * d
        )

    assert products(0.25) - products(0.0) == 4  # one of each Gram matrix, two of EᵀM
    assert float(loss_of(inmodal_weight=0.0)[1]["inmodal_cyclic_loss"]) > 0
