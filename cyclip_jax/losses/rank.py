"""The effective rank of embeddings, which tells in how many directions they lie."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from cyclip_jax.losses.terms import Embeds
from cyclip_jax.losses.tiles import at_least_float32, product


def embedding_rank(
    embeds: Float[Array, "n d"], *, axis_names: tuple[str, ...] = ()
) -> Float[Array, ""]:
    """(tr C)² / tr C² with the second moments C = (1/N) Σ x xᵀ; no eigenvalue is computed.

    With the eigenvalues λ of C this is (Σ λ)² / Σ λ². It is D where the embeddings lie in all
    directions alike, and 1 where they are all equal. C is not centred: of equal embeddings the
    covariance is rounding alone, and its rank may be anything. Of unit-norm embeddings the rank is
    one over the mean squared cosine of all pairs.

    Args:
      embeds: float [N, D]; inside shard_map the device's rows, [n, D].
      axis_names: the mesh axes that the rows are split over, inside shard_map; () is one device.
        Only a D×D matrix is sent, to be summed over devices.

    Returns:
      A scalar of at least float32, between 1 and the lesser of N and D.
    """
    (rows,) = at_least_float32(embeds)
    n, d = rows.shape
    if axis_names:
        moments = jax.lax.psum(product(rows.T, rows), axis_names)  # N·C, [D, D]
    else:  # X Xᵀ, [N, N], has the eigenvalues of Xᵀ X, but for zeros
        moments = product(rows, rows.T) if n < d else product(rows.T, rows)
    return jnp.trace(moments) ** 2 / jnp.sum(moments**2)


def smallest_rank(embeds: Embeds, *, mesh: Mesh | None = None) -> Float[Array, ""]:
    """The smallest `embedding_rank` among several kinds of embeddings, such as images and texts.

    Args:
      embeds: embeddings of the global batch by their names, float [N, D] each.
      mesh: a jax.sharding.Mesh, all of whose axes the rows are split over; None is one device.

    Returns:
      A scalar of at least float32, without a gradient.
    """
    # What is measured here must not change how XLA computes what is trained on.
    embeds = jax.lax.optimization_barrier(jax.lax.stop_gradient(dict(embeds)))

    def smallest(embeds, *, axis_names=()):
        ranks = [embedding_rank(rows, axis_names=axis_names) for rows in embeds.values()]
        return functools.reduce(jnp.minimum, ranks)

    if mesh is None or mesh.size == 1:
        return smallest(embeds)
    return jax.shard_map(
        functools.partial(smallest, axis_names=mesh.axis_names),
        mesh=mesh,
        in_specs=PartitionSpec(mesh.axis_names),
        out_specs=PartitionSpec(),
    )(embeds)
