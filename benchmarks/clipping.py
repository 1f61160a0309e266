"""What one gradient that is a thousand times too large does under each kind of clipping.

python -m benchmarks.clipping

A linear regression on noisy data takes 200 steps, and the gradient of one step is multiplied. The
table says how many times as far as usual the parameters move in that step: by gradient descent, and
by AdamW. The last column says how many times as large AdamW's second moments are 50 steps later as
they would be without the spike: by their root the steps of all parameters are then too small.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cyclip_jax import defaults
from cyclip_jax.training.clipping import CLIPS
from cyclip_jax.training.optimizer import Optimizer

STEPS, SPIKE, FACTOR = 200, 149, 1e3  # AdaGC's first hundred steps are over
ROWS, WIDTH = 16, 8
NORM = 1.0  # gradient_clip_norm of the kind "norm"; the gradient's own norm is about 0.5
RATES = {"sgd": 0.02, "adamw": 0.01}


def transformation(kind: str, method: str) -> optax.GradientTransformation:
    """Clipping by a kind, followed by AdamW or by nothing."""
    section = defaults.get_config().optimizer.to_dict()
    section |= {"gradient_clip": kind, "beta2": 0.98, "weight_decay": 0.0}
    section |= {"gradient_clip_norm": NORM if kind == "norm" else None}
    optimizer = Optimizer(**section)
    return optimizer.clipping() if method == "sgd" else optimizer.transformation()


@functools.cache
def _run(kind: str, method: str) -> Callable[[float], tuple[jax.Array, jax.Array]]:
    """A function of the factor of the one gradient: ([STEPS] distances, last second moment)."""
    optimizer, rate = transformation(kind, method), RATES[method]
    true = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))

    def loss(params, key):
        of_inputs, of_noise = jax.random.split(key)
        inputs = jax.random.normal(of_inputs, (ROWS, WIDTH))
        noise = jax.random.normal(of_noise, (ROWS, WIDTH))
        error = inputs @ (params["kernel"] - true) + params["bias"] - noise  # [ROWS, WIDTH]
        return jnp.mean(error**2) / 2

    def step(factor, carry, number):
        params, state = carry
        grads = jax.grad(loss)(params, jax.random.fold_in(jax.random.key(1), number))
        grads = jax.tree.map(lambda g: jnp.where(number == SPIKE, factor * g, g), grads)
        updates, state = optimizer.update(grads, state, params)
        moved = rate * optax.global_norm(updates)
        return (
            optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates)),
            state,
        ), moved

    @jax.jit
    def run(factor):
        params = {"kernel": true / 2, "bias": jnp.zeros(WIDTH)}
        carry = params, optimizer.init(params)
        (_, state), moved = jax.lax.scan(functools.partial(step, factor), carry, jnp.arange(STEPS))
        second = optax.tree_utils.tree_get(state, "nu")
        return moved, jnp.zeros(()) if second is None else jnp.mean(second["kernel"])

    return run


def spiked(kind: str, method: str) -> tuple[float, float]:
    """What a spike does.

    Args:
      kind: of clipping, as config.optimizer.gradient_clip.
      method: "sgd" or "adamw".

    Returns:
      (the distance in the step of the spike, over the median of the 50 steps before; AdamW's mean
      second moment at the end of the run, over that without a spike).
    """
    run = _run(kind, method)
    (moved, second), (_, second_without) = run(FACTOR), run(1.0)
    usual = jnp.median(moved[SPIKE - 50 : SPIKE])
    return float(moved[SPIKE] / usual), float(second / second_without)


def main() -> None:
    """Prints the table."""
    print("| kind | gradient descent moves | AdamW moves | second moment, 50 steps later |")
    print("|---|---|---|---|")
    for kind in CLIPS:
        by_descent, (by_adamw, second) = spiked(kind, "sgd")[0], spiked(kind, "adamw")
        print(f"| `{kind}` | {by_descent:.3g} × | {by_adamw:.3g} × | {second:.3g} × |")


if __name__ == "__main__":
    main()
