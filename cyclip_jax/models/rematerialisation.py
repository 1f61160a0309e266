"""Decides which of a block's activations are kept for the gradient and which computed again."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# What a block names the products with its weights, of which JAX's policies see no product.
PRODUCT = "product"


# What besides the blocks' inputs is kept.
POLICIES: dict[str, Callable[..., bool]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    # The outputs of products with weights, which are what costs.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}


def run_block(
    block: Callable[..., Float[Array, "n ..."]],
    x: Float[Array, "n ..."],
    *further: Any,
    policy: str,
) -> Float[Array, "n ..."]:
    """Returns block(x, *further); of the activations those are kept that POLICIES[policy] names.

    BatchNorm's statistics, which the block changes in itself, are changed once.
    """
    if policy == "none":
        return block(x, *further)
    return nnx.remat(_call, policy=POLICIES[policy])(block, x, *further)


def scan_blocks(
    blocks: Sequence[nnx.Module], x: Float[Array, "..."], *each: Any, policy: str
) -> Float[Array, "..."]:
    """Runs one block after the other by `run_block` in one loop, which is compiled once.

    The blocks' parameters stay separate arrays outside: they are stacked while this is computed.

    Args:
      blocks: modules that differ only in their parameters, which they do not change.
      x: the input of the first block, [...]; each block returns the shape and dtype that it gets.
      *each: trees of further arguments of the blocks, [blocks, ...].
      policy: one of POLICIES.
    """
    graphdef, _ = nnx.split(blocks[0])
    params = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    def body(x, own):
        params, further = own
        return nnx.merge(graphdef, params)(x, *further), None

    if policy != "none":
        # In a loop nothing can be shared between the two passes; forbidding it costs speed.
        body = jax.checkpoint(body, prevent_cse=False, policy=POLICIES[policy])
    return jax.lax.scan(body, x, (stacked, each))[0]


def _call(block, x, *further):
    return block(x, *further)
