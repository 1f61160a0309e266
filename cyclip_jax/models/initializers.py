"""PyTorch's default initialisations, which CLIP's towers are trained from."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

# kaiming_uniform(a=√5) of torch.nn.Linear and Conv2d: uniform in ±1/√fan_in.
torch_kernel: Initializer = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

xavier_uniform: Initializer = nnx.initializers.xavier_uniform()


def torch_bias(fan_in: int) -> Callable[[jax.Array, Sequence[int], DTypeLike], jax.Array]:
    """Returns PyTorch's default bias initialiser of a layer: uniform in ±1/√fan_in."""

    def init(key, shape, dtype):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(stddev: float) -> Initializer:
    """Returns an initialiser that draws from N(0, stddev²)."""
    return nnx.initializers.normal(stddev)
