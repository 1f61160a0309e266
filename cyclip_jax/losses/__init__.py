"""The CyCLIP objective as pure functions of embeddings."""

from cyclip_jax.losses.contrastive import contrastive_loss
from cyclip_jax.losses.cyclic import cyclic_consistency
from cyclip_jax.losses.cyclip import cyclip_loss

__all__ = ["contrastive_loss", "cyclic_consistency", "cyclip_loss"]
