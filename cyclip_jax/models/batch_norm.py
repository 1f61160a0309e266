"""Batch normalisation that reads its input once for its statistics, and once for their gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cyclip_jax.errors import UserError

# One pass over shifted numbers loses as many digits of the variance as the square of their mean is
# larger than it. Where a channel's is more than so many times as large, a second pass computes it.
MAX_SHIFTED_MEAN = 4.0
_WITHIN_GROUPS = (1, 2, 3)  # of [G, g, H, W, C]


def rectified_linear(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0), as a clamp: XLA's CPU backend would write out the zeros that a maximum takes."""
    return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), jnp.inf, x.dtype))


def moments(
    x: Float[Array, "G g h w c"], near: Float[Array, " c"], epsilon: float
) -> tuple[Float[Array, "G 1 1 1 c"], Float[Array, "G 1 1 1 c"]]:
    """The mean and the biased variance of each group and channel, in float32 at least.

    Both come from one pass over x − near, after Chan, Golub and LeVeque (1983, "Algorithms for
    computing the sample variance", section 3), unless some mean is too far from `near` for that.

    Args:
      x: groups of images, [G, g, H, W, C].
      near: a guess of the means, [C].
      epsilon: what is added to the variance, below which its digits do not matter.
    """

    def average(x):
        return x.mean(_WITHIN_GROUPS, keepdims=True)

    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    shifted_mean = average(wide - near)
    in_one_pass = average(jnp.square(wide - near)) - jnp.square(shifted_mean)
    mean, in_one_pass = near + shifted_mean, jnp.maximum(in_one_pass, 0)
    is_far = jnp.any(jnp.square(shifted_mean) > MAX_SHIFTED_MEAN * (in_one_pass + epsilon))
    # The branch begins with x, so that nothing is kept for it.
    var = jax.lax.cond(
        is_far,
        lambda x, mean, var: average(jnp.square(x.astype(mean.dtype) - mean)),
        lambda x, mean, var: var,
        *(x, mean, in_one_pass),
    )
    return mean, var


@functools.partial(jax.custom_vjp, nondiff_argnames=("epsilon", "rectified"))
def normalised(
    x: Float[Array, "G g h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    near: Float[Array, " c"],
    epsilon: float,
    rectified: bool,
) -> tuple[Float[Array, "G g h w c"], tuple[Array, Array]]:
    """Groups of images, each normalised by its own moments, in the dtype of x.

    The gradient (Ioffe and Szegedy 2015, section 3) reads x and that of the output once for the
    sums that it needs, and once to use them. None goes to `near`, nor back through the moments.

    Args:
      x: groups of images, [G, g, H, W, C].
      scale: of the channels, [C].
      bias: of the channels, [C].
      near: a guess of the means, [C].
      epsilon: is added to the variance.
      rectified: whether max(·, 0) of it is returned. The gradient then tells from x what was cut
        off, and need not read the output, too.

    Returns:
      (output, its (mean, biased variance)), see `moments`.
    """
    return _value_and_saved(x, scale, bias, near, epsilon, rectified)[0]


def _value_and_saved(x, scale, bias, near, epsilon, rectified):
    mean, var = moments(x, near, epsilon)
    inverse = jax.lax.rsqrt(var + epsilon)
    out = (x - mean) * (inverse * scale) + bias
    if rectified:
        out = rectified_linear(out)
    return (out.astype(x.dtype), (mean, var)), (x, scale, bias, mean, inverse)


def _gradients(epsilon, rectified, saved, grads):
    del epsilon
    x, scale, bias, mean, inverse = saved
    centred = x - mean
    grad = grads[0].astype(centred.dtype)
    if rectified:
        grad = jnp.where(centred * (inverse * scale) + bias > 0, grad, 0)
    of_bias = grad.sum(_WITHIN_GROUPS, keepdims=True)
    of_scale = (grad * centred).sum(_WITHIN_GROUPS, keepdims=True) * inverse
    count = x[0, ..., 0].size
    of_x = grad - (of_bias + centred * (inverse * of_scale)) / count
    of_x = (of_x * (inverse * scale)).astype(x.dtype)
    of_scale, of_bias = (
        group.sum((0, *_WITHIN_GROUPS)).astype(scale.dtype) for group in (of_scale, of_bias)
    )
    return of_x, of_scale, of_bias, jnp.zeros_like(scale)


normalised.defvjp(_value_and_saved, _gradients)


class BatchNorm(nnx.Module):
    """Batch normalisation over the global batch, or over "ghost" groups of it.

    Written out, because Flax's keeps the biased running variance (PyTorch's is n/(n−1) larger) and
    has no groups. In training each group of `group_size` consecutive images is normalised by its
    own mean and variance, and the running statistics follow the groups' average; None is one group
    of all images, whatever the number of devices they are sharded over.
    """

    momentum: float = 0.9  # weight of the old running value: 1 − PyTorch's momentum of 0.1
    epsilon: float = 1e-5

    def __init__(
        self,
        features: int,
        *,
        group_size: int | None,
        scale_init: Initializer = nnx.initializers.ones,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.group_size: int | None = group_size
        self.dtype: DTypeLike = dtype
        self.use_running_average = False  # set by nnx.Module.train() and .eval()
        self.scale: nnx.Param[Array] = nnx.Param(scale_init(rngs.params(), (features,)))
        self.bias: nnx.Param[Array] = nnx.Param(jnp.zeros((features,)))
        self.mean: nnx.BatchStat[Array] = nnx.BatchStat(jnp.zeros((features,)))
        self.var: nnx.BatchStat[Array] = nnx.BatchStat(jnp.ones((features,)))

    def __call__(
        self, x: Float[Array, "n h w c"], *, rectified: bool = False
    ) -> Float[Array, "n h w c"]:
        """Normalises images; `rectified` returns max(·, 0) of that."""
        x = x.astype(self.dtype)
        if self.use_running_average:
            multiplier = jax.lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...]
            out = (x - self.mean[...]) * multiplier + self.bias[...]
            return (rectified_linear(out) if rectified else out).astype(self.dtype)
        n = x.shape[0]
        group_size = self.group_size or n
        if n % group_size:
            raise UserError(
                f"a batch of {n} images is not a multiple of "
                f"config.model.batch_norm_group_size {group_size}"
            )
        groups = x.reshape(n // group_size, group_size, *x.shape[1:])  # [G, g, H, W, C]
        operands = (groups, self.scale[...], self.bias[...], self.mean[...])
        found: Any = normalised(*operands, self.epsilon, rectified)  # custom_vjp has no types
        out, (mean, var) = found
        self.follow(mean, var, count=group_size * x.shape[1] * x.shape[2])
        return out.reshape(x.shape)

    def follow(self, mean: jax.Array, var: jax.Array, count: int) -> None:
        """Moves the running statistics towards those of groups, [G, 1, 1, 1, C] of `count` each."""
        unbiased = var * (count / max(count - 1, 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            old = running[...]
            new = jax.lax.stop_gradient(new).reshape(-1, old.shape[0]).mean(axis=0)
            running[...] = (self.momentum * old + (1 - self.momentum) * new).astype(old.dtype)
