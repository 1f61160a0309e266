"""A linear layer from image embeddings to classes, which fine-tuning trains."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class ClassHead(nnx.Module):
    """What classes are scored by: s·⟨f, w_c⟩ + b_c of an image embedding f of unit norm.

    It begins with zeros. A run puts the embeddings of the classes' texts there, so that its first
    scores are the zero-shot ones (Wortsman et al. 2022, section 3).

    Args:
      width: D, numbers of an embedding.
      classes: C.

    Attributes:
      kernel: w as columns, float32 [D, C].
      bias: b, float32 [C].
    """

    def __init__(self, width: int, classes: int) -> None:
        self.kernel: nnx.Param[Array] = nnx.Param(jnp.zeros((width, classes), jnp.float32))
        self.bias: nnx.Param[Array] = nnx.Param(jnp.zeros(classes, jnp.float32))

    def __call__(
        self, image_embeds: Float[Array, "n d"], logit_scale: Float[Array, ""] | float
    ) -> Float[Array, "n c"]:
        """Scores [N, C] of unit-norm embeddings [N, D], with the exponentiated scale s."""
        return logit_scale * (image_embeds @ self.kernel[...]) + self.bias[...]
