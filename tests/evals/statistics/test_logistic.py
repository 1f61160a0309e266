import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cyclip_jax.evals.statistics import logistic
from cyclip_jax.evals.statistics.classification import ranks_of_label
from cyclip_jax.evals.statistics.logistic import (
    chosen_regularization,
    class_rows,
    logistic_regression,
    sweep,
    with_constant,
)

CLASSES = 4


def problem(is_bad, n=150, d=6):
    """Overlapping Gaussians; a bad problem's features differ in scale by 10³ and lie off centre."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, n)
    features = rng.normal(size=(CLASSES, d))[labels] + rng.normal(size=(n, d))
    scales = np.logspace(0, 3, d) if is_bad else np.ones(d)
    return (features + is_bad) * scales, labels


def gradient(features, labels, fit, regularization):
    """Of the definition, by kernel and bias."""
    logits = features @ fit.kernel + fit.bias
    logits -= logits.max(axis=1, keepdims=True)
    errors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    errors -= np.eye(CLASSES)[labels]
    return features.T @ errors + regularization * fit.kernel, errors.sum(axis=0)


def objective(features, labels, fit, regularization):
    logits = features @ fit.kernel.astype(float) + fit.bias.astype(float)
    entropies = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return entropies.sum() + regularization / 2 * np.sum(fit.kernel.astype(float) ** 2)


@pytest.mark.parametrize("is_bad", [False, True])
@pytest.mark.parametrize("regularization", [0.01, 10.0])
def test_the_minimum_is_that_of_scikit_learn(x64, monkeypatch, is_bad, regularization):
    monkeypatch.setattr(logistic, "TILE_ROWS", 64)  # two tiles and a part of one
    features, labels = problem(is_bad)
    theirs = LogisticRegression(
        C=1 / regularization, solver="newton-cholesky" if is_bad else "lbfgs", tol=1e-10
    )
    theirs.set_params(max_iter=10_000).fit(features, labels)
    fit = logistic_regression(features, labels, CLASSES, tolerance=1e-7)(regularization)
    assert fit.converged and fit.iterations < 100
    for ours, expected in zip(fit.kernel, theirs.coef_.T, strict=True):  # a feature at a time
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    atol = 1e-4 * np.abs(theirs.intercept_).max()
    np.testing.assert_allclose(fit.bias, theirs.intercept_, rtol=0, atol=atol)
    others = 2 * problem(is_bad)[0][::-1]
    predictions = (with_constant(others) @ class_rows(fit.kernel, fit.bias).T).argmax(axis=1)
    np.testing.assert_array_equal(predictions, theirs.predict(others))


def test_the_gradient_of_the_definition_is_zero(x64, monkeypatch):
    monkeypatch.setattr(logistic, "TILE_ROWS", 64)
    features, labels = problem(False)
    fit = logistic_regression(features, labels, CLASSES, tolerance=1e-7)(0.5)
    for part in gradient(features, labels, fit, 0.5):
        np.testing.assert_allclose(part, 0, atol=1e-4)


@pytest.mark.parametrize("regularization", [1e-6, 10.0])
def test_single_precision_finds_the_minimum_of_a_badly_scaled_problem(regularization):
    features, labels = problem(True)
    fit = logistic_regression(features.astype(np.float32), labels, CLASSES)(regularization)
    assert fit.kernel.dtype == np.float32 and fit.iterations < 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(C=1 / regularization, solver="newton-cholesky", tol=1e-10)
        theirs.fit(features, labels)
    best = logistic.Fit(theirs.coef_.T, theirs.intercept_, 0, True)
    expected = objective(features, labels, best, regularization)
    assert objective(features, labels, fit, regularization) < expected * (1 + 1e-5)


def test_the_limit_of_iterations_ends_the_fit():
    features, labels = problem(False)
    fit = logistic_regression(features.astype(np.float32), labels, CLASSES, max_iterations=2)(1e-3)
    assert (fit.iterations, fit.converged) == (2, False)


def test_a_class_without_examples_is_never_predicted_and_changes_nothing():
    features, labels = problem(False)
    features = features.astype(np.float32)
    fit = logistic_regression(features, labels, CLASSES)(1.0)
    other = logistic_regression(features, labels + 1, CLASSES + 1)(1.0)
    np.testing.assert_array_equal(other.kernel, np.pad(fit.kernel, ((0, 0), (1, 0))))
    np.testing.assert_array_equal(other.bias, [-np.inf, *fit.bias])
    rows = class_rows(other.kernel, other.bias)
    ranks = ranks_of_label(with_constant(features[:5]), rows, np.zeros(5, int))
    assert (ranks > 0).all()


def test_a_diverged_model_is_never_right():
    features, labels = problem(False)
    features[3, 2] = np.nan
    fit = logistic_regression(features, labels, CLASSES)(1.0)
    rows = class_rows(fit.kernel, fit.bias)
    assert (ranks_of_label(with_constant(features), rows, labels) > 0).all()


def test_a_collapsed_model_gets_the_most_frequent_class():
    labels = np.array([0, 1, 1, 2, 3])
    fit = logistic_regression(np.ones((5, 6), np.float32), labels, CLASSES)(1.0)
    assert fit.bias.argmax() == 1
    np.testing.assert_allclose(fit.kernel, 0, atol=1e-6)


@pytest.mark.parametrize(
    "score, exponent",
    [
        (lambda exponent: -abs(exponent - 1.3), 1.25),
        (lambda exponent: -abs(exponent + 2.9), -2.875),
        (lambda exponent: exponent, 6),
        (lambda exponent: -exponent, -6),
        (lambda exponent: abs(exponent) < 4.5, 0),  # of equally good ones the middle
    ],
)
def test_the_sweep_finds_the_peak_to_an_eighth_of_a_decade(score, exponent):
    best, tried = sweep(lambda regularization: float(score(np.log10(regularization))))
    np.testing.assert_allclose(np.log10(best), exponent, atol=1e-12)
    assert len(tried) <= 7 + 2 * 4 and list(tried) == sorted(tried)
    np.testing.assert_allclose(list(tried)[:: len(tried) - 1], [1e-6, 1e6])


def test_the_regularisation_is_chosen_on_the_validation_images():
    features, labels = problem(False, n=40)
    features, mixed = features.astype(np.float32), np.random.default_rng(1).permutation(labels)
    best, tried = chosen_regularization(features[:20], mixed[:20], features, labels, CLASSES)
    fit = logistic_regression(features[:20], mixed[:20], CLASSES)
    for regularization in (best, 1e-6):
        probe = fit(regularization)
        rows = class_rows(probe.kernel, probe.bias)
        accuracy = np.mean((with_constant(features) @ rows.T).argmax(axis=1) == labels)
        np.testing.assert_allclose(tried[regularization], accuracy, atol=0.026)
    assert tried[best] == max(tried.values()) > min(tried.values())
