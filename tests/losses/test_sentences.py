"""The loss of sentence embeddings against eq. 4 and 5 of Gao et al. 2021."""

import math

import jax
import numpy as np
import pytest

from cyclip_jax import parallel
from cyclip_jax.losses.sentences import repeated_rows, sentence_term
from cyclip_jax.losses.terms import weighted_sum
from tests.conftest import unit_rows

SETTINGS = {"weight": 1.0, "temperature": 0.05, "dropout": 0.1}


def embeds_of(kind, n=8, d=6):
    names = {
        "unsupervised": ("sentences", "sentences_again"),
        "pairs": ("sentences", "positives"),
        "triplets": ("sentences", "positives", "negatives"),
    }[kind]
    return {name: unit_rows(seed, n, d) for seed, name in enumerate(names)}


def by_definition(anchors, keys, negatives=None, alpha=1.0):
    """−1/M Σ_i log of the share of the own key, sentence by sentence."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        among = [math.exp(anchor @ key / 0.05) for key in keys]
        for j, negative in enumerate([] if negatives is None else negatives):
            among.append((alpha if i == j else 1) * math.exp(anchor @ negative / 0.05))
        total -= math.log(among[i] / sum(among))
    return total / len(anchors)


def measured(term, embeds, tokens=None, devices=1):
    n = len(next(iter(embeds.values())))
    tokens = np.arange(3 * n, dtype=np.int32).reshape(n, 3) if tokens is None else tokens
    mesh = parallel.create_mesh(jax.devices()[:devices])

    def loss(embeds):
        return weighted_sum([term], embeds, {"sentences": tokens}, {}, mesh=mesh)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(embeds)


@pytest.mark.parametrize("kind", ["unsupervised", "pairs", "triplets"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("devices", [1, 8])
def test_it_is_the_published_formula_in_value_and_gradient(x64, kind, alpha, devices):
    embeds = embeds_of(kind)
    term = sentence_term(**SETTINGS, kind=kind, hard_negative_weight=alpha)
    (value, _), gradient = measured(term, embeds, devices=devices)
    assert float(value) == pytest.approx(by_definition(*embeds.values(), alpha=alpha), rel=1e-12)
    for name, rows in embeds.items():
        step = 1e-6 * unit_rows(9, *rows.shape)
        there, back = (
            by_definition(*(embeds | {name: rows + sign * step}).values(), alpha=alpha)
            for sign in (1, -1)
        )
        assert float(np.sum(gradient[name] * step)) == pytest.approx((there - back) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "kind, alpha, among", [("unsupervised", 1, 8), ("triplets", 1, 16), ("triplets", 0.5, 15.5)]
)
def test_equal_embeddings_cost_the_log_of_what_is_chosen_among(x64, kind, alpha, among):
    embeds = {name: np.full((8, 4), 0.5) for name in embeds_of(kind)}
    term = sentence_term(**SETTINGS, kind=kind, hard_negative_weight=alpha)
    (value, metrics), _ = measured(term, embeds)
    assert float(value) == pytest.approx(math.log(among))
    assert float(metrics["sentence_accuracy"]) == 0


def test_without_dropout_the_own_logit_is_constant_and_has_no_gradient(x64):
    rows = unit_rows(0, 8, 6)
    term = sentence_term(**SETTINGS | {"dropout": 0}, kind="unsupervised")
    assert term.draw is None

    def loss(raw):
        unit = raw / np.linalg.norm(rows, axis=1, keepdims=True)
        embeds = {"sentences": unit, "sentences_again": unit}
        tokens = np.arange(8, dtype=np.int32)[:, None]
        return weighted_sum([term], embeds, {"sentences": tokens}, {})[0]

    others = np.mean([math.log(sum(math.exp((a @ b - 1) / 0.05) for b in rows)) for a in rows])
    assert float(loss(rows)) == pytest.approx(others, rel=1e-12)


def test_a_hard_negative_that_equals_its_positive_makes_a_miss():
    embeds = embeds_of("triplets")
    embeds["positives"] = embeds["sentences"]
    embeds["negatives"] = np.where(
        np.arange(8)[:, None] % 2, embeds["positives"], embeds["negatives"]
    )
    (_, metrics), _ = measured(sentence_term(**SETTINGS, kind="triplets"), embeds)
    assert float(metrics["sentence_accuracy"]) == 0.5


@pytest.mark.parametrize("devices", [1, 4])
def test_sentences_that_stand_twice_in_a_batch_are_counted(devices):
    tokens = np.array([[1, 2], [3, 4], [1, 2], [5, 6], [1, 2], [7, 8], [3, 4], [9, 9]], np.int32)
    (_, metrics), _ = measured(
        sentence_term(**SETTINGS, kind="unsupervised"),
        embeds_of("unsupervised"),
        tokens,
        devices=devices,
    )
    assert float(metrics["duplicate_sentences"]) == 5
    assert float(repeated_rows(tokens[:2])) == 0


def test_the_gradient_of_sentences_is_not_divided_as_that_of_published_code_is(x64):
    embeds = embeds_of("pairs")
    term = sentence_term(**SETTINGS, kind="pairs")
    tokens = {"sentences": np.zeros((8, 2), np.int32)}

    def loss(embeds, devices):
        return weighted_sum([term], embeds, tokens, {}, detached_gather_devices=devices)[0]

    once, divided = (jax.grad(loss)(embeds, devices) for devices in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), once, divided)
