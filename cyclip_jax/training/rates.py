"""Factors of the learning rate: by the depth of a layer, and by tower."""

import math
from collections.abc import Mapping

import jax

from cyclip_jax.errors import UserError
from cyclip_jax.parallel import Tree
from cyclip_jax.training.freezing import Path, paths_of

# What stands behind the blocks of a tower; a ResNet's pool has its own position embedding.
_BEHIND_BLOCKS = {
    *("ln_post", "proj", "attnpool", "attn_pool", "ln_final", "text_projection"),
    "norm",  # of SigLIP's trunk
}
_TOWERS = ("visual", "text")


def check_rates(layer_decay: float, tower_rates: Mapping[str, float]) -> None:
    """Raises UserError where a factor is none that a rate can have."""
    if not 0 < layer_decay <= 1:
        raise UserError(
            f"config.optimizer.layer_decay {layer_decay} must be greater than 0 and at most 1"
        )
    if sorted(tower_rates) != sorted(_TOWERS):
        raise UserError(
            f"config.optimizer.tower_rates has {', '.join(tower_rates) or 'nothing'}; it must have "
            f"{' and '.join(_TOWERS)}"
        )
    for tower, rate in tower_rates.items():
        if not 0 < rate < math.inf:
            raise UserError(
                f"config.optimizer.tower_rates.{tower} {rate} must be greater than 0; to keep a "
                f"tower as it is, set config.optimizer.freeze to ('{tower}/.*',)"
            )


def depths(params: Tree) -> dict[Path, int]:
    """How far each parameter lies from the output of its tower, in layers.

    What stands behind the blocks has depth 0, as scalars and a sentence head do: the last
    norm, the projection and a ResNet's attention pool. The last block has depth 1, and so on. What
    stands before the blocks has the depth L, one more than there are blocks: the embeddings, and a
    ViT's first norm. These are the layers of BEiT (Bao et al. 2022), which FT-CLIP (Dong et al.
    2022) takes for CLIP. A ResNet has no layers of one shape: its layers are the residual blocks of
    its four stages, counted through, and its stem of three convolutions is what stands before them.

    Args:
      params: the model's parameters, a nested dict of arrays or shapes.

    Returns:
      {path: depth}, in JAX's order.
    """
    paths = paths_of(params)
    blocks = {
        tower: sorted({block for path in paths if path[0] == tower and (block := _block(path))})
        for tower in _TOWERS
    }

    def depth(path):
        if path[0] not in blocks or _BEHIND_BLOCKS & set(path[1:3]):
            return 0
        own, block = blocks[path[0]], _block(path)
        return len(own) - own.index(block) if block else len(own) + 1

    return {path: depth(path) for path in paths}


def _block(path: Path) -> tuple[int, ...]:
    """(block,) or (stage, block), of which a parameter is; () outside blocks."""
    return tuple(int(part) for part in path if str(part).isdecimal())


def rate_factors(
    params: Tree, *, layer_decay: float, tower_rates: Mapping[str, float]
) -> Tree | None:
    """What the learning rate of each parameter is multiplied by: γ^depth, times its tower's.

    Args:
      params: the model's parameters, a nested dict of arrays or shapes.
      layer_decay: γ.
      tower_rates: {"visual": …, "text": …}; what belongs to no tower has the factor 1.

    Returns:
      The same tree of floats, or None where all are 1.
    """
    factors = [
        layer_decay**depth * (tower_rates[path[0]] if path[0] in _TOWERS else 1.0)
        for path, depth in depths(params).items()
    ]
    if all(factor == 1 for factor in factors):
        return None
    return jax.tree.unflatten(jax.tree.structure(params), factors)
