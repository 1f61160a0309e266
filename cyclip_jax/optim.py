"""AdamW, with the learning rate and the weight decay of the published recipe."""

import jax
import jax.numpy as jnp
import optax

from cyclip_jax.errors import UserError

_NEVER_DECAYED = ("positional_embedding", "class_embedding")


def learning_rate_schedule(learning_rate, *, warmup_steps, total_steps):
    """Linear warm-up, then half a cosine to zero.

    base·(t+1)/w for t < w, else base·½(1 + cos(π(t−w)/(S−w))), with w = warmup_steps and
    S = total_steps.

    Returns:
      A function of the step t = 0, 1, … (int scalar) that gives a float scalar.

    Raises:
      UserError: a warm-up that is negative or as long as the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"config.optimizer.warmup_steps {warmup_steps} must be at least 0 and less than the "
            f"run's {total_steps} steps"
        )

    def schedule(step):
        step = jnp.asarray(step, jnp.result_type(float))
        warmup = (step + 1) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        cosine = (1 + jnp.cos(jnp.pi * progress)) / 2
        return learning_rate * jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def weight_decay_mask(params):
    """True for kernels, projections and the token embedding; False for vectors, scalars, positions.

    Args:
      params: nested dict of arrays or shapes.

    Returns:
      The same tree with booleans.
    """

    def decays(path, leaf):
        return leaf.ndim >= 2 and path[-1].key not in _NEVER_DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def adamw(*, beta1, beta2, eps, weight_decay, gradient_clip_norm):
    """AdamW without its learning rate, as an optax transformation.

    Args:
      gradient_clip_norm: largest global gradient norm, or None for no clipping.
    """
    # Without clipping the state has the same structure: a run may be continued with it.
    clip = gradient_clip_norm is not None
    return optax.chain(
        optax.clip_by_global_norm(gradient_clip_norm) if clip else optax.identity(),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
    )


def create_optimizer(*, total_steps, learning_rate, warmup_steps, **arguments):
    """Builds what config.optimizer describes.

    The train step multiplies by −schedule(step) itself: the learning rate then follows the run's
    step, also over steps whose update was skipped and left the optimiser's state untouched.

    Args:
      total_steps: length of the run.
      learning_rate, warmup_steps: as `learning_rate_schedule`.
      **arguments: as `adamw`.

    Returns:
      (optimizer, schedule).
    """
    schedule = learning_rate_schedule(
        learning_rate, warmup_steps=warmup_steps, total_steps=total_steps
    )
    return adamw(**arguments), schedule
