"""Image and text towers as Flax NNX modules."""

from cyclip_jax.models.presets import PRESETS, create_model

__all__ = ["PRESETS", "create_model"]
