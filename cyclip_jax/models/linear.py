"""The linear layer of the transformers, in the form that each platform computes well."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from cyclip_jax.models.rematerialisation import PRODUCT


class RowsTogether:
    """x @ kernel + bias as one product of rows, [R, in] @ [in, out], which CPUs do best.

    With more dimensions, XLA's CPU backend would transpose the output's gradient element by element
    to compute the kernel's, and would add up the residual stream's gradient again in each of these
    copies. That would cost a sixth of a ViT-B/32's step.
    """

    @staticmethod
    def value(x: Array, kernel: Array, bias: Array, parts: int) -> list[Array]:
        """The parts of the columns, each [..., out / parts], see `linear`."""
        out = x.reshape(-1, x.shape[-1]) @ kernel + bias
        return jnp.split(out.reshape(*x.shape[:-1], -1), parts, axis=-1)

    @staticmethod
    def gradients(x: Array, kernel: Array, grads: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Those of x, the kernel and the bias, from the gradients of the parts."""
        rows, grad = x.reshape(-1, x.shape[-1]), jnp.concatenate(grads, axis=-1)
        grad = grad.reshape(-1, grad.shape[-1])
        return (grad @ kernel.T).reshape(x.shape), rows.T @ grad, grad.sum(axis=0)


class PartsApart:
    """The same as a product for each part, of x as it lies, which TPUs and GPUs do best.

    A TPU keeps arrays in tiles of eight rows: it would copy [N, 197, W] to make rows of it, and it
    would copy the parts out of one product.
    """

    @staticmethod
    def value(x: Array, kernel: Array, bias: Array, parts: int) -> list[Array]:
        """The parts of the columns, as in `RowsTogether`."""
        split = zip(jnp.split(kernel, parts, axis=-1), jnp.split(bias, parts), strict=True)
        return [x @ own_kernel + own_bias for own_kernel, own_bias in split]

    @staticmethod
    def gradients(x: Array, kernel: Array, grads: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Those of x, the kernel and the bias, from the gradients of the parts."""
        kernels = jnp.split(kernel, len(grads), axis=-1)
        of_x = functools.reduce(
            jnp.add, (grad @ own.T for grad, own in zip(grads, kernels, strict=True))
        )
        leading = tuple(range(x.ndim - 1))
        of_kernels = [jax.lax.dot_general(x, g, ((leading, leading), ((), ()))) for g in grads]
        of_biases = [grad.sum(axis=leading) for grad in grads]
        return of_x, jnp.concatenate(of_kernels, axis=-1), jnp.concatenate(of_biases)


@functools.partial(jax.custom_vjp, nondiff_argnames=("parts",))
def linear(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"], parts: int
) -> list[Float[Array, "... part"]]:
    """x @ kernel + bias in equal parts of its columns, in the form that suits the platform."""
    return jax.lax.platform_dependent(
        *(x, kernel, bias),
        cpu=functools.partial(RowsTogether.value, parts=parts),
        default=functools.partial(PartsApart.value, parts=parts),
    )


def _value_and_inputs(x, kernel, bias, parts):
    return linear(x, kernel, bias, parts), (x, kernel)


def _gradients(parts, inputs, grads):
    del parts  # there are as many gradients
    return jax.lax.platform_dependent(
        *(*inputs, grads), cpu=RowsTogether.gradients, default=PartsApart.gradients
    )


linear.defvjp(_value_and_inputs, _gradients)


class Linear(nnx.Linear):
    """nnx.Linear whose value and gradient every platform computes well, [..., in] -> [..., out]."""

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        return self.split(x, 1)[0]

    def split(self, x: Float[Array, "... in"], parts: int) -> list[Float[Array, "... part"]]:
        """The output in so many equal parts."""
        assert self.bias is not None  # no layer here goes without
        operands = (a.astype(self.dtype) for a in (x, self.kernel[...], self.bias[...]))
        outs: Any = linear(*operands, parts)  # custom_vjp has no types
        return [checkpoint_name(out, PRODUCT) for out in outs]
