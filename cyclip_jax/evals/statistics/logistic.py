"""Multinomial logistic regression by L-BFGS, and the choice of its regularisation."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.statistics.classification import class_rows, ranks_of_label, with_constant

TILE_ROWS = 1024
_HIGHEST = jax.lax.Precision.HIGHEST
# Radford et al. 2021, appendix A.3, as powers of ten: the first grid, then halves of its interval
# down to eight values per decade.
_COARSE = range(-6, 7, 2)
_STEPS = (1, 1 / 2, 1 / 4, 1 / 8)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted classifier.

    Attributes:
      kernel, bias: [D, C] and [C], in NumPy.
      iterations: of L-BFGS.
      converged: whether the gradient's norm fell below the tolerance.
    """

    kernel: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, "c"]
    iterations: int
    converged: bool


def logistic_regression(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    classes: int,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> Callable[[float], Fit]:
    """Prepares the minimisation of Σᵢ −log softmax(xᵢ W + b)[yᵢ] + λ/2 ‖W‖².

    λ is 1/C of scikit-learn's LogisticRegression for three classes or more; the bias is free of it
    there as here. Features are centred, and W is sought in coordinates in which the Hessian at
    W = 0 is the identity: the minimum is the same, and badly scaled features take tens of
    iterations instead of thousands.

    Args:
      features: float [N, D]; their dtype is the computation's.
      labels: int [N], below C. A class without an example gets the bias −∞.
      classes: their number C.
      tolerance: of the gradient's norm in those coordinates, as a share of that at the start.
      max_iterations: of L-BFGS; it ends earlier where rounding hides every further descent.

    Returns:
      A function from λ > 0 to a Fit. Where a feature is not finite, its numbers are all NaN.
    """
    present, targets = np.unique(labels, return_inverse=True)
    mean = features.mean(axis=0, dtype=np.float64).astype(features.dtype)
    tiles = jnp.asarray(_tiled(features - mean, 0))  # [T, rows, D]
    targets = jnp.asarray(_tiled(targets, -1))  # [T, rows]
    gram = np.asarray(_gram(tiles), np.float64)  # [D, D]
    if not np.isfinite(gram).all():
        nan = np.full((features.shape[1] + 1, classes), np.nan, features.dtype)
        return lambda regularization: Fit(nan[:-1], nan[-1], 0, False)
    curvatures, axes = np.linalg.eigh(gram / len(present))

    def fit(regularization):
        scales = (np.maximum(curvatures, 0) + regularization) ** -0.5
        kernel, bias, iterations, converged = jax.device_get(
            _minimise(
                tiles,
                targets,
                jnp.asarray((axes * scales).astype(features.dtype)),
                len(labels),
                len(present),
                regularization,
                tolerance,
                max_iterations,
            )
        )
        all_kernel = np.zeros((features.shape[1], classes), features.dtype)
        all_bias = np.full(classes, -np.inf, features.dtype)
        all_kernel[:, present], all_bias[present] = kernel, bias - mean @ kernel
        return Fit(all_kernel, all_bias, int(iterations), bool(converged))

    return fit


def chosen_regularization(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    validation_features: Float[np.ndarray, "m d"],
    validation_labels: Int[np.ndarray, "m"],
    classes: int,
    *,
    max_iterations: int = 1000,
) -> tuple[float, dict[float, float]]:
    """`sweep` by the accuracy on validation images, [M, D], of what is fitted to others, [N, D].

    Returns:
      (the best λ, {λ: accuracy} of all that were tried).
    """
    fit = logistic_regression(features, labels, classes, max_iterations=max_iterations)
    rows = with_constant(validation_features)

    def accuracy(regularization):
        probe = fit(regularization)
        ranks = ranks_of_label(rows, class_rows(probe.kernel, probe.bias), validation_labels)
        return float(np.mean(ranks < 1))

    return sweep(accuracy)


def sweep(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Looks for the best regularisation as Radford et al. 2021 do (appendix A.3).

    λ = 10^−6, 10^−4, …, 10^6 first; then the neighbours of the best at half the distance, and again
    down to an eighth of a decade. Of equally good values the middle one is the best.

    Args:
      score: function from λ to a number, higher is better.

    Returns:
      (the best λ, {λ: score} of all that were tried).
    """
    scores: dict[float, float] = {exponent: score(10.0**exponent) for exponent in _COARSE}
    for step in _STEPS:
        peak = _peak(scores)
        for exponent in (peak - step, peak + step):
            if _COARSE[0] <= exponent <= _COARSE[-1] and exponent not in scores:
                scores[exponent] = score(10.0**exponent)
    return 10.0 ** _peak(scores), {10.0**e: scores[e] for e in sorted(scores)}


def _peak(scores):
    highest = max(scores.values())
    best = sorted(exponent for exponent, score in scores.items() if score == highest)
    return best[len(best) // 2]


def _tiled(rows, filler):
    """[N, …] -> [T, rows, …], filled up."""
    n = len(rows)
    padding = ((0, -n % TILE_ROWS),) + ((0, 0),) * (rows.ndim - 1)
    padded = np.pad(rows, padding, constant_values=filler)
    return padded.reshape(-1, TILE_ROWS, *rows.shape[1:])


@jax.jit
def _gram(tiles):
    def add(total, tile):
        return total + jnp.matmul(tile.T, tile, precision=_HIGHEST), None

    d = tiles.shape[-1]
    return jax.lax.scan(add, jnp.zeros((d, d), tiles.dtype), tiles)[0]


@functools.partial(jax.jit, static_argnames="classes")
def _minimise(tiles, targets, basis, n, classes, regularization, tolerance, max_iterations):
    """(kernel, bias, iterations, converged) with kernel = basis · parameters."""
    optimizer = optax.lbfgs(
        linesearch=optax.scale_by_zoom_linesearch(
            max_linesearch_steps=20, initial_guess_strategy="one"
        )
    )

    def classifier(params):
        kernel, bias = params
        kernel = jnp.matmul(basis, kernel, precision=_HIGHEST) * n**0.5  # [D, C]
        return kernel, bias * classes**0.5

    def loss(params):
        """The mean entropy and the penalty's share in it."""
        kernel, bias = classifier(params)

        @jax.checkpoint  # logits of one tile at a time, in the backward pass too
        def add(total, tile):
            rows, labels = tile
            logits = jnp.matmul(rows, kernel, precision=_HIGHEST) + bias  # [rows, C]
            entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return total + jnp.sum(entropies, where=labels >= 0), None

        total = jax.lax.scan(add, jnp.zeros((), tiles.dtype), (tiles, targets))[0]
        return (total + regularization / 2 * jnp.sum(kernel**2)) / n

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, iterations, _, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        after = optax.tree.get(state, "value")
        norm = optax.tree.norm(optax.tree.get(state, "grad"))
        moved = optax.tree.norm(updates) > 0
        return (
            optax.apply_updates(params, updates),
            state,
            iterations + 1,
            norm,
            moved & (after <= value),
        )

    def unfinished(carry):
        _, _, iterations, norm, descends = carry
        return (norm > tolerance * norm_at_start) & descends & (iterations < max_iterations)

    start = (jnp.zeros((tiles.shape[-1], classes), tiles.dtype), jnp.zeros(classes, tiles.dtype))
    norm_at_start = optax.tree.norm(jax.grad(loss)(start))
    carry = start, optimizer.init(start), 0, norm_at_start, jnp.asarray(True)
    params, _, iterations, norm, _ = jax.lax.while_loop(unfinished, step, carry)
    return *classifier(params), iterations, norm <= tolerance * norm_at_start


def check_regularization(key: str, regularization: float | None) -> None:
    """Raises UserError where λ is neither None nor above 0; `key` names the evaluation there."""
    if regularization is not None and not regularization > 0:
        raise UserError(f"{key}.regularization {regularization} must be above 0")
