"""Compares the kinds of gradient clipping for CyCLIP on emoji drawings."""

from configs import drawings

# What each arm changes in config.optimizer.
ARMS = {
    "none": {},
    "norm": {"gradient_clip": "norm", "gradient_clip_norm": 1.0},
    "agc": {"gradient_clip": "agc"},
    "autoclip": {"gradient_clip": "autoclip"},
    "zclip": {"gradient_clip": "zclip"},
    "adagc": {"gradient_clip": "adagc"},
}
SEEDS = (0, 1, 2)


def get_runs():
    """Returns {name: config}; the arms of a seed come before those of the next seed."""
    return {f"{arm}_seed{seed}": _run(arm, seed) for seed in SEEDS for arm in ARMS}


def _run(arm, seed):
    config = drawings.get_run(seed)
    config.optimizer.update(ARMS[arm])
    return config
