"""Dropout whose masks are drawn by row, so that nothing else decides what a row is spared."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Inverted dropout (Srivastava et al. 2014) with a random key for each row.

    A mask is a function of its row's key and of the place in the model, so that micro-batches,
    devices and processes draw the same.

    Attributes:
      keys: the data of each row's key, uint32 [N, 2].
      rate: share of the numbers that are dropped, in [0, 1).
    """

    keys: UInt32[Array, "n 2"]
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Float[Array, "n ..."], place: Int[Array, ""] | int) -> Array:
        """x [N, ...] with some of its numbers 0 and the others divided by 1 − rate.

        Args:
          x: what is dropped from.
          place: number of the place in the model; each has masks of its own.
        """

        def kept(key):
            key = jax.random.fold_in(jax.random.wrap_key_data(key), place)
            return jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(kept)(self.keys), x / (1 - self.rate), 0)
