"""Compares CyCLIP with CLIP on emoji drawings: with both cyclic terms, with one, and with none."""

from configs import drawings

# λ1 of the in-modal and λ2 of the cross-modal term, as in the paper's ablation.
OBJECTIVES = {
    "cyclip": (0.25, 0.25),
    "clip": (0.0, 0.0),
    "c_cyclip": (0.0, 0.25),
    "i_cyclip": (0.25, 0.0),
}
SEEDS = {"cyclip": 10, "clip": 10, "c_cyclip": 3, "i_cyclip": 3}


def get_runs():
    """Returns {name: config}; the objectives of a seed come before those of the next seed."""
    return {
        f"{name}_seed{seed}": _run(seed, *weights)
        for seed in range(max(SEEDS.values()))
        for name, weights in OBJECTIVES.items()
        if seed < SEEDS[name]
    }


def _run(seed, inmodal_weight, crossmodal_weight):
    config = drawings.get_run(seed)
    config.loss.inmodal_weight = inmodal_weight
    config.loss.crossmodal_weight = crossmodal_weight
    return config
