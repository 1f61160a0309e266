"""A layer behind the text tower in the training on sentences, which is left out after it."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cyclip_jax.models.initializers import keys_of, torch_bias, torch_kernel
from cyclip_jax.models.linear import Linear


class SentenceHead(nnx.Module):
    """tanh of a linear layer, [N, width] -> [N, width] (Gao et al. 2021, section 6.3: MLP)."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.dtype: DTypeLike = dtype
        self.dense: Linear = Linear(
            width,
            width,
            kernel_init=torch_kernel,
            bias_init=torch_bias(width),
            dtype=dtype,
            rngs=keys_of(rngs),
        )

    def __call__(self, features: Float[Array, "n w"]) -> Float[Array, "n w"]:
        return jnp.tanh(self.dense(features))
