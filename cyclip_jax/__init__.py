"""CyCLIP in JAX: contrastive image-text pretraining whose two geometries agree."""

__version__ = "0.1.0"
