"""Compares CyCLIP with CLIP as objectives.py does, on one GPU: wider towers, and longer runs."""

from configs import drawings
from configs.sweeps.objectives import OBJECTIVES

SEEDS = range(10)


def get_runs():
    """Returns {name: config}; both objectives of a seed come before those of the next seed."""
    return {
        f"{name}_seed{seed}": _run(seed, *OBJECTIVES[name])
        for seed in SEEDS
        for name in ("cyclip", "clip")
    }


def _run(seed, inmodal_weight, crossmodal_weight):
    config = drawings.get_run(seed)
    # The drawings lie there already: on a machine without a network nothing can build them.
    config.data.source = "csv"
    config.total_steps = 1520
    config.checkpoint_every_steps = 1520
    config.compilation_cache = "{workdir}/../compilation_cache"
    config.model.vision_width = 64
    config.model.embed_dim = 128
    config.model.text_width = 128
    config.loss.inmodal_weight = inmodal_weight
    config.loss.crossmodal_weight = crossmodal_weight
    return config
