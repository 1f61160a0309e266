"""Convolutions without bias, in the form that each platform computes well."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cyclip_jax.models.initializers import torch_kernel
from cyclip_jax.models.linear import RowsTogether
from cyclip_jax.models.rematerialisation import PRODUCT
from cyclip_jax.models.rows import by_rows


def _convolution(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _zeros_around(kernel):
    """Rows and columns before and after an image, with which stride 1 keeps its size."""
    return [(size // 2, size // 2) for size in kernel.shape[:2]]


class Definition:
    """The convolution of an odd size whose padding keeps height and width at stride 1."""

    @staticmethod
    def value(
        x: Float[Array, "n h w i"], kernel: Float[Array, "s s i o"], stride: int = 1
    ) -> Float[Array, "n h2 w2 o"]:
        """The sums of products, with zeros around the images."""
        return _convolution(x, kernel, stride, _zeros_around(kernel))

    @staticmethod
    def gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        """Those of x and the kernel, from that of the value at stride 1."""
        of_x = jax.linear_transpose(lambda x: Definition.value(x, kernel), x)
        return of_x(grad)[0], Definition.gradient_of_kernel(x, kernel, grad)

    @staticmethod
    def gradient_of_kernel(x: Array, kernel: Array, grad: Array) -> Array:
        """The second of them."""
        return jax.linear_transpose(lambda kernel: Definition.value(x, kernel), kernel)(grad)[0]


class PointsAsRows:
    """A 1×1 convolution as a product of rows, [N·H·W, in] @ [in, out].

    XLA's CPU backend would transpose both operands element by element for the gradient of the
    kernel, which then takes up to four times as long.
    """

    @staticmethod
    def value(x: Array, kernel: Array) -> Array:
        """As in `Definition`."""
        out = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return out.reshape(*x.shape[:-1], -1)

    @staticmethod
    def gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        """As in `Definition`."""
        of_x, of_kernel, _ = RowsTogether.gradients(x, kernel[0, 0], [grad])
        return of_x, of_kernel[None, None]


class PaddedFirst:
    """A convolution of images smaller than its kernel, with the zeros around them written out.

    XLA's CPU backend has no fast form for them otherwise: 512 channels of 2×2 take 34 times as long
    at size 3.
    """

    @staticmethod
    def value(x: Array, kernel: Array) -> Array:
        """As in `Definition`."""
        padded = jnp.pad(x, [(0, 0), *_zeros_around(kernel), (0, 0)])
        return _convolution(jax.lax.optimization_barrier(padded), kernel, 1, "VALID")

    @staticmethod
    def gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        """As in `Definition`."""
        of_x = PaddedFirst.value(grad, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
        return of_x, Definition.gradient_of_kernel(x, kernel, grad)


def form_on_cpus(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int) -> Any:
    """The form that a CPU computes fastest, a class like `Definition`."""
    size = kernel_shape[0]
    if stride > 1:
        return Definition
    if size == 1:
        return PointsAsRows
    return PaddedFirst if min(x_shape[1:3]) < size else Definition


def convolved(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution in the form that suits the platform, see `Definition`."""
    form = form_on_cpus(x.shape, kernel.shape, stride)
    if form is Definition:
        return Definition.value(x, kernel, stride)
    return _by_platform(form, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_platform(form, x, kernel):
    return jax.lax.platform_dependent(x, kernel, cpu=form.value, default=Definition.value)


def _value_and_inputs(form, x, kernel):
    return _by_platform(form, x, kernel), (x, kernel)


def _gradients(form, inputs, grad):
    return jax.lax.platform_dependent(
        *inputs, grad, cpu=form.gradients, default=Definition.gradients
    )


_by_platform.defvjp(_value_and_inputs, _gradients)


class Convolution(nnx.Conv):
    """nnx.Conv without bias, [N, H, W, in] -> [N, H, W, out], of an odd size.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      size: height and width of the kernel.
      stride: 1 keeps height and width.
      dtype: of the computation.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            kernel_init=torch_kernel,
            dtype=dtype,
            rngs=rngs,
        )
        self.stride = stride

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        return checkpoint_name(by_rows(self, x, call=Convolution._convolved), PRODUCT)

    def _convolved(self, x):
        x, kernel = (a.astype(self.dtype) for a in (x, self.kernel[...]))
        return convolved(x, kernel, self.stride)
