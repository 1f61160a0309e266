"""Compares CyCLIP on emoji drawings with the further losses, each by itself; see docs/losses.md."""

from configs import drawings

# What each arm changes, by section.
ARMS = {
    "cyclip": {},
    "sigmoid": {
        "loss": {"contrastive": "sigmoid", "initial_logit_bias": -2.71},
        "model": {"logit_bias": True},
    },
    "smoothed": {"loss": {"label_smoothing": 0.1}},
    "uniform": {
        "loss": {
            "uniformity_weight": 1.0,
            "cross_uniformity_weight": 1.0,
            "alignment_weight": 1.0,
            "uniformity_warmup_steps": 100,
        }
    },
    "nested": {"loss": {"nested_dims": (64, 32, 16)}},
    "negatives": {"data": {"negative_caption": "swap"}},
}
SEEDS = (0, 1, 2)


def get_runs():
    """Returns {name: config}; the arms of a seed come before those of the next seed."""
    return {f"{arm}_seed{seed}": _run(arm, seed) for seed in SEEDS for arm in ARMS}


def _run(arm, seed):
    config = drawings.get_run(seed)
    for section, changes in ARMS[arm].items():
        config[section].update(changes)
    return config
