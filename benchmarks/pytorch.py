"""PyTorch's side of the benchmarks, which leave it out if it is not installed."""

import importlib.util


def has_pytorch():
    """Says whether PyTorch and open_clip are installed, without importing them."""
    return all(map(importlib.util.find_spec, ("torch", "torchvision", "open_clip")))


def cyclic_terms(images, texts):
    """Computes (in-modal, cross-modal) consistency as a user of PyTorch would write it.

    Args:
      images, texts: unit-norm embeddings, tensors [N, D].
    """
    across = images @ texts.T  # [N, N]
    inmodal = (images @ images.T - texts @ texts.T).square().sum() / len(images)
    crossmodal = (across - across.T).square().sum() / len(images)
    return inmodal, crossmodal
