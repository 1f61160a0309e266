"""PyTorch's default initialisations, which CLIP's towers are trained from."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt32


@dataclasses.dataclass(frozen=True, order=True)  # JAX sorts the keys of dicts that it is given
class Law:
    """How float32 numbers are made of random bits, as JAX's random numbers are.

    Attributes:
      low: the least uniform number.
      high: uniform numbers are below this.
      is_normal: whether these are turned into numbers from N(0, 1).
      factor: what all numbers are multiplied by.
    """

    low: float
    high: float
    is_normal: bool
    factor: float

    def numbers(self, bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
        """The numbers of bits, [...] -> [...]."""
        low, high = jnp.float32(self.low), jnp.float32(self.high)
        mantissa = (bits >> np.uint32(9)) | np.float32(1).view(np.uint32)
        unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
        numbers = jnp.maximum(low, unit * (high - low) + low)
        if self.is_normal:
            numbers = np.float32(math.sqrt(2)) * jax.lax.erf_inv(numbers)
        return numbers * np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class Initializer:
    """An initialiser, function from (key, shape, dtype) to an array.

    Attributes:
      plain: draws at once.
      law: function from the shape to the Law of the same numbers.
    """

    plain: Callable[..., Array]
    law: Callable[[Sequence[int]], Law]

    def __call__(
        self,
        key: Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: Any = None,
    ) -> Array:
        del out_sharding  # is part of JAX's type of an initialiser
        return _how.get()(self, key, shape, dtype)


How = Callable[[Initializer, Any, Sequence[int], DTypeLike | None], Any]
_how: contextvars.ContextVar[How] = contextvars.ContextVar(
    "how", default=lambda init, key, shape, dtype: init.plain(key, shape, dtype)
)
_has_keys = contextvars.ContextVar("has_keys", default=True)


@contextlib.contextmanager
def drawn(how: How, *, has_keys: bool = False) -> Iterator[None]:
    """A context in which the initialisers of this module return what `how` does.

    Args:
      how: function of (initialiser, key, shape, dtype).
      has_keys: whether it is given keys, which take time to make, and not None.
    """
    tokens = _how.set(how), _has_keys.set(has_keys)
    try:
        yield
    finally:
        _how.reset(tokens[0])
        _has_keys.reset(tokens[1])


def undrawn() -> contextlib.AbstractContextManager[None]:
    """A context in which nothing is drawn: for the shapes of a model."""
    return drawn(lambda _, key, shape, dtype: jnp.zeros(shape, dtype))


class _NoKeys:
    """Stands for the nnx.Rngs of a model where nobody needs keys."""

    def params(self) -> None: ...


def keys_of(rngs: nnx.Rngs) -> Any:
    """The keys that a model's initialisers are given."""
    return rngs if _has_keys.get() else _NoKeys()


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """Inputs and outputs of a kernel, [..., in, out]."""
    *window, inputs, outputs = shape
    return math.prod(window) * inputs, math.prod(window) * outputs


def _uniform_of_variance(variance: Callable[[int, int], float]) -> Callable[[Sequence[int]], Law]:
    def law(shape):
        bound = np.sqrt(np.float32(3) * np.float32(variance(*_fans(shape))))
        return Law(low=-1.0, high=1.0, is_normal=False, factor=float(bound))

    return law


# kaiming_uniform(a=√5) of torch.nn.Linear and Conv2d: uniform in ±1/√fan_in.
torch_kernel: Initializer = Initializer(
    nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    _uniform_of_variance(lambda inputs, _: 1 / 3 / inputs),
)

xavier_uniform: Initializer = Initializer(
    nnx.initializers.xavier_uniform(),
    _uniform_of_variance(lambda inputs, outputs: 1 / ((inputs + outputs) / 2)),
)


def torch_bias(fan_in: int) -> Initializer:
    """Returns PyTorch's default bias initialiser of a layer: uniform in ±1/√fan_in."""
    bound = fan_in**-0.5
    law = Law(low=-bound, high=bound, is_normal=False, factor=1.0)
    return Initializer(
        lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        lambda _: law,
    )


def normal(stddev: float) -> Initializer:
    """Returns an initialiser that draws from N(0, stddev²)."""
    above_minus_one = float(np.nextafter(np.float32(-1), np.float32(0)))
    law = Law(low=above_minus_one, high=1.0, is_normal=True, factor=stddev)
    return Initializer(nnx.initializers.normal(stddev), lambda _: law)
