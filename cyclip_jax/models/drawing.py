"""A model's initial parameters, drawn together.

Drawn one by one, they are hundreds of small loops, which take longer to compile than to run. Here
all their random bits come from one loop, and those of the same law become numbers in one more. The
bits of all parameters lie in rows of equal length, so that the loop knows nothing of their shapes.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, UInt32

from cyclip_jax.models.initializers import Law, drawn

_ROW = 2**15  # numbers of a row


@dataclasses.dataclass(frozen=True)
class Draw:
    """What an initialiser was asked for.

    Attributes:
      key: the key's two words, uint32 [2].
      shape: the array's shape.
      law: of its numbers.
    """

    key: UInt32[np.ndarray, "2"]
    shape: tuple[int, ...]
    law: Law

    @property
    def rows(self) -> int:
        """The rows that its numbers take."""
        return -(-math.prod(self.shape) // _ROW)


def draws_of(create: Callable[[], nnx.Module]) -> list[Draw]:
    """What the initialisers of this package are asked for in `create`, in their order.

    Args:
      create: function without arguments that returns a model, the same at every call.

    Returns:
      The draws; none where numbers are asked for that are not float32 from JAX's usual generator.
    """
    draws, usual = [], []

    def note(initializer, key, shape, dtype):
        draws.append((key, tuple(shape), initializer.law(shape)))
        is_threefry = str(jax.random.key_impl(key)) == "threefry2x32"
        usual.append(is_threefry and dtype in (None, np.float32))
        return np.zeros(shape, np.float32)  # which takes no memory until it is written to

    config: Any = jax.config  # it is not typed
    if config.jax_enable_x64 or not config.jax_threefry_partitionable:
        return []
    with drawn(note, has_keys=True):
        create()
    if not all(usual):
        return []
    words = jax.device_get([jax.random.key_data(key) for key, *_ in draws])
    return [Draw(key, shape, law) for key, (_, shape, law) in zip(words, draws, strict=True)]


def draw(
    draws: Sequence[Draw], *, sharding: Any = None, numbers_options: Any = None
) -> dict[Law, Float[Array, "rows _"]]:
    """The numbers of draws.

    Args:
      draws: as `draws_of` gives them.
      sharding: of the arrays; None leaves that to JAX.
      numbers_options: XLA's options with which numbers are made of bits.

    Returns:
      {law: the rows of its draws, in their order}.
    """
    if not draws:
        return {}
    by_law = _by_law(draws)
    in_order = [one for those in by_law.values() for one in those]
    rows = [one.rows for one in in_order]
    keys = np.repeat([one.key for one in in_order], rows, axis=0)
    offsets = np.concatenate([np.arange(count, dtype=np.uint32) * _ROW for count in rows])
    bits = jax.jit(_bits, out_shardings=sharding)(keys, offsets)
    ends = np.cumsum([sum(one.rows for one in those) for those in by_law.values()])

    def numbers(bits):
        parts = jnp.split(bits, ends[:-1])
        return [law.numbers(part) for law, part in zip(by_law, parts, strict=True)]

    compiled = jax.jit(numbers, out_shardings=sharding, compiler_options=numbers_options)
    return dict(zip(by_law, compiled(bits), strict=True))


def replayed(
    draws: Sequence[Draw], numbers: dict[Law, Float[Array, "rows _"]]
) -> contextlib.AbstractContextManager[None]:
    """A context in which the initialisers return the numbers of draws, in their order.

    Args:
      draws: as `draws_of` gives them. Without any, the initialisers draw.
      numbers: as `draw` gives them.
    """
    if not draws:
        return contextlib.nullcontext()
    begin, places = dict.fromkeys(numbers, 0), []
    for one in draws:
        places.append((one, begin[one.law]))
        begin[one.law] += one.rows
    places = iter(places)

    def replay(*_):
        one, row = next(places)
        flat = numbers[one.law][row : row + one.rows].reshape(-1)
        return flat[: math.prod(one.shape)].reshape(one.shape)

    return drawn(replay)


def _by_law(draws):
    by_law: dict[Law, list[Draw]] = {}
    for one in draws:
        by_law.setdefault(one.law, []).append(one)
    return by_law


def _bits(keys: UInt32[Array, "rows 2"], offsets: UInt32[Array, "rows"]) -> UInt32[Array, "rows _"]:
    """Row by row those that jax.random.bits has for a key from an offset on."""

    def row(key_and_offset):
        key, offset = key_and_offset
        count = offset + jnp.arange(_ROW, dtype=jnp.uint32)
        high, low = threefry_2x32(key, jnp.stack([jnp.zeros_like(count), count]))
        return high ^ low

    return jax.lax.map(row, (keys, offsets))
